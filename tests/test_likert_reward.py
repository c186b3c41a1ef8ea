"""LikertReward: its score by hand and by enumeration, what the judge reads, and every trainer."""

import json
import pickle
import warnings

import pytest
import torch
from datasets import Dataset
from option_case import byte_level_tokenizer, sentence_piece_tokenizer
from shared_case import base_path, lora
from tiny import byte_tokenizer, tiny_llama
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig

from trl_ext import LikertReward, PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer, SharedBase
from trl_ext.ai_feedback import likert_reward as module
from trl_ext.ai_feedback.likert_prompts import Asked, fitted, likert_template
from trl_ext.ai_feedback.likert_scale import mean_grades, scores_of, spread_within
from trl_ext.ai_feedback.preference_questions import conversation_text
from trl_ext.memory_planning.trainer_plan import run_plan
from trl_ext.ppo.ppo_input import check_value_model
from trl_ext.rewards.reward_callables import reward_functions
from trl_ext.rewards.reward_columns import check_columns
from trl_ext.rewards.reward_fingerprints import reward_settings

SHORT = "{prompt}|{completion}|"
TEN = [str(grade) for grade in range(1, 11)]
WIDE = {"max_position_embeddings": 1024}


def plain_tokenizer():
    """Without a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def reward_of(tokenizer=None, **options) -> LikertReward:
    """A judge with random weights, of whom nothing is warned."""
    tokenizer = tokenizer or byte_tokenizer()
    reward = LikertReward(tiny_llama(tokenizer, **WIDE), tokenizer=tokenizer, **options)
    reward._warned.update(["mass", "spread"])
    return reward


def asked_by(reward: LikertReward, monkeypatch) -> list[str]:
    """What the judge is asked from now on."""
    questions, ask = [], LikertReward._question
    monkeypatch.setattr(
        LikertReward, "_question", lambda self, asked: questions.append(ask(self, asked)) or questions[-1]
    )
    return questions


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


# The arithmetic


def test_by_hand():
    p = torch.zeros(2, 10)
    p[0, [0, 9]] = torch.tensor([0.1, 0.3])  # (1 · 0.1 + 10 · 0.3) / 0.4
    p[1, [4, 5]] = 1e-30  # as sure of its grades as if they had all mass
    grades = mean_grades(p.log())
    assert grades.tolist() == pytest.approx([7.75, 5.5])
    assert scores_of(grades).tolist() == pytest.approx([0.5, 0.0])


def test_equal_grades_are_the_middle_and_mass_changes_nothing():
    log_probs = torch.randn(3, 10).log_softmax(1)
    torch.testing.assert_close(mean_grades(log_probs), mean_grades(log_probs - 5))
    assert scores_of(mean_grades(torch.zeros(1, 10))).tolist() == pytest.approx([0.0])


def test_the_spread_is_within_prompts():
    assert spread_within([1.0, 3.0, 9.0, 9.0], ["a", "a", "b", "b"], ["x", "y", "x", "x"]) == 1.0
    assert spread_within([1.0, 9.0], ["a", "b"], ["x", "y"]) is None
    assert spread_within([1.0, 3.0, float("nan")], ["a", "a", "a"], ["x", "y", "z"]) == 1.0


def enumerated(model, context: list[int], tokenizer, space: str) -> list[float]:
    """P of each grade by a sum over every pair of tokens that may follow."""
    words = model.config.vocab_size
    rows = torch.tensor([[*context, token] for token in range(words)])
    with torch.no_grad():
        logits = model(rows).logits.double().log_softmax(-1)
    first, second = logits[0, len(context) - 1].exp(), logits[:, -1].exp()  # second: (first token, second token)
    pairs = first[:, None] * second
    ids = {grade: tokenizer(space + grade, add_special_tokens=False)["input_ids"] for grade in TEN}
    found = {grade: pairs[ids[grade][-1]].sum().item() for grade in TEN[1:9]}
    one, zero = ids["10"][-2:]
    found["10"] = pairs[one, zero].item()
    found["1"] = pairs[one].sum().item() - found["10"]
    return [found[grade] for grade in TEN]


def test_ten_of_two_tokens_by_enumeration_of_every_continuation():
    tokenizer = byte_tokenizer()
    reward = reward_of(tokenizer, template=SHORT)
    context = tokenizer("u:Why?|So.|\na:")["input_ids"]
    p = torch.tensor(enumerated(reward.model, context, tokenizer, ""))
    s = ((p * torch.arange(1, 11)).sum() / p.sum()).item()
    logged = {}
    [score] = reward(prompts=["Why?"], completions=["So."], log_metric=logged.__setitem__)
    assert score == pytest.approx((s - 5.5) / 4.5, abs=1e-5)
    assert logged == {"likert/mass": pytest.approx(p.sum().item(), abs=1e-5)}
    as_one = ((p * torch.arange(1, 11)).sum() - 9 * p[9]) / p.sum()  # a 10 taken for the 1 that it begins with
    assert abs(s - as_one.item()) > 1e-3


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level_tokenizer(*((("Ġ", digit)) for digit in "123456789")),
        byte_level_tokenizer(*((("Ġ", digit)) for digit in "123456789"), ("Ġ1", "0")),
        sentence_piece_tokenizer(*(f"▁{grade}" for grade in TEN)),
        sentence_piece_tokenizer(),
    ],
    ids=["Ġ1 0", "Ġ10", "▁10", "▁ 1 0"],
)
def test_as_text_the_grade_follows_behind_a_blank(tokenizer):
    """Each grade as the tokenizer writes it behind the question: a 10 in one token is a 10 as well."""
    reward = reward_of(tokenizer, template=SHORT)
    context = tokenizer("Why?|So.|")["input_ids"]
    p = {}
    for grade in TEN:
        own = tokenizer(f"Why?|So.| {grade}")["input_ids"]
        with torch.no_grad():
            logits = reward.model(torch.tensor([own])).logits[0].log_softmax(-1)
        p[grade] = sum(logits[i - 1, own[i]] for i in range(len(context), len(own))).exp().item()
    ids = [tokenizer(f" {grade}")["input_ids"] for grade in ("1", "10")]
    p["1"] -= p["10"] if ids[1][: len(ids[0])] == ids[0] else 0.0
    s = sum(int(grade) * own for grade, own in p.items()) / sum(p.values())
    assert reward(prompts=["Why?"], completions=["So."]) == pytest.approx([(s - 5.5) / 4.5], abs=1e-4)


# What it reads


def test_batches_and_repetitions_change_nothing():
    reward = reward_of(batch_size=2)
    prompts, completions = ["Why?", "Who?", "Why?", "Why?"], ["So.", "He, of course.", "", "So."]
    together = reward(prompts=prompts, completions=completions)
    alone = [reward(prompts=[p], completions=[c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5) and together[0] == together[3] and len(set(together)) == 3
    assert all(-1 <= score <= 1 for score in together) and reward(prompts=[], completions=[]) == []


def test_a_long_prompt_is_read_once_for_its_completions():
    """Of three prompts of 400 letters, five completions each: the grades stay, and under a third of the tokens is read."""
    reward, read = reward_of(), []
    hook = reward.model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: read.append(args[0].numel())
    )
    prompts = [letter * 400 for letter in "abc" for _ in range(5)]
    completions = [f"{i}" for i in range(15)]
    together = reward(prompts=prompts, completions=completions)
    first, read[:] = sum(read), []
    alone = [reward(prompts=[p], completions=[c])[0] for p, c in zip(prompts, completions, strict=True)]
    hook.remove()
    assert together == pytest.approx(alone, abs=1e-6) and first < sum(read) / 3


def test_rubric_and_reference_are_asked_about(monkeypatch):
    reward = reward_of(rubric="정확하고 공손한가?", reference=True)
    asked = asked_by(reward, monkeypatch)
    given = {
        "prompts": ["수도는?"] * 2,
        "completions": ["서울입니다.", "{rubric} 몰라"],
        "reference": ["서울", "서울"],
    }
    one, other = reward(**given)
    assert (
        one != other and "정확하고 공손한가?" in asked[0] and "서울입니다." in asked[0] and "{rubric} 몰라" in asked[1]
    )
    assert asked[0].index("수도는?") < asked[0].index("서울") < asked[0].index("서울입니다.")
    assert reward_of(rubric="짧은가?", reference=True)(**given) != [one, other]
    assert reward(**given | {"reference": ["부산", "서울"]})[0] != one


def test_conversations():
    tokenizer = byte_tokenizer()
    reward = reward_of(tokenizer, template=SHORT)
    text = reward(prompts=["Why?"], completions=["So."])
    assert reward(prompts=[user("Why?")], completions=[assistant("So.")]) == text
    turns = [*user("Why?"), *assistant("So."), *user("And?")]
    assert conversation_text(turns) == "user: Why?\nassistant: So.\nuser: And?"
    assert reward(prompts=[turns], completions=[assistant("No.")]) == reward(
        prompts=[conversation_text(turns)], completions=["No."]
    )


def test_the_judge_keeps_its_mode_and_gets_no_gradient():
    reward = reward_of()
    reward.model.train()
    reward(prompts=["Why?"], completions=["So."])
    assert reward.model.training and all(p.grad is None for p in reward.model.parameters())


# What does not fit


def length(asked: Asked) -> int:
    return len(f"{asked.prompt}|{asked.completion}|{asked.reference or ''}|")


@pytest.mark.parametrize(
    ("asked", "longest", "expected"),
    [
        (Asked("why", "abcdefgh"), 14, Asked("why", "abcdefgh")),
        (Asked("why", "abcdefgh"), 10, Asked("why", "abcd")),  # its end
        (Asked("abcdefgh", "so"), 9, Asked("efgh", "so")),  # its beginning
        (Asked("why", "so", "abcdefgh"), 12, Asked("why", "so", "abcd")),
        (Asked("abcd", "efgh"), 7, Asked("cd", "ef")),
        (Asked("abcd", "efgh"), 3, Asked("", "")),
        (Asked("abcd", "efgh"), 2, Asked("", "")),  # they do not
    ],
)
def test_the_longest_texts_are_cut(asked, longest, expected):
    assert fitted(asked, fits=lambda each: length(each) <= longest) == expected


def test_what_passes_the_window_is_cut_and_said_once():
    reward = reward_of(template=SHORT, max_length=20)
    cut = {"prompts": ["Why?"] * 2, "completions": ["abcdefgh" * 400, "So."]}
    with pytest.warns(UserWarning, match="1 of 2 questions are too long for the judge or max_length=20"):
        found = reward(**cut)
    kept = ("abcdefgh" * 2)[: 20 - len("u:Why?||\na:")]
    assert found == pytest.approx(reward(prompts=["Why?"] * 2, completions=[kept, "So."]), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(**cut)
    windowed, lengths = reward_of(template=SHORT), []  # of 1 024 tokens
    windowed.model.model.embed_tokens.register_forward_hook(lambda module, args, out: lengths.append(args[0].shape[1]))
    with pytest.warns(UserWarning, match="too long for the judge"):
        assert len(windowed(prompts=["?" * 3000], completions=["abc" * 1000])) == 1
    assert 1000 < max(lengths) <= 1024 - 1  # the last token of a grade is not read


def test_a_question_that_never_fits_is_refused():
    with pytest.raises(ValueError, match=r"its question alone, without prompt and completion, has \d+ tokens"):
        reward_of(max_length=30)(prompts=["Why?"], completions=["So."])


# What it says


def test_little_mass_and_no_spread_are_warned_of_once():
    tokenizer = byte_tokenizer()
    reward = LikertReward(tiny_llama(tokenizer, **WIDE), tokenizer=tokenizer, template=SHORT, name="judge")
    logged = {}
    with pytest.warns(UserWarning, match=r"'judge': the judge puts \d+\.\d% on the ten grades"):
        reward(prompts=["Why?"] * 2, completions=["So.", "Or so."], log_metric=logged.__setitem__)
    assert (
        logged.keys() == {"judge/mass", "judge/spread"} and logged["judge/mass"] < 0.5 and logged["judge/spread"] > 0
    )
    blind = LikertReward(tiny_llama(tokenizer, **WIDE), tokenizer=tokenizer)
    blind.model.lm_head.weight.data.zero_()
    blind._warned.add("mass")
    with pytest.warns(UserWarning, match=r"s deviates by \S+ among completions of one prompt"):
        blind(prompts=["Why?"] * 2, completions=["So.", "Or so."])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(prompts=["Why?"] * 2, completions=["So.", "Or so."])
        blind(prompts=["Why?"] * 2, completions=["So.", "Or so."])


def test_a_judge_who_only_grades_is_not_warned_of():
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, **WIDE)
    digits = torch.tensor(tokenizer("123456789")["input_ids"])
    model.lm_head.register_forward_hook(lambda module, args, out: out.index_add(-1, digits, out.new_full((*out.shape[:-1], 9), 20.0)))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LikertReward(model, tokenizer=tokenizer, template=SHORT)(prompts=["Why?"] * 2, completions=["So.", "Or so."])


def test_nan():
    """Of one completion it is the trainer's affair; of all it is the judge's."""
    tokenizer = byte_tokenizer()
    reward = reward_of(tokenizer, template=SHORT)
    odd = tokenizer("#")["input_ids"][0]
    reward.model.model.embed_tokens.weight.data[odd] = torch.nan
    first, second = reward(prompts=["Why?"] * 2, completions=["So.", "#"])
    assert first == first and second != second
    with pytest.raises(ValueError, match="the judge gives NaN for all of 1 completions"):
        reward(prompts=["Why?"], completions=["#"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"template": "{prompt}"}, r"it lacks \{completion\}"),
        ({"template": SHORT + "{rubric}"}, r"its placeholder \{rubric\} is filled by nothing"),
        ({"template": SHORT, "rubric": "Short?"}, r"it lacks \{rubric\}"),
        ({"template": SHORT, "reference": True}, r"it lacks \{reference\}"),
        ({"template": SHORT + "{}"}, r"its placeholder \{\} is filled by nothing"),
        ({"template": SHORT + "{answer}"}, r"its placeholder \{answer\} is filled by nothing"),
        ({"template": ""}, "expected a text that says something"),
        ({"rubric": " "}, "expected a text that says something"),
        ({"rubric": 3}, "rubric=3"),
        ({"reference": "reference"}, "reference='reference'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"device": "cpu"}, "a model that is given is used where it is"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        reward_of(**options)


def test_other_braces_and_blanks_behind_are_fine(monkeypatch):
    reward = reward_of(template='{"a": {prompt}, "b": {completion}}: \n')
    asked = asked_by(reward, monkeypatch)
    reward(prompts=["1"], completions=["{prompt}"])
    assert asked == ['{"a": 1, "b": {prompt}}:']


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"completions": [None]}, "the completion of row 0 is None"),
        ({"completions": [float("nan")]}, "the completion of row 0 is nan"),
        ({"prompts": [user("Why?")]}, "and its prompt is messages"),
        ({"prompts": ["Why?", "Who?"]}, r"\(prompts=…\): expected one for each of 1 completions, got 2"),
        ({"reference": None}, "expected a column `reference`"),
        ({"reference": [None]}, "got None in row 0"),
        ({"reference": [float("nan")]}, "got nan in row 0"),
        ({"reference": ["a", "b"]}, r"\(reference=…\)"),
    ],
)
def test_bad_rows(columns, said):
    with pytest.raises(ValueError, match=said):
        reward_of(reference=True)(**{"prompts": ["Why?"], "completions": ["So."], "reference": ["So."]} | columns)


def test_columns_are_asked_for_before_anything_is_sampled():
    check_columns(reward_of(), {"prompts": ["Why?"]}, [0])
    reward = reward_of(reference=True)
    check_columns(reward, {"reference": ["So.", None]}, [0])
    with pytest.raises(ValueError, match="got None in row 1"):
        check_columns(reward, {"reference": ["So.", None]}, [0, 1])
    with pytest.raises(ValueError, match="expected a column `reference`"):
        check_columns(reward, {"prompts": ["Why?"]}, [0])


def test_a_tokenizer_without_digits_is_refused():
    tokenizer = byte_tokenizer(words=20)
    with pytest.raises(ValueError, match="options that the tokenizer tells apart"):
        check_columns(LikertReward(tiny_llama(tokenizer, **WIDE), tokenizer=tokenizer), {}, [0])


# Which judges


def test_a_path_is_loaded_once_pickles_and_is_in_a_runs_record(tmp_path):
    tokenizer = byte_tokenizer()
    tiny_llama(tokenizer, **WIDE).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    reward = LikertReward(str(tmp_path / "judge"), template=SHORT)
    reward._warned.update(["mass", "spread"])
    given = {"prompts": ["Why?"], "completions": ["So."]}
    assert reward(**given) == reward_of(template=SHORT)(**given) == pickle.loads(pickle.dumps(reward))(**given)
    assert reward._judge().model is LikertReward(tmp_path / "judge")._judge().model
    records = [
        json.dumps(reward_settings(reward_functions(each, max_completion_length=None, call="test")))
        for each in (reward, LikertReward(str(tmp_path / "judge"), template=SHORT, batch_size=3, device="cpu"), reward_of(template=SHORT), reward_of(rubric="Short?"))
    ]  # fmt: skip
    assert records[0] == records[1] and len(set(records)) == 3


def test_adapters_and_roles_of_a_shared_base(tmp_path):
    base = SharedBase.from_pretrained(base_path(tmp_path))
    role = base.policy(lora(), name="judge")
    role.save_pretrained(tmp_path / "adapter")
    given = {"prompts": ["Why?"], "completions": ["So."]}
    of_role, of_base, of_path = (
        LikertReward(model, tokenizer=base.tokenizer, template=SHORT)
        for model in (role, base.model, tmp_path / "adapter")
    )
    with pytest.warns(UserWarning, match="on the ten grades"):
        assert (
            of_role(**given) == pytest.approx(of_path(**given), abs=1e-5) != pytest.approx(of_base(**given), abs=1e-2)
        )


@pytest.mark.parametrize("model", [3, "no/such/folder"])
def test_what_is_no_judge_is_refused(model, tmp_path):
    model = str(tmp_path / model) if isinstance(model, str) else model
    with pytest.raises(ValueError, match=r"LikertReward\(model="):
        check_columns(LikertReward(model), {}, [0])


# In trainers


TRAINERS = {
    "PPO": (PPOConfig, PPOTrainer, {"max_steps": 1}),
    "RAFT": (RAFTConfig, RAFTTrainer, {"drop_truncated": False, "num_stages": 1, "improve_steps": 1, "num_generations": 2}),
    "GRPO": (GRPOConfig, GRPOTrainer, {"max_steps": 1, "num_generations": 2}),
    "RLOO": (RLOOConfig, RLOOTrainer, {"max_steps": 1, "num_generations": 2}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "chat"), [("PPO", False), ("RAFT", True), ("GRPO", False), ("GRPO", True), ("RLOO", False)]
)
def test_every_trainer_takes_it(tmp_path, name, chat):
    config, trainer, options = TRAINERS[name]
    args = config(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=2, max_completion_length=4, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", logging_steps=1, gradient_checkpointing=False, **options,
    )  # fmt: skip
    questions = ["why? ", "say it ", "a ", "and "]
    data = Dataset.from_dict({"prompt": [user(each) if chat else each for each in questions], "reference": questions})
    tiny_llama(byte_tokenizer(), **WIDE).save_pretrained(tmp_path / "policy")
    made = trainer(
        model=str(tmp_path / "policy"),
        reward_funcs=[reward_of(reference=True), reward_of(rubric="Short?", name="short")],
        args=args,
        train_dataset=data,
        processing_class=byte_tokenizer(),
    )
    made.train()
    logged = {metric for entry in made.state.log_history for metric in entry}
    assert {"likert/mass", "short/mass"} <= logged
    assert name != "GRPO" or {"rewards/likert/mean", "rewards/short/mean"} <= logged


def test_the_default_questions():
    assert module.LikertReward(tiny_llama(byte_tokenizer()), tokenizer=byte_tokenizer())._template.endswith("1 to 10:")
    whole = likert_template(rubric=True, reference=True)
    assert [name for name in ("{rubric}", "{prompt}", "{reference}", "{completion}") if name in whole] == sorted(
        ["{rubric}", "{prompt}", "{reference}", "{completion}"], key=whole.index
    )


# What it costs


def test_the_plan_counts_the_judge_of_two_rewards_once():
    judge, tokenizer = tiny_llama(byte_tokenizer(), seed=1), byte_tokenizer()
    one, other = (
        LikertReward(judge, tokenizer=tokenizer, rubric=said, name=said, batch_size=5) for said in ("x", "y")
    )
    args = SFTConfig("unused", use_cpu=True, bf16=False)
    plans = [
        run_plan("grpo", tiny_llama(tokenizer), args, prompt_length=4, completion_length=4, rewards=rewards).settings
        for rewards in ([], [one], [one, other])
    ]
    assert [(plan.reward_models, plan.reward_batch) for plan in plans] == [(0, 1), (1, 5), (1, 5)]
    assert [plan.shared for plan in plans] == [True, False, False]


def test_a_judge_is_no_value_model():
    reward, args = reward_of(), PPOConfig(output_dir="unused", use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="also one of reward_funcs"):
        check_value_model(reward.model, [reward], args)
