"""A policy is looked at in one way, whichever way it is given; two looks are compared prompt by prompt."""

import inspect
import json
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from encoders import saved_bert, tiny_bert
from peft import PeftModel
from shared_case import base_path, lora
from test_exact_kl import by_definition, softmax_model
from tiny import byte_tokenizer, reversed_tokenizer, tiny_llama, tiny_reward_model
from transformers import AutoModelForCausalLM

from trl_ext import Evaluation, LearnedReward, LengthIncentive, R3Reward, RelevanceReward, SharedBase, evaluate, score
from trl_ext.generation import FileGenerator, TransformersGenerator
from trl_ext.sequences.training_rows import collate, training_row

PROMPTS = Dataset.from_dict({"prompt": ["why? ", "say it ", "a ", "and then "]})
SIZES = {"max_completion_length": 6, "batch_size": 3}


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


@pytest.fixture
def tuned(tmp_path):
    """A shared base, and the path of an adapter on it."""
    base = SharedBase.from_pretrained(base_path(tmp_path))
    torch.manual_seed(1)
    base.policy(lora()).save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


@pytest.fixture
def models():
    """A policy, its tokenizer, and another start."""
    return tiny_llama(byte_tokenizer()), byte_tokenizer(), tiny_llama(byte_tokenizer(), seed=1)


def ids(evaluation: Evaluation) -> list[list[int]]:
    return list(evaluation.samples["completion_ids"])


def looked_at(sums: list[float], counts: list[float] | None = None, **settings) -> Evaluation:
    """An evaluation of one measure, by its sums over prompts."""
    values = np.stack([sums, counts or [1.0] * len(sums)], axis=1)
    return Evaluation({"length": 0.0}, Dataset.from_list([]), settings, {"length": values})


# One policy in all its forms


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([None], ["a"], "the prompt of row 0 is None"),
        (
            [[{"from": "human", "value": "why?"}]],
            [[{"role": "assistant", "content": "a"}]],
            "the prompt of row 0 is",
        ),
        (["why?"], [None], "the completion of row 0 is None"),
    ],
)
def test_scored_texts_are_texts(prompts, completions, message):
    with pytest.raises(ValueError, match=rf"score\(…\): {message}"):
        score(LengthIncentive(), prompts, completions)


def test_a_policy_gives_the_same_samples_in_every_form(tuned, tmp_path):
    base, adapter = tuned
    base.merge(adapter, tmp_path / "merged")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.name), adapter)
    forms = {
        "role": (base.policy(init_from=adapter, name="mine"), None),
        "path on a shared base": (adapter, base),
        "path on a base's path": (adapter, base.name),
        "path alone": (str(adapter), None),
        "PeftModel": (plain, None),
        "merged": (tmp_path / "merged", None),
    }
    found = {name: ids(evaluate(policy, PROMPTS, None, base=on, **SIZES)) for name, (policy, on) in forms.items()}
    assert all(samples == found["role"] for samples in found.values()), found
    assert found["role"] != ids(evaluate(base.model, PROMPTS, None, **SIZES))  # the adapter shows


def test_a_shared_base_stays_as_it_was_and_loading_draws_from_nobodys_random_numbers(tuned):
    base, adapter = tuned
    roles, names = base.roles(), [name for name, _ in base.model.named_parameters()]
    state = torch.get_rng_state()
    evaluate(adapter, PROMPTS, None, base=base, reference=adapter, **SIZES)
    assert torch.equal(torch.get_rng_state(), state)
    assert base.roles() == roles and [name for name, _ in base.model.named_parameters()] == names
    base.check_frozen()


def test_the_same_seed_gives_the_same_samples_in_any_batches(models):
    policy, tokenizer, _ = models
    options = {"max_completion_length": 6, "num_samples": 2, "tokenizer": tokenizer}
    first, second, other = (
        ids(evaluate(policy, PROMPTS, None, batch_size=size, seed=seed, **options))
        for size, seed in ((1, 0), (None, 0), (8, 1))
    )
    assert first == second != other


