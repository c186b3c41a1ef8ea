"""The loop itself: what is sampled, kept and learned, and the known bugs of public RAFT versions, one test each."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from self_training_case import PROMPTS, even_letters, logged, trainer
from tiny import byte_tokenizer, tiny_llama
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from trl_ext import ReSTTrainer
from trl_ext.self_training import stage_loop
from trl_ext.sequences.training_rows import IGNORED, training_row


def grow(one, stage: int) -> list[dict]:
    return pq.read_table(one.grower.files(stage).finished).to_pylist()


def batches_of(one) -> list[dict]:
    """Every batch that a run trains on."""
    seen, inner = [], one.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        if model.training:
            seen.append({name: tensor.clone() for name, tensor in inputs.items() if torch.is_tensor(tensor)})
        return inner(model, inputs, *args, **kwargs)

    one.compute_loss = compute_loss
    return seen


# The bugs


def test_the_loss_runs_over_completions_only(tmp_path):
    """Known bug: loss on prompt or pad tokens."""
    one = trainer(tmp_path, num_stages=1)
    batches = batches_of(one)
    one.train()
    lengths = {tuple(row["prompt_ids"] + row["completion_ids"]): len(row["prompt_ids"]) for row in grow(one, 0)}
    for batch in batches:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            real = mask.sum()
            prompt = lengths[tuple(ids[:real].tolist())]
            assert (labels[:prompt] == IGNORED).all() and (labels[real:] == IGNORED).all()
            assert (labels[prompt:real] == ids[prompt:real]).all()


def test_an_ended_completion_is_learned_with_its_end(tmp_path):
    """Known bug: no EOS appended, so that the policy unlearns to stop."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] += 0.6  # so that some completions end
    one = trainer(tmp_path, num_stages=1, model=model, drop_truncated=True, max_completion_length=40)
    batches = batches_of(one)
    one.train()
    rows = grow(one, 0)
    ended = [row for row in rows if row["ended"]]
    assert 0 < len(ended) < len(rows)
    assert all(row["completion_ids"][-1] == tokenizer.eos_token_id for row in ended)
    for batch in batches:
        last = [labels[labels != IGNORED][-1].item() for labels in batch["labels"]]
        assert set(last) == {tokenizer.eos_token_id}


def test_pad_may_be_eos(tmp_path):
    """Known bug: with pad = EOS, masking pads takes the end token out of the loss too."""
    tokenizer = byte_tokenizer(pad_is_eos=True)
    model = tiny_llama(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] += 0.6
    one = trainer(
        tmp_path, num_stages=1, model=model, processing_class=tokenizer, drop_truncated=True, max_completion_length=40
    )
    batches = batches_of(one)
    one.train()
    for batch in batches:
        assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()


def test_truncated_samples_are_not_kept(tmp_path):
    """Known bug: truncated samples kept, which teaches never to stop."""
    one = trainer(tmp_path, num_stages=1, drop_truncated=True, max_completion_length=2)
    with pytest.raises(ValueError, match=r"nothing of grow-000.parquet is kept.*'truncated': 32"):
        one.train()
    assert [row["ended"] for row in grow(one, 0)] == [False] * 32  # what was grown stays


def test_a_prompt_that_the_completion_repeats_stays_in_it(tmp_path):
    """Known bug: prompt removed with str.replace, also where the completion quotes it."""

    class Echo:
        name = "echo"

        def settings(self):
            return {}

        def generate(self, parts, sampling, policy):
            for part in parts:
                yield (
                    part,
                    [
                        {
                            "row": row,
                            "sample": 0,
                            "prompt": prompt,
                            "completion": f" {prompt} {prompt}",
                            "prompt_ids": None,
                            "completion_ids": None,
                            "ended": True,
                            "generator": "echo",
                            "seed": -1,
                        }
                        for row, prompt in zip(part.rows, part.prompts, strict=True)
                    ],
                )

    one = trainer(tmp_path, num_stages=1, generator=Echo(), num_generations=1)
    seen, batches = [], batches_of(one)
    one.grower.scorer.rewards[0] = named(
        lambda completions, **columns: seen.extend(completions) or [1.0] * len(completions)
    )
    one.train()
    tokenizer = one.processing_class
    assert set(seen) == {f" {prompt} {prompt}" for prompt in PROMPTS}
    learned = {tokenizer.decode(row[row != IGNORED]) for batch in batches for row in batch["labels"]}
    assert learned == {f" {prompt} {prompt}<eos>" for prompt in PROMPTS}


