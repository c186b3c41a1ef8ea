"""Micro-batches of rows of like length: less is computed, and nothing that is learned or logged changes."""

import pytest
import torch
from ppo_case import logged, ppo_trainer
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from trl.trainer.utils import split_tensor_dict

from trl_ext.ppo.like_lengths import TOKEN_MEANS, cut, joined, rows_alike, token_shares
from trl_ext.trainer_kit.overrides import outputs_of

LENGTHS = (1, 9, 4, 30, 2, 17, 8, 3)
PROMPTS = ["x" * length for length in LENGTHS]
SHAPE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_completion_length": 12}


def short_and_long(model):
    """The model, which ends its completions sooner or later: some 3 tokens in 10 are the end."""
    model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits + 4.5 * (torch.arange(logits.size(-1)) == model.config.eos_token_id)
    )
    return model


def varied(folder, *, seed=0, **options):
    """Prompts of 1 to 30 tokens, completions of 1 to 12."""
    tokenizer = byte_tokenizer()
    policy = options.pop("model", None) or short_and_long(tiny_llama(tokenizer))
    return ppo_trainer(folder, model=policy, prompts=PROMPTS, beta=0.1, **SHAPE | options)


def rollout_in(trainer, rows=PROMPTS):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in rows])


# By hand


def test_rows_by_hand():
    """Six rows of 10, 4, 6, 1, 9 and 2 tokens: the two groups of four and two keep their rows."""
    lengths, order = torch.tensor([10, 4, 6, 1, 9, 2]), torch.tensor([3, 0, 1, 4, 2, 5])
    rows = rows_alike(0 * lengths, lengths, size=2, group=4, order=order)
    assert [batch.tolist() for batch in rows] == [[0, 4], [1, 3], [2, 5]]


@pytest.mark.parametrize(
    ("prompts", "completions", "expected"),
    [
        ([9, 1, 9, 1], [1, 9, 1, 9], [[0, 2], [1, 3]]),  # equal sums: by the completion, or the prompt
        ([5, 5, 5, 5], [7, 7, 7, 7], [[2, 0], [3, 1]]),  # nothing to gain: the order as it came
        ([10, 10, 1, 1], [1, 11, 3, 12], [[1, 0], [3, 2]]),  # 34 columns by the prompt, 35 by either other
    ],
)
def test_the_key_with_the_least_padding_is_taken(prompts, completions, expected):
    found = rows_alike(
        torch.tensor(prompts), torch.tensor(completions), size=2, group=4, order=torch.tensor([2, 0, 3, 1])
    )
    assert sorted(sorted(batch.tolist()) for batch in found) == sorted(map(sorted, expected))
    if len(set(prompts)) == 1:
        assert [batch.tolist() for batch in found] == expected


def test_cut_by_hand():
    """Of rows 0 and 2: prompts of 1 and 2 of 3 columns, completions of 1 and 2 of 4."""
    rollout = {
        "prompt_ids": torch.tensor([[0, 0, 5], [7, 8, 9], [0, 3, 4]]),
        "prompt_mask": torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]),
        "completion_ids": torch.tensor([[1, 0, 0, 0], [1, 2, 3, 4], [5, 6, 0, 0]]),
        "completion_mask": torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]),
        "values": torch.tensor([[0.1, 0.0, 0.0, 0.0], [0.2] * 4, [0.3, 0.4, 0.0, 0.0]]),
        "score": torch.tensor([1.0, 2.0, 3.0]),
        "num_items_in_batch": torch.tensor(7),
    }
    found = cut(rollout, torch.tensor([2, 0]))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "prompt_ids": [[3, 4], [0, 5]],
        "prompt_mask": [[1, 1], [0, 1]],
        "completion_ids": [[5, 6], [1, 0]],
        "completion_mask": [[1, 1], [1, 0]],
        "values": [[pytest.approx(0.3), pytest.approx(0.4)], [pytest.approx(0.1), 0.0]],
        "score": [3.0, 1.0],
        "num_items_in_batch": 7,
    }
    four = cut(rollout, torch.tensor([2, 0]), multiple_of=4)  # of prompts there are three only
    assert four["prompt_ids"].shape == (2, 3) and four["completion_ids"].shape == (2, 4)
    none = cut(rollout | {"completion_mask": torch.zeros(3, 4, dtype=torch.long)}, torch.tensor([0, 1]))
    assert none["completion_ids"].shape == (2, 2)  # one would be taken for a number per sequence
    back = joined(
        [torch.tensor([2, 0]), torch.tensor([1])], [found["values"], rollout["values"][1:2]], like=rollout["values"]
    )
    assert torch.equal(back, rollout["values"])


def test_shares_by_hand():
    """A step's mean is (30 · 1 + 10 · 5) / 40 = 2; a step without tokens keeps 0."""
    shares = token_shares(torch.tensor([30.0, 10.0, 0.0, 0.0]), group=2)
    assert (shares[:2] * torch.tensor([1.0, 5.0])).mean() == 2.0
    assert shares[2:].tolist() == [0.0, 0.0]