def test_nothing_is_left_on_the_model_or_of_the_random_numbers(models):
    policy, tokenizer, _ = models
    policy.train().model.layers[0].eval()
    policy.generation_config.eos_token_id = None
    modes, config = [one.training for one in policy.modules()], policy.generation_config.to_dict()

    def drawn() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    def noise(completions, **columns):
        return [sum(drawn()) for _ in completions]

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = drawn()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    evaluate(policy, PROMPTS, noise, tokenizer=tokenizer, reference=policy, **SIZES)
    assert drawn() == expected
    assert [one.training for one in policy.modules()] == modes and policy.generation_config.to_dict() == config
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in policy.modules())


# What is measured


def test_a_policy_is_at_0_from_itself(tuned):
    base, adapter = tuned
    found = evaluate(adapter, PROMPTS, None, base=base, reference=str(adapter), **SIZES)
    assert found.summary["kl"] == found.summary["kl_k1"] == found.errors["kl"] == 0.0


def test_kl_is_the_mean_over_samples_with_their_ends(models):
    policy, tokenizer, start = models
    with torch.no_grad():
        policy.lm_head.weight[tokenizer.eos_token_id] += policy.lm_head.weight.std(0)  # some end
    found = evaluate(policy, PROMPTS, None, tokenizer=tokenizer, reference=start, num_samples=4, **SIZES)
    rows = [training_row(row["prompt_ids"], row["completion_ids"]) for row in found.samples]
    with torch.no_grad():
        kl, k1 = by_definition(policy, start, collate(rows, pad_token_id=0))
    assert found.summary["kl"] == pytest.approx(kl.sum(1).mean().item(), rel=1e-4)
    assert found.summary["kl_k1"] == pytest.approx(k1.sum(1).mean().item(), rel=1e-4)
    assert list(found.samples["kl"]) == pytest.approx(kl.sum(1).tolist(), rel=1e-4)
    per_prompt = k1.sum(1).view(4, 4).mean(1)
    assert found.errors["kl_k1"] == pytest.approx(per_prompt.std().item() / 2, rel=0.05)  # s / √n of four prompts


def test_there_is_no_kl_without_a_reference_or_of_other_samples(models, tmp_path):
    policy, tokenizer, start = models
    assert "kl" not in evaluate(policy, PROMPTS, None, tokenizer=tokenizer, **SIZES).summary
    Dataset.from_dict({"prompt": PROMPTS["prompt"][:], "completion": ["so"] * 4}).to_json(tmp_path / "expert.jsonl")
    options = {"tokenizer": tokenizer, "reference": start, **SIZES}
    for other in ({"temperature": 0.7}, {"temperature": 0}, {"generator": FileGenerator(tmp_path / "expert.jsonl")}):
        with pytest.warns(UserWarning, match=r"no KL is measured, which needs the policy's samples at temperature 1"):
            found = evaluate(policy, PROMPTS, length, **options | other)
        assert (
            not {"kl", "kl_k1"} & {*found.summary, *found.samples.column_names} and found.settings["reference"] is None
        )
    assert found.summary["reward/length"] == 2.0 and found.summary["length"] == 3.0  # with the end


def test_length_ends_and_variety_by_hand():
    """A policy that says nothing but `b` and its end."""
    tokenizer = byte_tokenizer()
    ends, b = tokenizer.eos_token_id, tokenizer("b")["input_ids"][0]
    shares = torch.full((len(tokenizer),), 1e-30)
    shares[ends] = shares[b] = 0.5
    eight = np.int64(8)  # as a table has it
    found = evaluate(softmax_model(*shares.tolist()), PROMPTS, length, tokenizer=tokenizer, num_samples=eight, **SIZES)
    assert type(found.settings["num_samples"]) is int
    samples = ids(found)
    assert {token for row in samples for token in row} == {ends, b}
    assert found.summary["length"] == np.mean([len(row) for row in samples])
    assert found.summary["ended_share"] == np.mean([row[-1] == ends for row in samples]) > 0
    assert found.summary["reward/length"] == np.mean([row.count(b) for row in samples])
    assert list(found.samples["row"]) == [row for row in range(4) for _ in range(8)]
    words = [text for text in found.samples["completion"] if text]
    assert found.summary["distinct_1"] == len(set(words)) / len(words) and found.summary["msttr"] is None