def named(function):
    function.__name__ = "reward"
    return function


def test_the_learning_rate_begins_anew_in_each_stage(tmp_path):
    """Known bug: scheduler built once for all stages, or once per stage and never stepped."""
    one = trainer(tmp_path, num_stages=3, improve_steps=4)
    one.train()
    assert logged(one, "learning_rate") == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3] * 3)


def test_the_best_answer_is_the_assistants(tmp_path):
    """Known bug: best answer stored with role "user", which completion-only loss then masks."""
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    one = trainer(
        tmp_path,
        num_stages=1,
        prompts=prompts,
        reward_funcs=named(
            lambda completions, **columns: [float(len(completion[0]["content"])) for completion in completions]
        ),
    )
    batches = batches_of(one)
    one.train()
    rows = grow(one, 0)
    assert {message["role"] for row in rows for message in row["completion"]} == {"assistant"}
    assert rows[0]["prompt"] == prompts[0]
    tokenizer = one.processing_class
    rendered = tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(rows[0]["prompt_ids"]) == rendered
    assert all((batch["labels"] != IGNORED).any(1).all() for batch in batches)


def test_what_is_trained_on_is_what_was_kept(tmp_path):
    """Known bug: wrong dataset variable saved and trained on (all samples, or the stage before)."""
    one = trainer(tmp_path, num_stages=3)
    batches = batches_of(one)
    one.train()
    steps = one.schedule.steps_per_improve
    for stage in range(3):
        kept = {tuple(row["prompt_ids"] + row["completion_ids"]) for row in grow(one, stage) if row["kept"]}
        trained = {
            tuple(ids[mask.bool()].tolist())
            for batch in batches[stage * steps : (stage + 1) * steps]
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        }
        assert trained == kept
        assert len(kept) == len(PROMPTS)


# The loop


def test_one_sample_per_prompt_is_fine_tuning_on_own_samples(tmp_path):
    """K = 1: nothing is selected, so scores change nothing."""
    weights = []
    for name, reward in (("a", even_letters), ("b", named(lambda completions, **columns: [-1.0] * len(completions)))):
        one = trainer(tmp_path / name, num_generations=1, reward_funcs=reward)
        one.train()
        weights.append(one.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_one_sample_per_prompt_takes_the_steps_of_sft(tmp_path):
    """K = 1 is TRL's SFTTrainer on one's own samples, bit for bit."""
    one = trainer(tmp_path / "raft", num_generations=1, num_stages=1)
    one.train()
    samples = grow(one, 0)
    rows = [samples[place] for place in one.schedule.row_order(0, len(samples))]
    sequences = [(row["prompt_ids"], row["completion_ids"]) for row in rows]
    prepared = [{"input_ids": p + c, "labels": [IGNORED] * len(p) + c} for p, c in sequences]
    names = ("per_device_train_batch_size", "learning_rate", "bf16", "use_cpu", "report_to", "disable_tqdm")
    settings = {name: getattr(one.args, name) for name in names}
    settings |= {"num_train_epochs": 1, "lr_scheduler_type": "linear", "train_sampling_strategy": "sequential"}
    settings |= {"gradient_checkpointing": False, "save_strategy": "no", "max_length": None}
    sft = SFTTrainer(
        tiny_llama(byte_tokenizer()),
        SFTConfig(str(tmp_path / "sft"), **settings),
        train_dataset=Dataset.from_list(prepared),
        processing_class=byte_tokenizer(),
    )
    sft.train()
    weights = sft.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in one.model.state_dict().items())


def test_the_kept_is_the_best_of_each_prompt(tmp_path):
    one = trainer(tmp_path, num_stages=1)
    one.train()
    rows = grow(one, 0)
    assert [row["score"] for row in rows] == even_letters([row["completion"] for row in rows])
    for prompt in range(len(PROMPTS)):
        own = [row for row in rows if row["row"] == prompt]
        best = max(own, key=lambda row: row["score"])
        assert [row["kept"] for row in own] == [int(row is best) for row in own]


