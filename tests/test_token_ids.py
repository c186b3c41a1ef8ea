"""Text and messages become ids as their trainers make them, whatever the chat template; BOS comes once."""

from pathlib import Path

import pytest
import trl
from datasets import Dataset
from tiny import byte_tokenizer, merging_tokenizer, tiny_reward_model, tokenizer_with_options

from trl_ext import LearnedReward
from trl_ext.generation.protocol import Policy
from trl_ext.memory_planning.trainer_plan import longest_prompt
from trl_ext.ppo.text_mix import tokenised_row
from trl_ext.sequences.token_ids import (
    message_ids,
    prompt_and_completion_ids,
    prompt_ids,
    row_template_kwargs,
    whole_ids,
)

QUESTION = [{"role": "user", "content": "Why?"}]
ANSWER = [{"role": "assistant", "content": "So."}]
TEMPLATES = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}
OF_PARTS = {  # templates of models that see images, which read text from the parts of a message only
    "idefics3": "renders a message of plain text without it",
    "idefics3_training": "renders a message of plain text without it",
    "llava_next": "fails at the assistant's plain text",
    "llava_next_training": "fails at the assistant's plain text",
    "smolvlm": "renders a message of plain text without it",
    "smolvlm_training": "renders a message of plain text without it",
}


def templated(name: str):
    """A tokenizer that puts BOS before text, and has one of TRL's chat templates."""
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.chat_template = TEMPLATES[name].read_text()
    return tokenizer


def rendered(tokenizer, messages, **options) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


@pytest.fixture(params=sorted(TEMPLATES.keys() - OF_PARTS.keys()))
def any_template(request):
    return templated(request.param)


def test_messages_are_read_as_the_template_writes_them(any_template):
    prompt, completion = prompt_and_completion_ids(QUESTION, ANSWER, any_template)
    options = {"tokenize": True, "return_dict": True}
    asked = any_template.apply_chat_template(QUESTION, add_generation_prompt=True, **options)["input_ids"]
    assert prompt_ids(QUESTION, any_template) == asked and asked[: len(prompt)] == prompt
    whole = any_template.apply_chat_template(QUESTION + ANSWER, **options)["input_ids"]
    assert prompt + completion == message_ids(QUESTION + ANSWER, any_template) == whole
    assert any_template.decode(whole) == rendered(any_template, QUESTION + ANSWER)
    assert "So." in any_template.decode(completion) and "Why?" not in any_template.decode(completion)


def test_bos_comes_once_if_the_template_writes_it(any_template):
    bos, written = any_template.bos_token_id, rendered(any_template, QUESTION + ANSWER).count("<bos>")
    assert written == ("bos_token" in any_template.chat_template)
    for ids in (prompt_ids(QUESTION, any_template), message_ids(QUESTION + ANSWER, any_template)):
        assert ids.count(bos) == written and bos not in ids[1:]


def test_what_is_cut_off_leaves_its_turn_open(any_template):
    closed, open_ = (prompt_and_completion_ids(QUESTION, ANSWER, any_template, ended=ended) for ended in (True, False))
    assert any_template.decode(open_[1]).endswith("So.")
    assert closed[0] == open_[0] and closed[1][: len(open_[1])] == open_[1]


def test_bos_is_never_learned(any_template):
    bos = any_template.bos_token_id
    for row in ({"messages": QUESTION + ANSWER}, {"prompt": QUESTION, "completion": ANSWER}):
        learned = tokenised_row(row, any_template)
        assert learned["input_ids"] == message_ids(QUESTION + ANSWER, any_template)
        assert bos not in learned["labels"]


@pytest.mark.parametrize("name", sorted(OF_PARTS.keys() & TEMPLATES.keys()))
def test_templates_that_are_left_out_lose_plain_text(name):
    try:
        text = rendered(templated(name), QUESTION + ANSWER)
    except Exception:
        text = ""
    assert "So." not in text


@pytest.mark.parametrize("row", [{"text": "abcd"}, {"prompt": "ab", "completion": "cd"}])
def test_bos_before_text_is_not_learned_either(row):
    labels = tokenised_row(row, byte_tokenizer(bos=True))["labels"]
    assert labels[0] == -100 and byte_tokenizer().bos_token_id not in labels