def test_perplexity_of_references_by_hand():
    tokenizer = byte_tokenizer()
    uniform = softmax_model(*[1 / len(tokenizer)] * len(tokenizer))
    data = PROMPTS.add_column("reference", ["be", None, "", "or not"])
    found = evaluate(uniform, data, None, tokenizer=tokenizer, **SIZES)
    assert found.summary["perplexity"] == pytest.approx(len(tokenizer), rel=1e-4)
    assert found.sums["perplexity"][:, 1].tolist() == [3, 0, 0, 7]  # bytes, and the end
    assert (
        "perplexity" not in evaluate(uniform, data, None, tokenizer=tokenizer, references_column=None, **SIZES).summary
    )
    other = data.rename_column("reference", "answer")
    assert "perplexity" not in evaluate(uniform, other, None, tokenizer=tokenizer, **SIZES).summary
    options = {"tokenizer": tokenizer, "references_column": "answer", **SIZES}
    assert evaluate(uniform, other, None, **options).summary["perplexity"] == found.summary["perplexity"]


def test_messages_go_through_the_chat_template(models):
    policy, tokenizer, start = models
    rows = [{"prompt": [{"role": "user", "content": text}], "reference": "yes"} for text in ("why?", "so?")]
    found = evaluate(policy, Dataset.from_list(rows), None, tokenizer=tokenizer, reference=start, **SIZES)
    row = found.samples[0]
    assert row["prompt_ids"] == tokenizer("u:why?\na:")["input_ids"] and row["completion"][0]["role"] == "assistant"
    assert found.sums["perplexity"][:, 1].tolist() == [4, 4] and found.summary["kl"] > 0


def test_rewards_in_every_form_and_what_they_log(models, tmp_path):
    policy, tokenizer, _ = models
    for part in (tokenizer, tiny_reward_model(tokenizer)):
        part.save_pretrained(tmp_path / "judge")

    async def slow(completions, log_metric, **columns):
        log_metric("seen", len(completions))
        return [None] * len(completions)

    asked = [length, slow, tmp_path / "judge", str(tmp_path / "judge"), LearnedReward(tmp_path / "judge")]
    found = evaluate(policy, PROMPTS, asked, tokenizer=tokenizer, **SIZES)
    assert found.settings["rewards"] == ["length", "slow", "judge_2", "judge_3", "judge_4"]
    judged = [found.samples[f"reward/judge_{i}"][:] for i in (2, 3, 4)]
    assert judged[0] == judged[1] == judged[2]
    assert (
        judged[0]
        == score(
            tmp_path / "judge",
            PROMPTS["prompt"][:],
            found.samples["completion"][:],
            completion_ended=found.samples["ended"][:],
        )["judge"]
    )
    assert found.summary["reward/slow"] is None and found.summary["seen"] == 4
    assert "reward/slow" not in repr(found) and "±" in repr(found)


def test_r3_takes_the_length_limit_that_it_is_given(models, tmp_path):
    policy, tokenizer, _ = models
    columns = {"query_type": ["closed"] * 4, "reference": ["yes", "no", "it", "so"]}
    data = Dataset.from_dict({"prompt": PROMPTS["prompt"][:]} | columns)
    r3 = R3Reward(relevance=RelevanceReward(saved_bert(tmp_path)))
    found = evaluate(policy, data, r3, tokenizer=tokenizer, **SIZES)
    texts = {"prompts": data["prompt"][:], "completions": found.samples["completion"][:]}
    assert "perplexity" in found.summary  # of the column that R³ reads
    assert "perplexity" not in evaluate(policy, data, r3, tokenizer=tokenizer, references_column=None, **SIZES).summary
    same = score(r3, **texts, max_completion_length=6, **columns)["R3Reward"]
    assert list(found.samples["reward/R3Reward"]) == same
    fixed = R3Reward(max_completion_length=6, relevance=r3.relevance)
    assert score(fixed, **texts, **columns)["R3Reward"] == same
    with pytest.raises(ValueError, match=r"max_completion_length=6\) in a trainer with max_completion_length=7"):
        evaluate(policy, data, fixed, tokenizer=tokenizer, max_completion_length=7)