def test_a_later_stage_samples_the_policy_of_its_time(tmp_path):
    """With a learning rate of 0 a stage over the same prompts differs from another by its seeds only."""
    still, moving = (trainer(tmp_path / str(rate), learning_rate=rate) for rate in (0.0, 5e-2))
    still.train()
    moving.train()
    assert grow(still, 0) == [row | {"kept": row["kept"]} for row in grow(moving, 0)]
    assert grow(still, 1) != grow(moving, 1)
    assert [row["completion_ids"] for row in grow(still, 0)] != [row["completion_ids"] for row in grow(still, 1)]


def test_global_step_only_grows_and_counts_all_stages(tmp_path):
    steps = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    one = trainer(tmp_path, num_stages=3, improve_steps=5, callbacks=[Watch()])
    one.train()
    assert steps == list(range(1, 16)) and one.state.max_steps == 15


def test_fewer_kept_rows_are_repeated_and_the_passes_noted(tmp_path):
    one = trainer(
        tmp_path, ReSTTrainer, num_stages=1, thresholds=[0.6], score_map="none", improve_steps=6, mix_dataset=False
    )
    batches = batches_of(one)
    one.train()
    (entry,) = one.table.improves
    assert sum(len(batch["input_ids"]) for batch in batches) == 24
    assert entry.passes == 24 / entry.kept > 1


@pytest.mark.parametrize("fresh", [True, False])
def test_the_optimizer_is_fresh_in_each_stage_or_kept(tmp_path, fresh):
    counts = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer, **kwargs):
            counts.append(int(next(iter(optimizer.state.values()))["step"]))

    trainer(tmp_path, improve_steps=3, fresh_optimizer=fresh, callbacks=[Watch()]).train()
    assert counts == ([1, 2, 3, 1, 2, 3] if fresh else [1, 2, 3, 4, 5, 6])


def test_rest_em_begins_every_improve_from_the_base(tmp_path):
    """At the first step of each stage the policy that learns is the one the run began with; the last one sampled."""
    firsts, sampled = [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            if state.global_step % 4 == 0:
                firsts.append({name: p.detach().clone() for name, p in model.named_parameters()})

    one = trainer(
        tmp_path,
        ReSTTrainer,
        restart_from_base=True,
        thresholds=[0.2],
        score_map="none",
        num_stages=3,
        improve_steps=4,
        callbacks=[Watch()],
    )
    inner = one.grower.generator.generate

    def generate(parts, sampling, policy):
        sampled.append({name: p.detach().clone() for name, p in policy.model.named_parameters()})
        return inner(parts, sampling, policy)

    one.grower.generator.generate = generate
    one.train()
    assert len(firsts) == len(sampled) == 3
    for name, base in firsts[0].items():
        assert all(torch.equal(base, other[name]) for other in firsts[1:])
    assert any(not torch.equal(p, sampled[1][name]) for name, p in firsts[0].items())


def test_kl_in_the_ranking_key_is_measured_from_the_runs_beginning(tmp_path):
    one = trainer(tmp_path, beta=0.1, learning_rate=5e-2)
    one.train()
    first, second = grow(one, 0), grow(one, 1)
    assert all(row["kl"] == pytest.approx(0, abs=1e-4) for row in first)
    assert max(abs(row["kl"]) for row in second) > 0.1
    for row in second:
        difference = sum(row["log_probs"]) - sum(row["initial_log_probs"])
        assert row["kl"] == pytest.approx(difference, abs=1e-3)
        assert row["key"] == pytest.approx(row["score"] - 0.1 * row["kl"])
        assert len(row["log_probs"]) == len(row["completion_ids"])


def test_log_probabilities_are_those_of_the_model_that_sampled(tmp_path):
    one = trainer(tmp_path, num_stages=1, beta=0.1, learning_rate=0.0)
    one.train()
    row = grow(one, 0)[5]
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    with torch.no_grad():
        log_probs = one.model.eval()(ids).logits.log_softmax(-1)[0]
    start = len(row["prompt_ids"])
    by_hand = [log_probs[t - 1, ids[0, t]].item() for t in range(start, ids.size(1))]
    assert row["log_probs"] == pytest.approx(by_hand, abs=1e-4)


def test_log_probabilities_are_left_out_where_nothing_needs_them(tmp_path):
    one = trainer(tmp_path, num_stages=1)
    one.train()
    assert not {"log_probs", "kl"} & set(grow(one, 0)[0])


def test_cost_is_counted_in_token_passes(tmp_path):
    """Forward × 1 + backward × 2: each prompt once, each sampled token, then three passes of what is trained on."""
    one = trainer(tmp_path, num_stages=1)
    batches = batches_of(one)
    one.train()
    rows = grow(one, 0)
    prompts = sum(len(row["prompt_ids"]) for row in rows if row["sample"] == 0)
    sampled = sum(len(row["completion_ids"]) for row in rows)
    trained = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert one.table.cost == prompts + sampled + 3 * trained == logged(one, "cost")[-1]


def test_kl_costs_two_more_passes(tmp_path):
    costs = []
    for beta in (0.0, 1e-9):
        one = trainer(tmp_path / str(beta), num_stages=1, beta=beta)
        one.train()
        costs.append(one.table.cost)
    rows = grow(one, 0)
    assert costs[1] - costs[0] == 2 * sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)