@pytest.mark.parametrize(("ended", "end"), [(True, "<eos>"), (False, "")])
def test_text_gets_an_end_if_and_only_if_it_ended(tokenizer, ended, end):
    prompt, completion = prompt_and_completion_ids("ab", " cd", tokenizer, ended=ended)
    assert tokenizer.decode(prompt) == "ab"
    assert tokenizer.decode(completion) == " cd" + end


@pytest.mark.parametrize(("ended", "end"), [(True, "<eos>"), (False, "")])
def test_messages_end_their_turn_if_and_only_if_they_ended(tokenizer, ended, end):
    prompt, completion = prompt_and_completion_ids(QUESTION, ANSWER, tokenizer, ended=ended)
    assert tokenizer.decode(prompt) == "u:Why?\na:"
    assert tokenizer.decode(completion) == "So." + end


def test_an_end_that_is_there_is_not_doubled(tokenizer):
    assert whole_ids("ab", "cd<eos>", tokenizer).count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_end_token_ends_nothing(tokenizer):
    tokenizer.eos_token = None
    assert tokenizer.decode(whole_ids("ab", "cd", tokenizer)) == "abcd"


def test_a_turn_that_the_template_cannot_leave_open_is_closed(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content.upper()")
    assert tokenizer.decode(message_ids(ANSWER, tokenizer, ended=False)) == "a:SO.<eos>"


def test_a_token_across_the_boundary_is_the_completions():
    """`ab` + `ca`: the prompt alone is [a, b], with the completion [a, bc, a]."""
    tokenizer = merging_tokenizer()
    prompt, completion = prompt_and_completion_ids("ab", "ca", tokenizer)
    assert tokenizer.convert_ids_to_tokens(prompt) == ["a"]
    assert tokenizer.convert_ids_to_tokens(completion) == ["bc", "a", "<eos>"]


def test_options_reach_the_template():
    tokenizer, options = tokenizer_with_options(), {"shout": True, "tools": [{"name": "look"}]}
    assert tokenizer.decode(prompt_ids(QUESTION, tokenizer, options)) == "LOUD1u:Why?\na:"
    assert tokenizer.decode(message_ids(ANSWER, tokenizer, options, ended=False)) == "LOUD1a:So."
    assert tokenizer.decode(prompt_and_completion_ids(QUESTION, ANSWER, tokenizer, options)[0]) == "LOUD1u:Why?\na:"
    assert prompt_ids("ab", tokenizer, options) == prompt_ids("ab", tokenizer)  # of which text has no use


def test_a_configs_options_reach_all_that_read_for_the_policy():
    tokenizer, options = tokenizer_with_options(), {"shout": True}
    asked = prompt_ids(QUESTION, tokenizer, options)
    assert Policy(None, tokenizer, options).prompt_ids(QUESTION) == asked
    assert longest_prompt(Dataset.from_dict({"prompt": [QUESTION]}), tokenizer, options) == len(asked)
    row = {"prompt": QUESTION, "completion": ANSWER, "tools": '[{"name": "look"}]'}
    assert tokenizer.decode(tokenised_row(row, tokenizer, options)["input_ids"]).startswith("LOUD1u:")
    row["chat_template_kwargs"] = {"shout": False}  # a row's own go first
    assert tokenizer.decode(tokenised_row(row, tokenizer, options)["input_ids"]).startswith("1u:")


def test_a_reward_models_template_is_its_own():
    tokenizer = tokenizer_with_options()
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    assert tokenizer.decode(reward.token_ids(QUESTION, ANSWER)) == "u:Why?\na:So.<eos>"


@pytest.mark.parametrize("tools", ['[{"name": "look"}]', [{"name": "look"}]])
def test_a_rows_tools_may_be_json(tools):
    assert row_template_kwargs({"prompt": "ab", "tools": tools}) == {"tools": [{"name": "look"}]}
    assert row_template_kwargs({"prompt": "ab", "tools": None, "chat_template_kwargs": None}) == {}


def test_no_messages(tokenizer):
    with pytest.raises(ValueError, match="empty conversation"):
        prompt_ids([], tokenizer)