# Two looks


def test_an_evaluation_does_not_differ_from_itself(models):
    policy, tokenizer, start = models
    found = evaluate(policy, PROMPTS, length, tokenizer=tokenizer, reference=start, **SIZES)
    compared = found.compare(found)
    assert list(compared) == ["reward/length", "kl", "kl_k1", "length", "ended_share"]
    assert all(one == {"difference": 0.0, "error": 0.0, "detectable": 0.0} for one in compared.values())


def test_differences_and_errors_by_hand():
    """Prompts that differ by 10, 20 and 30 widen the error of each look, and not that of the difference."""
    ours, theirs = looked_at([10.0, 23.0, 35.0]), looked_at([9.0, 20.0, 30.0])
    found = ours.compare(theirs)["length"]  # differences 1, 3, 5: mean 3, s = 2, s / √3
    assert found["difference"] == pytest.approx(3.0)
    assert found["error"] == pytest.approx(2 / np.sqrt(3), rel=0.03)
    assert found["detectable"] == pytest.approx(
        (4.303 + 1.061) * found["error"], rel=1e-3
    )  # Student's t, of 3 prompts
    assert ours.errors["length"] == pytest.approx(np.std([10, 23, 35], ddof=1) / np.sqrt(3), rel=0.03)


def test_a_mean_is_over_those_that_it_applies_to():
    ours, theirs = looked_at([4.0, 0.0, 6.0, 0.0], [1, 0, 2, 0]), looked_at([1.0, 1.0, 1.0, 1.0])
    assert ours.compare(theirs)["length"]["difference"] == pytest.approx(10 / 3 - 1)
    assert np.isnan(looked_at([1.0, 0.0], [1, 0]).errors["length"])  # of one prompt nothing is known
    assert np.isnan(looked_at([0.0, 0.0], [0, 0]).errors["length"])