def test_raft_plus_plus_begins_at_ratio_one_and_clips(tmp_path):
    one = trainer(tmp_path, num_stages=1, importance_clip=0.2, improve_steps=12, learning_rate=3e-2)
    one.train()
    ratios = logged(one, "ratio")
    assert ratios[0] == pytest.approx(1.0, abs=1e-4)
    assert ratios[-1] > 1.05 and logged(one, "clip_ratio")[0] == 0 < logged(one, "clip_ratio")[-1]
    assert logged(one, "loss")[0] == pytest.approx(-1.0, abs=1e-3)


def no_ties(completions, **columns):
    return [sum(map(ord, text)) / 1e3 for text in completions]


def test_raft_plus_plus_first_gradient_is_that_of_plain_fine_tuning(tmp_path):
    norms = []
    for clip in (None, 0.2):
        settings = {"importance_clip": clip, "improve_steps": 1, "drop_alike": False, "reward_funcs": no_ties}
        one = trainer(tmp_path / str(clip), num_stages=1, **settings)
        one.train()
        norms.append(logged(one, "grad_norm")[0])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_lora_trains_the_adapter_only(tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = tiny_llama(byte_tokenizer())
    before = {name: p.clone() for name, p in model.named_parameters()}
    one = trainer(tmp_path, model=model, peft_config=config, beta=0.1)
    one.train()
    base = one.model.get_base_model().state_dict()
    assert all(
        torch.equal(before[name], base[name.replace(".weight", ".base_layer.weight")])
        for name in before
        if name.replace(".weight", ".base_layer.weight") in base
    )
    assert max(abs(row["kl"]) for row in grow(one, 0)) < 1e-4 < max(abs(row["kl"]) for row in grow(one, 1))


# ReST


def test_thresholds_rise_within_a_stage_and_the_rate_falls(tmp_path):
    one = trainer(tmp_path, ReSTTrainer, thresholds=[0.2, 0.5, 0.8], score_map="grow", num_stages=2, improve_steps=2)
    one.train()
    kept = [entry.kept for entry in one.table.improves]
    assert kept[0] > kept[1] > kept[2] > 0 and [entry.stage for entry in one.table.improves] == [0, 0, 0, 1, 1, 1]
    rates = [1e-2, 5e-3]
    expected = [rate * factor for factor in (1, 0.5, 0.25) for rate in rates] * 2
    assert logged(one, "learning_rate") == pytest.approx(expected)
    counts = [row["kept"] for row in grow(one, 0)]
    assert [sum(count > i for count in counts) for i in range(3)] == kept[:3]


def test_the_data_sets_own_answers_are_scored_and_mixed_in(tmp_path):
    answers = ["bbb", "ccc", None, "bdf", "aaa", "bbb", "ccc", "hhh"]  # even codes: b d f h
    one = trainer(
        tmp_path, ReSTTrainer, columns={"completion": answers}, thresholds=[0.9], score_map="none", num_stages=1
    )
    one.train()
    own = [row for row in grow(one, 0) if row["generator"] == "dataset"]
    assert [row["completion"] for row in own] == [answer for answer in answers if answer]
    assert [row["score"] for row in own] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert [row["kept"] for row in own] == [1, 0, 1, 0, 1, 0, 1]  # by the same threshold
    tokenizer = one.processing_class
    assert all(row["completion_ids"] == tokenizer(row["completion"] + "<eos>")["input_ids"] for row in own)


def test_rest_em_leaves_the_data_sets_answers_out(tmp_path):
    one = trainer(
        tmp_path,
        ReSTTrainer,
        columns={"completion": ["bbb"] * 8},
        restart_from_base=True,
        thresholds=[0.4],
        score_map="none",
        num_generations=4,
        num_stages=1,
    )
    one.train()
    assert {row["generator"] for row in grow(one, 0)} == {"transformers"}


@pytest.mark.parametrize("score_map", ["grow", "running", "fixed"])
def test_scores_are_mapped_by_the_stated_map(tmp_path, score_map):
    one = trainer(
        tmp_path,
        ReSTTrainer,
        thresholds=[0.3],
        score_map=score_map,
        num_stages=2,
        learning_rate=0.3,
        **({"score_range": [-1.0, 2.0]} if score_map == "fixed" else {}),
    )
    one.train()
    scores = [[row["score"] for row in grow(one, stage)] for stage in range(2)]
    for stage in range(2):
        seen = scores[stage] if score_map == "grow" else [score for part in scores[: stage + 1] for score in part]
        low, high = (-1.0, 2.0) if score_map == "fixed" else (min(seen), max(seen))
        assert [row["key"] for row in grow(one, stage)] == pytest.approx(
            [(s - low) / (high - low) for s in scores[stage]]
        )


def test_an_improve_without_rows_is_passed_over(tmp_path):
    """Nothing lies above the second threshold: its Improve changes no weight, and the run goes on."""
    weights = []
    for thresholds in ([0.2], [0.2, 1.0]):
        one = trainer(
            tmp_path / str(len(thresholds)),
            ReSTTrainer,
            thresholds=thresholds,
            score_map="grow",
            num_stages=1,
            improve_steps=3,
        )
        one.train()
        weights.append(one.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert one.state.global_step == 6 and one.table.improves[1].kept == 0


def test_thresholds_above_every_score_say_the_highest(tmp_path):
    one = trainer(tmp_path, ReSTTrainer, thresholds=[0.99], score_map="none", num_stages=1)
    with pytest.raises(
        ValueError, match=r"The highest score seen is 0\.\d+; left out.*FileGenerator\(.*grow-000.parquet"
    ):
        one.train()
    assert len(grow(one, 0)) == 32


# Held-out scores


def held_out(**columns) -> Dataset:
    return Dataset.from_dict({"prompt": ["where?", "when?", "how?"]} | columns)


def test_held_out_prompts_are_sampled_and_scored(tmp_path):
    one = trainer(tmp_path, eval_dataset=held_out(), eval_strategy="epoch")
    one.train()
    scores = logged(one, "eval_score")
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)
    assert not logged(one, "eval_loss")  # there are no reference answers
    assert one.evaluate()["eval_score"] == one.evaluate()["eval_score"]  # the same seeds each time


def test_reference_answers_are_measured_by_their_perplexity(tmp_path):
    answers = [" here", " now", " so"]
    one = trainer(tmp_path, eval_dataset=held_out(completion=answers), learning_rate=0.0)
    metrics = one.evaluate()
    tokenizer, losses = one.processing_class, []
    for prompt, answer in zip(held_out()["prompt"], answers, strict=True):
        prefix, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + answer + "<eos>")["input_ids"]
        log_probs = one.model(torch.tensor([ids])).logits.log_softmax(-1)[0]
        losses += [-log_probs[t - 1, ids[t]].item() for t in range(len(prefix), len(ids))]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))


