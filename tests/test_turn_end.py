"""The token that closes an assistant's turn, read from chat templates: all that TRL ships, and some that have none."""

import warnings
from pathlib import Path

import pytest
import trl
from turn_case import GEMMA, TURN_END, chat_llama, chat_tokenizer, turn_end_of

from trl_ext.sequences.turn_end import announced_turn_end, end_ids, end_with_turn, turn_end_id

# By reading each template that TRL ships; a training variant, `…_training`, closes turns as the original does.
CLOSED_BY = {
    "<|im_end|>": (
        "lfm2 lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl lfm2_v2 nemotron_3_5_lightning nemotron_3_nano nemotron_3_super "
        "nemotron_3_ultra qwen2_5 qwen2_5_vl qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 qwen3_instruct_2507 qwen3_vl"
    ),
    "<|END_OF_TURN_TOKEN|>": "cohere cohere2",  # cohere2 ends the response within the turn by <|END_RESPONSE|>
    "<｜end▁of▁sentence｜>": "deepseek_r1_distill deepseekv3",
    "<turn|>": "diffusion_gemma gemma4 gemma4_v2 gemma4_v3 gemma4_v4 gemma4_v5",
    "<end_of_turn>": "gemma gemma3",
    "<|return|>": "gptoss",  # the last turn; those before are closed by <|end|>
    "<end_of_utterance>": "idefics3 smolvlm",
    "<|eot_id|>": "llama3 llama3_1 llama3_2",
    "</s>": "llava_next",
    "<|eot|>": "muse_glimmer",
    "<|end|>": "phi3 phi3_5",  # the end token follows the last turn only
    None: "glm4moe",  # a turn ends where the next begins
}
EXPECTED = {name: token for token, names in CLOSED_BY.items() for name in names.split()}
EXPECTED |= {f"{name}_training": token for name, token in EXPECTED.items()} | {"glm4moe_training": "<|user|>"}
OTHERS = """<|im_start|> <|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|START_RESPONSE|> <|END_RESPONSE|> <｜User｜>
    <｜Assistant｜> <|turn> <|channel> <channel|> <start_of_turn> <|start|> <|message|> <|channel|> <|eom|> <|begin_of_text|>
    <|start_header_id|> <|end_header_id|> <|eom_id|> [gMASK] <sop> <|user|> <|assistant|> <think> </think>"""  # close nothing
TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"), key=lambda path: path.stem)


@pytest.mark.parametrize("kind", ["base", "instruct"])
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_trls_templates(path, kind):
    token = EXPECTED[path.stem]
    eos = token if token and kind == "instruct" else "<eos>"
    specials = list(dict.fromkeys([*OTHERS.split(), *filter(None, CLOSED_BY)]))
    tokenizer = chat_tokenizer(path.read_text(), eos=eos, specials=specials)
    end = turn_end_id(tokenizer)
    assert (end and tokenizer.convert_ids_to_tokens(end)) == token
    assert (end in (None, *end_ids(tokenizer, None))) == (kind == "instruct" or token is None)


def test_all_of_them_are_in_the_table():
    assert TEMPLATES and {path.stem for path in TEMPLATES} <= EXPECTED.keys()


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('not for you') }}",
        "{% for m in messages %}{{ m.role }}: {{ m.content + 1 }}<end_of_turn>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: <end_of_turn>{% endfor %}",  # no content
        "{% for m in messages %}<start_of_turn>{{ m.role }}: {{ m.content }}{% endfor %}",
    ],
    ids=["none", "refuses", "fails", "white space", "says nothing", "closes nothing"],
)
def test_templates_without(template):
    specials = ["<start_of_turn>", TURN_END, "\n\n"]  # as Gemma's tokenizer has runs of new lines
    assert turn_end_id(chat_tokenizer(template, specials=specials)) is None


def test_a_template_of_one_exchange():
    one_only = "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}" + GEMMA
    tokenizer = chat_tokenizer(one_only)
    assert turn_end_id(tokenizer) == turn_end_of(tokenizer)


def test_what_is_unknown_closes_nothing():
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m.content }}<pad>{% endfor %}")
    assert turn_end_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.unk_token = "<pad>"
    assert turn_end_id(tokenizer) is None


def test_arguments_reach_the_template():
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m.content }}{{ mark }}{% endfor %}")
    assert turn_end_id(tokenizer) is None
    assert turn_end_id(tokenizer, mark=TURN_END) == turn_end_of(tokenizer)


@pytest.mark.parametrize("configured", [None, 1, 7, [7, 8]])
def test_the_generation_config_names_it_too(configured):
    tokenizer, model = chat_tokenizer(), chat_llama(1.0)
    model.generation_config.eos_token_id = configured
    with pytest.warns(UserWarning, match=r"Here: .* with '<end_of_turn>', which neither .* names"):
        assert end_with_turn(model, tokenizer, call="Here") == turn_end_of(tokenizer)
    before = [] if configured is None else [configured] if isinstance(configured, int) else configured
    assert model.generation_config.eos_token_id == [1, *(i for i in before if i != 1), turn_end_of(tokenizer)]


def test_nothing_is_said_of_a_known_one():
    tokenizer, model = chat_tokenizer(), chat_llama(1.0)
    model.generation_config.eos_token_id = [turn_end_of(tokenizer)]
    with warnings.catch_warnings(action="error"):
        end_with_turn(model, tokenizer, call="Here")
        announced_turn_end(chat_tokenizer(eos=TURN_END), [turn_end_of(tokenizer)], call="Here")
    assert model.generation_config.eos_token_id == [turn_end_of(tokenizer)]


def test_a_template_that_closes_nothing_adds_nothing():
    model = chat_llama(1.0)
    with warnings.catch_warnings(action="error"):
        assert end_with_turn(model, chat_tokenizer(None), call="Here") is None
    assert model.generation_config.eos_token_id == 1