def test_perplexities_are_compared_as_such():
    ours, theirs = (
        Evaluation({}, Dataset.from_list([]), {}, {"perplexity": np.array(sums)})
        for sums in ([[2.0, 2.0], [4.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]])
    )
    assert ours.compare(theirs)["perplexity"]["difference"] == pytest.approx(np.exp(2) - 1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("max_completion_length", {"max_completion_length": 5}),
        ("num_samples", {"num_samples": 2}),
        ("temperature", {"temperature": 0.5}),
        ("rewards", {"rewards": None}),
        ("reference", {"reference": None}),
        ("dataset", {"dataset": PROMPTS.select([0, 1, 3, 2])}),
        ("prompts", {"dataset": PROMPTS.select([0, 1])}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"shout": True}}),
    ],
)
def test_other_prompts_or_settings_are_not_compared(models, name, change):
    policy, tokenizer, start = models
    asked = PROMPTS
    if name == "chat_template_kwargs":  # which text has no use for
        asked = PROMPTS.map(
            lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]}, remove_columns="prompt"
        )
    options = {"dataset": asked, "rewards": length, "tokenizer": tokenizer, "reference": start, **SIZES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (evaluate(policy, **given) for given in (options, options | change))
    for ours, theirs in ((first, second), (second, first)):
        with pytest.raises(
            ValueError, match=rf"Evaluation.compare: `{name}` is .* here and .* Evaluate both on the same"
        ):
            ours.compare(theirs)


def test_another_reward_or_reference_of_the_same_name_is_not_compared(models, tmp_path):
    policy, tokenizer, start = models
    options = {"dataset": PROMPTS, "rewards": None, "tokenizer": tokenizer, "reference": start, **SIZES}
    columns = {"query_type": ["open"] * 4}
    for place, seed in (("here", 0), ("moved", 0), ("there", 1)):
        for part in (tokenizer, tiny_reward_model(tokenizer, seed=seed)):
            part.save_pretrained(tmp_path / place / "rm")
        for part in (tokenizer, tiny_bert(tokenizer, seed=seed)):
            part.save_pretrained(tmp_path / place / "encoder")

    def looked(**change) -> Evaluation:
        return evaluate(policy, **options | change)

    def r3(place: str) -> Evaluation:
        reward = R3Reward(relevance=RelevanceReward(tmp_path / place / "encoder"))
        return looked(dataset=Dataset.from_dict({"prompt": PROMPTS["prompt"][:]} | columns), rewards=reward)

    first = looked(rewards=[length, tmp_path / "here" / "rm"])
    assert first.compare(looked(rewards=[length, str(tmp_path / "moved" / "rm")]))
    assert r3("here").compare(r3("moved"))
    kept = LearnedReward(tmp_path / "here" / "rm")
    assert looked(rewards=kept).compare(looked(rewards=kept))
    refused = {
        "the reward 'rm'": (first, looked(rewards=[length, tmp_path / "there" / "rm"])),
        "the reward 'R3Reward'": (r3("here"), r3("there")),
        "the reference": (looked(), looked(reference=tiny_llama(byte_tokenizer(), seed=2))),
    }
    for name, (ours, theirs) in refused.items():
        with pytest.raises(
            ValueError, match=rf"^Evaluation.compare: {name} has other settings or weights in the other"
        ):
            ours.compare(theirs)


def test_references_with_other_adapters_are_not_compared(tuned):
    base, adapter = tuned
    torch.manual_seed(2)
    options = {"base": base, **SIZES}
    first, same, other = (
        evaluate(adapter, PROMPTS, None, reference=reference, **options)
        for reference in (base.policy(lora(), name="a"), base.roles()["policy a"], base.policy(lora(), name="b"))
    )
    assert first.compare(same)
    with pytest.raises(ValueError, match=r"the reference has other settings or weights"):
        first.compare(other)


def answers(tmp_path, *counts: int) -> FileGenerator:
    """A file with so many answers to each prompt."""
    rows = [
        {"prompt": prompt, "completion": "so"}
        for prompt, n in zip(PROMPTS["prompt"], counts, strict=True)
        for _ in range(n)
    ]
    path = tmp_path / f"{counts}.jsonl"
    Dataset.from_list(rows).to_json(path)
    return FileGenerator(path)


@pytest.mark.parametrize(
    ("num_samples", "counts", "row"),
    [(1, (1, 1, 0, 0), 2), (2, (2, 2, 2, 1), 3), (2, (1, 1, 1, 1), 0)],
)
def test_means_over_other_prompts_are_not_compared(models, tmp_path, num_samples, counts, row):
    policy, tokenizer, _ = models
    options = {"tokenizer": tokenizer, "num_samples": num_samples, **SIZES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = evaluate(policy, PROMPTS, length, **options)
        part = evaluate(policy, PROMPTS, length, generator=answers(tmp_path, *counts), **options)
    for ours, theirs in ((full, part), (part, full)):
        with pytest.raises(ValueError, match=rf"the prompt of row {row} got more or fewer samples in the other"):
            ours.compare(theirs)
    assert part.compare(part)["length"]["difference"] == 0


def test_a_file_is_a_policy_of_its_own(models, tmp_path):
    policy, tokenizer, _ = models
    data = PROMPTS.add_column("reference", ["yes"] * 4)
    sampled, written = (
        evaluate(policy, data, length, tokenizer=tokenizer, generator=generator, **SIZES)
        for generator in (None, answers(tmp_path, 1, 1, 1, 1))
    )
    assert sampled.settings["generator"] == {"name": "transformers", "generator": "transformers"}
    assert {"name", "file", "digest"} <= written.settings["generator"].keys()
    assert sampled.summary["perplexity"] == written.summary["perplexity"]  # of the policy, not of who wrote the file
    assert "perplexity" in sampled.compare(sampled)
    for compared in (written.compare(sampled), sampled.compare(written)):
        assert list(compared) == ["reward/length", "length", "ended_share"]


def test_a_file_is_compared_with_a_policy_that_has_a_reference(models, tmp_path):
    policy, tokenizer, start = models
    options = {"tokenizer": tokenizer, "reference": start, **SIZES}
    sampled = evaluate(policy, PROMPTS, length, **options)
    with pytest.warns(UserWarning, match="no KL is measured"):
        written = evaluate(policy, PROMPTS, length, generator=answers(tmp_path, 1, 1, 1, 1), **options)
    for compared in (written.compare(sampled), sampled.compare(written)):
        assert list(compared) == ["reward/length", "length", "ended_share"]


def test_own_samplers_are_compared(models):
    policy, tokenizer, _ = models
    served = TransformersGenerator()
    served.name = "vllm"
    data = PROMPTS.add_column("reference", ["yes"] * 4)
    first, second = (
        evaluate(policy, data, None, tokenizer=tokenizer, generator=generator, **SIZES) for generator in (None, served)
    )
    assert first.settings["generator"] != second.settings["generator"]
    assert first.compare(second)["perplexity"]["difference"] == 0


def test_a_reference_is_the_same_by_whatever_name(models, tuned, tmp_path):
    policy, tokenizer, start = models
    for part in (tokenizer, start):
        part.save_pretrained(tmp_path / "start")
    options = {"tokenizer": tokenizer, **SIZES}
    first, second = (evaluate(policy, PROMPTS, None, reference=one, **options) for one in (start, tmp_path / "start"))
    assert first.settings["reference"] != second.settings["reference"]
    assert set(first.compare(second)) == set(second.compare(first)) >= {"kl", "kl_k1"}
    base, adapter = tuned
    role = base.policy(init_from=adapter, name="start")
    first, second = (evaluate(adapter, PROMPTS, None, base=base, reference=one, **SIZES) for one in (role, adapter))
    assert first.compare(second)["kl"]["difference"] == 0


def test_a_reference_with_another_scale_is_not_compared(tuned, tmp_path):
    base, adapter = tuned
    shutil.copytree(adapter, tmp_path / "louder")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (tmp_path / "louder" / "adapter_config.json").write_text(json.dumps(config))
    first, second = (
        evaluate(adapter, PROMPTS, None, base=base, reference=one, **SIZES) for one in (adapter, tmp_path / "louder")
    )
    with pytest.raises(ValueError, match=r"the reference has other settings or weights"):
        first.compare(second)


@pytest.mark.parametrize("other", [5, None, {"length": 1.0}])
def test_only_evaluations_are_compared(other):
    with pytest.raises(ValueError, match=r"Evaluation.compare\(.*\): expected an Evaluation, from `evaluate`"):
        looked_at([1.0, 2.0]).compare(other)


def test_another_seed_or_batch_size_is_compared(models):
    policy, tokenizer, _ = models
    first, second = (
        evaluate(policy, PROMPTS, None, tokenizer=tokenizer, max_completion_length=6, batch_size=size, seed=size)
        for size in (1, 2)
    )
    assert set(first.compare(second)) == {"length", "ended_share"}


# Bad input


def needs_answer(completions, answer):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset": PROMPTS.rename_column("prompt", "text")},
            r"evaluate\(dataset=…\) has columns \['text'\]: expected",
        ),
        ({"dataset": ["why?"]}, r"evaluate\(dataset=…\): expected a datasets.Dataset"),
        ({"dataset": PROMPTS.select([])}, r"evaluate\(dataset=…\) is empty"),
        ({"rewards": needs_answer}, r"evaluate\(dataset=…\): the reward 'needs_answer' reads the column `answer`"),
        ({"rewards": 3}, r"evaluate\(reward_funcs=…\): 3 is neither a function nor a reward model"),
        ({"max_completion_length": 250}, r"evaluate\(dataset=…\): the prompt of row 1 has 7 tokens, which with max_"),
        ({"max_completion_length": 0}, r"evaluate\(max_completion_length=0\): expected a whole number of at least 1"),
        ({"num_samples": 0}, r"evaluate\(num_samples=0\): expected a whole number of at least 1"),
        ({"batch_size": 0}, r"evaluate\(batch_size=0\): expected a whole number of at least 1"),
        ({"num_samples": True}, r"evaluate\(num_samples=True\): expected a whole number of at least 1"),
        ({"batch_size": 1.5}, r"evaluate\(batch_size=1.5\): expected a whole number of at least 1"),
        ({"temperature": -1}, r"Sampling\(temperature=-1\): expected 0 or more"),
        ({"references_column": "answers"}, r"evaluate\(references_column='answers'\): expected one of \['prompt'\]"),
        ({"tokenizer": None}, r"evaluate\(policy=…\): found no tokenizer beside the model.*pass it as `tokenizer`"),
        ({"policy": "no/such-model"}, r"evaluate\(policy=…\): 'no/such-model' cannot be loaded .*Give a folder"),
        ({"policy": 3}, r"evaluate\(policy=…\): expected a causal LM, plain or with an adapter.*got int"),
        ({"policy": tiny_reward_model(byte_tokenizer())}, r"got LlamaForSequenceClassification"),
        (
            {"base": tiny_llama(byte_tokenizer())},
            r"base=LlamaForCausalLM: expected a SharedBase or a path. Give Shared",
        ),
        ({"reference": "no/such-model"}, r"evaluate\(reference=…\): 'no/such-model' cannot be loaded"),
        (
            {"reference": tiny_llama(byte_tokenizer(), vocab_size=300)},
            r"it has 300 tokens, the policy 259. KL needs one",
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_sampled(models, change, message):
    policy, tokenizer, _ = models
    long = PROMPTS.map(lambda row: {"prompt": row["prompt"] if row["prompt"] != "and then " else "a"})
    given = {"policy": policy, "dataset": long, "rewards": length, "tokenizer": tokenizer, **SIZES} | change
    policy.forward = None  # it is not asked
    with pytest.raises(ValueError, match=message):
        evaluate(**given)


def test_a_reward_model_or_its_adapter_is_no_policy(tuned, tmp_path):
    base, _ = tuned
    reward = base.reward_model(lora())
    reward.module.save_pretrained(tmp_path / "reward-adapter")
    with pytest.raises(ValueError, match=r"is the adapter of a reward or value model. A policy needs one of a causal"):
        evaluate(tmp_path / "reward-adapter", PROMPTS, None, base=base, **SIZES)
    trunk = tiny_llama(byte_tokenizer()).model
    tied = tiny_reward_model(byte_tokenizer(), tie_word_embeddings=True)
    for name, model in {"trunk": trunk, "tied": tied, "untied": tiny_reward_model(byte_tokenizer())}.items():
        for part in (byte_tokenizer(), model):
            part.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=r"is no causal LM .*A reward model goes into `rewards`"):
            evaluate(tmp_path / name, PROMPTS, None, **SIZES)


def test_a_reference_with_other_words_is_refused(models, tmp_path):
    policy, tokenizer, start = models
    for part in (reversed_tokenizer(), start):
        part.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"has another id there. KL needs one vocabulary: give the policy's start"):
        evaluate(policy, PROMPTS, None, tokenizer=tokenizer, reference=tmp_path / "other", **SIZES)