def test_another_held_out_set_may_be_evaluated(tmp_path):
    one = trainer(tmp_path, eval_dataset=held_out())
    other = Dataset.from_dict({"prompt": ["else?"], "completion": ["no"]})
    assert "eval_loss" in one.evaluate(other) and "eval_loss" not in one.evaluate()


class Falling:
    """A reward whose held-out score is highest after the first evaluation."""

    __name__ = "falling"

    def __init__(self):
        self.evaluations = 0

    def __call__(self, prompts, completions, **columns):
        if prompts[0] == "where?":
            self.evaluations += 1
            return [10.0 - self.evaluations] * len(prompts)
        return even_letters(completions)


def test_an_improve_ends_when_the_held_out_score_stops_rising(tmp_path):
    reward = Falling()
    one = trainer(
        tmp_path,
        reward_funcs=reward,
        eval_dataset=held_out(),
        eval_strategy="steps",
        eval_steps=2,
        improve_steps=10,
        improve_patience=2,
        keep_best=True,
    )
    one.train()
    # evaluations at 2 (best), 4 and 6: two without a rise, so Improve 0 ends at 6 and the next begins at 10
    entries = [(entry.start_step, entry.best_step, entry.stopped_at) for entry in one.table.improves]
    assert entries == [(0, 2, 6), (10, 12, 16)]
    # of the evaluations inside an Improve only: the second one's first score, lower than any before, is its best
    assert one.state.global_step == 20 and one.state.max_steps == 20