# A step


@pytest.mark.parametrize("critic", ["head", "value_model"])
def test_the_gradient_of_a_step_is_the_same(tmp_path, critic):
    """As in TRL's own micro-batches, neither ordered nor cut, to 1e-6 of its norm; and half as much is computed."""
    value_model = tiny_reward_model(byte_tokenizer(), seed=5) if critic == "value_model" else None
    trainer = varied(tmp_path, value_model=value_model)
    for parameter in trainer.critic.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rollout = rollout_in(trainer)
    rollout["old_per_token_logps"] += 0.1 * torch.randn_like(rollout["old_per_token_logps"])  # as after some steps
    computed, gradients = [], []
    for batches in (split_tensor_dict(rollout, 4), trainer._split(rollout, 4)):
        trainer.model.zero_grad()
        for parameter in trainer.critic.parameters():
            parameter.grad = None
        for batch in batches:
            trainer._compute_loss(trainer.model, batch).backward()
        learned = [*trainer.model.parameters(), *trainer.critic.parameters()]
        gradients.append(torch.cat([p.grad.double().flatten() for p in learned if p.grad is not None]))
        computed.append(sum(batch[f"{part}_ids"].numel() for batch in batches for part in ("prompt", "completion")))
    theirs, ours = gradients
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()
    assert computed[1] < 0.6 * computed[0]


def test_a_run_learns_and_logs_as_in_one_micro_batch(tmp_path):
    """Means over tokens, too: each micro-batch counts by its tokens."""

    def run(folder, **shape):
        trainer = varied(tmp_path / folder, max_steps=3, **shape)
        trainer.train()
        return trainer

    parts, whole = run("parts"), run("whole", per_device_train_batch_size=8, gradient_accumulation_steps=1)
    widths = {batch["completion_ids"].size(1) for batch in parts._buffered_inputs}
    assert len(widths) > 1
    for name in (*TOKEN_MEANS, "ratio", "policy_kl", "value_loss", "clip_ratio/value", "loss", "score", "kl"):
        assert logged(parts, name) == pytest.approx(logged(whole, name), rel=1e-4, abs=1e-5), name
    for mine, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 2])
def test_ratios_begin_at_exactly_1(tmp_path, dtype, steps):
    """The old log-probabilities and values, and the reference, are read among the same columns as the loss."""
    shape = {"gradient_accumulation_steps": 4 // steps, "steps_per_generation": 4}
    policy = short_and_long(tiny_llama(byte_tokenizer()).to(dtype))
    trainer = varied(tmp_path, model=policy, num_iterations=1 if steps == 1 else 2, **shape)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS])
    assert len({batch["prompt_ids"].size(1) for batch in trainer._buffered_inputs}) > 1
    for batch in trainer._buffered_inputs:
        with outputs_of(trainer, "_get_per_token_logps_and_entropies") as passes:
            trainer._compute_loss(trainer.model, batch)
        own = batch["tool_mask"].bool()
        assert torch.equal(passes[0][0][own], batch["old_per_token_logps"][own])
    assert trainer._metrics["train"]["kl"] == [0.0]


def test_steps_have_the_rows_of_trls_shuffle(tmp_path):
    """Rows change places inside a step only: four micro-batches in two steps."""
    trainer = varied(tmp_path, gradient_accumulation_steps=2, steps_per_generation=4)
    rollout = rollout_in(trainer)
    rollout["row"] = torch.arange(8)
    batches = [batch["row"].tolist() for batch in trainer._split(rollout, 4)]
    shuffled = trainer._order.tolist()
    assert shuffled != list(range(8))
    assert [set(batches[i] + batches[i + 1]) for i in (0, 2)] == [set(shuffled[:4]), set(shuffled[4:])]
    assert batches != [shuffled[i : i + 2] for i in range(0, 8, 2)]


@pytest.mark.parametrize(
    "option",
    [{"entropy_coef": 0.1}, {"top_entropy_quantile": 0.5}, {"use_adaptive_entropy": True, "entropy_coef": 0.1}],
)
def test_rows_are_not_ordered_where_micro_batches_have_means_of_their_own(tmp_path, option):
    """They are cut only."""
    trainer = varied(tmp_path, **option)
    rollout = rollout_in(trainer)
    rollout["row"] = torch.arange(8)
    batches = trainer._split(rollout, 4)
    assert [row for batch in batches for row in batch["row"].tolist()] == trainer._order.tolist()
    assert len({batch["prompt_ids"].size(1) for batch in batches}) > 1


def test_micro_batches_of_several_widths_are_resumed(tmp_path):
    """What a checkpoint inside a rollout's epochs holds of them, to the bit."""
    trainer = varied(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    other = varied(tmp_path)
    _, loaded = other.rollouts.load(tmp_path / "checkpoint-1", 0, torch.device("cpu"))
    assert len({batch["completion_ids"].size(1) for batch in loaded}) > 1
    for mine, theirs in zip(loaded, trainer._buffered_inputs, strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