def test_a_special_token_may_have_another_name_in_the_reference(models, tmp_path):
    policy, tokenizer, start = models
    for part in (byte_tokenizer(), start):
        part.save_pretrained(tmp_path / "start")
    file = tmp_path / "start" / "tokenizer.json"
    file.write_text(file.read_text().replace("<bos>", "<reserved>"))
    found = evaluate(policy, PROMPTS, None, tokenizer=tokenizer, reference=tmp_path / "start", **SIZES)
    assert found.summary["kl"] > 0 and found.settings["reference"] == str(tmp_path / "start")


@pytest.mark.parametrize("answer", [3, [{"role": "assistant", "content": "so"}], "x" * 300])
def test_answers_that_cannot_be_read_are_refused(models, answer):
    policy, tokenizer, _ = models
    data = Dataset.from_list([{"prompt": "why? ", "reference": answer}])
    with pytest.raises(ValueError, match=r"evaluate\(dataset=…\): the answer of row 0 .*, or name no column of"):
        evaluate(policy, data, None, tokenizer=tokenizer, **SIZES)


# Texts that one has


def test_scores_are_the_rewards_own_and_the_same_by_the_same_seed():
    def drawn(completions, **columns):
        return torch.rand(len(completions)).tolist()

    texts = {"prompts": ["a", "b"], "completions": ["x", "yyy"]}

    async def half(completions, share, **columns):
        return [None, share[1] * len(completions[1])]

    assert score([length, half], **texts, share=[0.5, 0.5]) == {"length": [1.0, 3.0], "half": [None, 1.5]}
    assert score([], **texts) == {}
    assert score(drawn, **texts) == score(drawn, **texts) != score(drawn, **texts, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completions": ["x"]}, r"score\(prompts=…\): expected a list, one for each of 1 completions, got 2"),
        (
            {"completions": iter(["x", "y"])},
            r"score\(completions=…\): expected a list, one for each prompt, got list_iterator",
        ),
        ({"completions": (text for text in "xy")}, r"score\(completions=…\): expected a list.*got generator"),
        ({"completions": {"x": 1, "y": 2}}, r"score\(completions=…\): expected a list.*got dict"),
        ({"completions": {"x", "y"}}, r"score\(completions=…\): expected a list.*got set"),
        ({"completions": None}, r"score\(completions=…\): expected a list.*got NoneType"),
        ({"completions": "xy"}, r"score\(completions=…\): expected a list.*got text"),
        (
            {"prompts": iter(["a", "b"])},
            r"score\(prompts=…\): expected a list, one for each of 2 completions, got list_iterator",
        ),
        ({"answer": 3}, r"score\(answer=…\): expected a list, one for each of 2 completions, got int"),
        ({"answer": np.array("x")}, r"score\(answer=…\): expected a list, .* got ndarray"),
        ({"rewards": None}, r"score\(rewards=None\): expected a reward, or a list of them"),
        ({"seed": -1}, r"score\(seed=-1\): expected a whole number in"),
        ({"seed": True}, r"score\(seed=True\): expected a whole number in"),
        ({"seed": 0.5}, r"score\(seed=0.5\): expected a whole number in"),
        ({"max_completion_length": 0}, r"score\(max_completion_length=0\): expected"),
        ({"max_completion_length": "5"}, r"score\(max_completion_length='5'\): expected"),
        ({"prompts": "ab"}, r"score\(prompts=…\): expected a list, one for each of 2 completions, got text"),
        ({"answer": ["x"]}, r"score\(answer=…\): expected a list, one for each of 2 completions, got 1"),
        ({}, r"score\(…\): the reward 'needs_answer' reads the column `answer`, and the columns are \[\]"),
    ],
)
def test_texts_that_cannot_be_scored(change, message):
    with pytest.raises(ValueError, match=message):
        score(**{"rewards": needs_answer, "prompts": ["a", "b"], "completions": ["x", "y"]} | change)


@pytest.mark.parametrize("kind", [tuple, np.array, lambda texts: Dataset.from_dict({"text": texts})["text"]])
def test_texts_in_lists_of_any_kind_are_scored(kind):
    given = {"prompts": kind(["a", "b"]), "completions": kind(["x", "yyy"]), "answer": torch.tensor([1, 2])}
    assert score([length], **given) == {"length": [1.0, 3.0]}


def test_every_argument_is_described():
    for function in (evaluate, score):
        described = inspect.getdoc(function).split("Args:")[1]
        assert all(name in described for name in inspect.signature(function).parameters)