def test_a_run_goes_on_from_the_best_weights_of_an_improve(tmp_path):
    at_step, begun = {}, []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            at_step[state.global_step] = model.lm_head.weight.detach().clone()

        def on_step_begin(self, args, state, control, model, **kwargs):
            begun.append((state.global_step, model.lm_head.weight.detach().clone()))

    one = trainer(
        tmp_path,
        reward_funcs=Falling(),
        eval_dataset=held_out(),
        eval_strategy="steps",
        eval_steps=2,
        improve_steps=6,
        keep_best=True,
        callbacks=[Watch()],
    )
    one.train()
    second = dict(begun)[6]
    assert torch.equal(second, at_step[2]) and not torch.equal(second, at_step[6])


def test_a_run_ends_when_its_mean_scores_are_level(tmp_path):
    one = trainer(tmp_path, num_stages=8, level_stages=2, learning_rate=0.0, seed=1)
    one.train()
    stages = len(one.table.improves)
    means = [sum(row["score"] for row in grow(one, stage)) / 32 for stage in range(stages)]
    assert 3 <= stages < 8
    assert max(means[-2:]) <= max(means[:-2])
    assert stages == 3 or max(means[-3:-1]) > max(means[:-3])  # and not before


def test_a_fall_of_diversity_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_loop, "diversity_warning", lambda before, now: "less varied")
    with pytest.warns(UserWarning, match="RAFTTrainer, stage 2: less varied"):
        trainer(tmp_path).train()


def test_what_is_logged_of_a_grow(tmp_path):
    one = trainer(tmp_path, num_stages=1)
    one.train()
    rows = grow(one, 0)
    kept = [row for row in rows if row["kept"]]
    (entry,) = [entry for entry in one.state.log_history if "grow/score" in entry]
    assert entry["grow/score"] == pytest.approx(sum(row["score"] for row in rows) / 32)
    assert entry["grow/score_kept"] == pytest.approx(sum(row["score"] for row in kept) / 8)
    assert (
        entry["grow/kept_share"] == 0.25
        and entry["grow/kept"] == 8
        and entry["grow/truncated"] == sum(not row["ended"] for row in rows)
    )
    assert entry["grow/length"] == pytest.approx(sum(len(row["completion_ids"]) for row in rows) / 32)
    learned = [training_row(row["prompt_ids"], row["completion_ids"]) for row in kept]
    assert list(one.grower.kept_rows(0, 0)) == learned
    assert not one.grower.files(0).parts.exists()  # once it is open, nobody needs its name


def test_every_logged_name_is_in_the_glossary(tmp_path):
    """`trl_ext/README.md` names each, in backticks."""
    one = trainer(
        tmp_path, importance_clip=0.2, eval_dataset=held_out(completion=["a", "b", "c"]), eval_strategy="epoch"
    )
    one.train()
    plain = trainer(tmp_path / "plain")
    plain.train()
    names = {name for run in (one, plain) for entry in run.state.log_history for name in entry}
    speed = ("runtime", "samples_per_second", "steps_per_second", "preparation_time", "flos", "step")
    names = {name for name in names if not name.endswith(speed)} - {"train_loss"}
    glossary = (Path(__file__).parents[1] / "trl_ext" / "README.md").read_text()
    assert {n for n in names if f"`{n}`" not in glossary and f"`{n.removeprefix('eval_')}`" not in glossary} == set()
