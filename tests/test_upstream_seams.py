"""What trl_ext assumes about TRL and transformers.

A failure here means that an upgrade moved a seam: read the upstream change, then adapt what the test names.
"""

import copy
import inspect
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub import constants
from huggingface_hub.utils import _telemetry as telemetry
from peft import LoraConfig, get_peft_model
from peft.utils.other import AuxiliaryTrainingWrapper
from ppo_case import PROMPTS, even_letters, ppo_trainer, several_end_tokens
from shared_case import PAIRS, TEXTS, base_path
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import (
    DynamicCache,
    ProcessorMixin,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import base_trainer, utils
from trl.trainer import grpo_trainer as grpo_module

import trl_ext
from trl_ext import SharedBase
from trl_ext.self_training.improve_rows import ImproveRows
from trl_ext.shared_base.shared_tree import quantised_linears
from trl_ext.trainer_kit import card_files
from trl_ext.trainer_kit.head_tiles import TILE
from trl_ext.trainer_kit.overrides import outputs_of, replaced
from trl_ext.trainer_kit.passes import behind

LOSS = ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
SIGNATURES = {  # and where each is used
    (GRPOTrainer, "_calculate_rewards"): (
        ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "PPOTrainer, to tell rewards which completions ended",
    ),
    (GRPOTrainer, "_generate_and_score_completions"): (["self", "inputs"], "PPOTrainer, to replace the advantages"),
    (GRPOTrainer, "_generate"): (["self", "prompts"], "PPOTrainer, between the phases of its memory"),
    (VLLMGeneration, "sync_weights"): (["self"], "PPOTrainer under FSDP2, to leave the critic inside out"),
    (GRPOTrainer, "_prepare_inputs"): (["self", "generation_batch"], "like_lengths, to split a batch of rollouts"),
    (GRPOTrainer, "_compute_loss"): (["self", "model", "inputs"], "PPOTrainer, to add the value loss"),
    (GRPOTrainer, "_get_train_sampler"): (["self", "dataset"], "PPOTrainer, for an order that resuming finds again"),
    (RewardTrainer, "compute_loss"): (LOSS, "ImitationRewardTrainer, to add the imitation term"),
    (RewardTrainer, "_prepare_dataset"): (
        ["self", "dataset", "processing_class", "args", "dataset_name"],
        "ImitationRewardTrainer, to check pairs and keep where completions begin",
    ),
    (SFTTrainer, "compute_loss"): (LOSS, "self_training.importance, RAFT++'s loss"),
    (SFTTrainer, "_prepare_dataset"): (
        ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
        "generation.tokenising, to prepare kept samples as SFT does",
    ),
    **{
        (kind, "create_model_card"): (["self", "model_name", "dataset_name", "tags"], "model_cards, to put it right")
        for kind in (GRPOTrainer, SFTTrainer, RewardTrainer)
    },
    (Trainer, "create_scheduler"): (
        ["self", "num_training_steps", "optimizer"],
        "SelfTrainingTrainer, rates by Improve",
    ),
    (Trainer, "_get_train_sampler"): (["self", "train_dataset"], "SelfTrainingTrainer, rows in their order"),
    (Trainer, "_save_optimizer_and_scheduler"): (
        ["self", "output_dir"],
        "checkpoints, rollout_state, SelfTrainingTrainer",
    ),
    (Trainer, "_load_optimizer_and_scheduler"): (
        ["self", "checkpoint"],
        "checkpoints, rollout_state, SelfTrainingTrainer",
    ),
    (Trainer, "_save_checkpoint"): (["self", "model", "trial"], "checkpoints, whose mark comes last"),
    (Trainer, "_push_from_checkpoint"): (["self", "checkpoint_folder"], "SelfTrainingTrainer, what is pushed"),
    (Trainer, "_load_callback_state"): (["self"], "checkpoints, where the run's folder has moved"),
    (Trainer, "_save_rng_state"): (["self", "output_dir"], "checkpoints, which wait for all processes"),
    (Trainer, "_save"): (["self", "output_dir", "state_dict"], "PPOTrainer, what is saved; model_cards"),
    (Trainer, "training_step"): (
        ["self", "model", "inputs", "num_items_in_batch"],
        "finite_steps, around a micro-batch",
    ),
    (Trainer, "_prepare_inputs"): (["self", "inputs"], "finite_steps, for what a loss reads"),
    (Trainer, "log"): (
        ["self", "logs", "start_time"],
        "finite_steps, for skipped steps; trainers, for their own numbers",
    ),
    (Trainer, "_run_epoch"): (  # since transformers 5.3
        [
            *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ],
        "watched_runs, which lets a finished run make no further step",
    ),
    (Trainer, "get_batch_samples"): (
        ["self", "epoch_iterator", "num_batches", "device"],
        "ImitationRewardTrainer, tokens per accumulation window",
    ),
}


@pytest.mark.parametrize(("owner", "name"), SIGNATURES, ids=lambda value: getattr(value, "__name__", value))
def test_seam_keeps_its_signature(owner, name):
    """trl_ext overrides it, or calls it by these names; the assertion says where."""
    expected, used_in = SIGNATURES[owner, name]
    came = list(inspect.signature(getattr(owner, name)).parameters)
    assert came == expected, f"{owner.__name__}.{name} has moved; it is used in {used_in}."


def test_each_seam_says_where_it_is_used():
    """conftest.py prints these lines where a test fails, so each must name something of trl_ext."""
    names = {path.stem for path in Path(trl_ext.__file__).parent.rglob("*.py")} | set(trl_ext.__all__) | {"trl_ext"}
    tests = {name: test for name, test in globals().items() if name.startswith("test_")}
    without = [
        name for name, test in tests.items() if not names & set(re.findall(r"\w+", test.__doc__ or "")) - {"__init__"}
    ]
    assert without == []


@pytest.fixture
def grpo_trainer(tmp_path):
    args = GRPOConfig(
        str(tmp_path), bf16=False, report_to="none", per_device_train_batch_size=4, num_generations=2,
        max_completion_length=5, beta=0.0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        tiny_llama(byte_tokenizer()), even_letters, args, Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=byte_tokenizer(),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


@pytest.fixture
def rollout(grpo_trainer):
    return grpo_trainer._generate_and_score_completions([{"prompt": prompt} for prompt in "aabb"])


def test_advantages_per_token_are_accepted(grpo_trainer, rollout):
    """PPOTrainer._generate_and_score_completions: GRPO's loss treats (B, T) advantages like (B,) ones."""
    rollout["advantages"] = torch.tensor([1.0, -1.0, 0.5, 2.0])
    wide = rollout | {"advantages": rollout["advantages"].unsqueeze(1).expand(rollout["completion_mask"].shape)}
    model = grpo_trainer.model
    torch.testing.assert_close(grpo_trainer._compute_loss(model, rollout), grpo_trainer._compute_loss(model, wide))


def test_loss_ignores_what_tool_mask_masks(grpo_trainer, rollout):
    """walk.CompletionWalk.own_tokens: rows without a score are left out through `tool_mask`."""
    rollout |= {
        "advantages": torch.randn(rollout["completion_mask"].shape),
        "tool_mask": rollout["completion_mask"].clone(),
    }
    rollout["tool_mask"][1] = 0
    loss = grpo_trainer._compute_loss(grpo_trainer.model, rollout)
    rollout["advantages"][1] = 99.0
    assert torch.equal(grpo_trainer._compute_loss(grpo_trainer.model, rollout), loss)


def test_loss_divides_by_num_items_in_batch(grpo_trainer, rollout):
    """PPOTrainer._mean_over_window divides the value loss by the same number."""
    rollout["advantages"] = torch.ones(rollout["completion_mask"].shape)
    loss = grpo_trainer._compute_loss(grpo_trainer.model, rollout)
    torch.testing.assert_close(loss, torch.tensor(-1.0))  # ratio 1, advantage 1: minus the mean of ones
    rollout["num_items_in_batch"] = 2 * rollout["num_items_in_batch"]
    torch.testing.assert_close(grpo_trainer._compute_loss(grpo_trainer.model, rollout), torch.tensor(-0.5))
    grpo_trainer.current_gradient_accumulation_steps = 4
    torch.testing.assert_close(grpo_trainer._compute_loss(grpo_trainer.model, rollout), torch.tensor(-0.125))


def test_old_log_probs_are_used_when_given(grpo_trainer, rollout):
    """PPOTrainer hands its own old log-probabilities to the loss under this name."""
    assert "old_per_token_logps" not in rollout
    rollout["advantages"] = torch.ones(rollout["completion_mask"].shape)
    rollout["old_per_token_logps"] = torch.zeros(rollout["completion_mask"].shape)
    assert grpo_trainer._compute_loss(grpo_trainer.model, rollout).abs() < 0.1  # the ratio is π, about 1/259


def test_first_output_is_the_log_probs(grpo_trainer, rollout):
    """PPOTrainer._compute_loss reads it there; the names of its inputs are used in _evaluate_policy."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    length = rollout["completion_ids"].size(1)
    with torch.no_grad():
        log_probs = grpo_trainer._get_per_token_logps_and_entropies(
            grpo_trainer.model, input_ids=ids, attention_mask=mask, logits_to_keep=length
        )[0]
        logits = grpo_trainer.model(ids, attention_mask=mask).logits[:, -length - 1 : -1].log_softmax(-1)
    own = rollout["completion_mask"].bool()
    expected = logits.gather(2, rollout["completion_ids"].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(log_probs[own], expected[own])


def test_tiles_of_the_vocabulary_have_a_size_that_is_read_in_the_pass(monkeypatch, grpo_trainer, rollout):
    """head_tiles.tiles_for sets it around passes on a CPU: words of a tile, which changes no number but in rounding."""
    if not hasattr(utils, TILE):
        pytest.skip("this TRL has no tiles in utils; tiles_for passes over it")
    assert type(getattr(utils, TILE)) is int
    widths, function = [], utils._ChunkedLogProbFunction

    class Watched(function):
        @staticmethod
        def forward(ctx, *args):
            widths.append(args[5])
            return function.forward(ctx, *args)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Watched)
    found = []
    for size in (getattr(utils, TILE), 26):  # of 259 words
        with replaced(utils, **{TILE: size}):
            loss = grpo_trainer._compute_loss(grpo_trainer.model, rollout)
        grpo_trainer.model.zero_grad()
        loss.backward()  # behind the block: the pass remembers its tiles
        found.append([loss.detach(), *(p.grad.clone() for p in grpo_trainer.model.parameters())])
    assert widths == [getattr(utils, TILE), 26]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    assert found[0][1].abs().sum() > 0


def test_beta_of_the_trainer_switches_the_kl_of_the_loss(tmp_path):
    """PPOTrainer._compute_loss sets it to 0 while the parent runs."""
    trainer = ppo_trainer(tmp_path, beta=0.3)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    rollout = GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": "a"}] * 4)
    rollout["ref_per_token_logps"] += 1.0
    with replaced(trainer, beta=0.0):
        without = GRPOTrainer._compute_loss(trainer, trainer.model, rollout)
    assert (GRPOTrainer._compute_loss(trainer, trainer.model, rollout) - without).abs() > 1e-2


def test_num_iterations_switches_the_pass_for_old_log_probs(tmp_path):
    """PPOTrainer._generate_and_score_completions spares that pass; if it cannot, it is only slower."""
    trainer = ppo_trainer(tmp_path, num_iterations=4)
    calls = []
    with replaced(trainer, _get_per_token_logps_and_entropies=counted(trainer, calls)):
        trainer.model.train()
        trainer._generate_and_score_completions([{"prompt": "a"}] * 4)
    assert len(calls) == 2  # the reference's and PPO's own


def counted(trainer, calls):
    method = trainer._get_per_token_logps_and_entropies

    def call(*args, **kwargs):
        calls.append(1)
        return method(*args, **kwargs)

    return call


def test_the_reference_is_made_by_create_model_from_path(tmp_path):
    """policy.reference_from replaces it while GRPOTrainer is built."""
    policy = tiny_llama(byte_tokenizer())  # no checkpoint to load a reference from
    args = GRPOConfig(str(tmp_path), bf16=False, report_to="none", per_device_train_batch_size=8, beta=0.1)
    asked = []

    def make(*args, **kwargs):
        asked.append(args)
        return tiny_llama(byte_tokenizer())

    with replaced(grpo_module, create_model_from_path=make):
        trainer = GRPOTrainer(
            policy, even_letters, args, Dataset.from_dict({"prompt": PROMPTS}), processing_class=byte_tokenizer()
        )
    assert len(asked) == 1 and trainer.ref_model is not None


def test_an_adapter_gets_a_frozen_copy_as_reference(tmp_path):
    """policy.without_reference leaves the adapter `ref` out of what is saved."""
    model = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(target_modules=["q_proj"]))
    trainer = ppo_trainer(tmp_path, model=model, beta=0.1)
    assert set(trainer.model.peft_config) == {"default", "ref"}
    assert not any(p.requires_grad for n, p in trainer.model.named_parameters() if ".ref." in n)


def test_the_sampler_is_told_the_epoch(tmp_path):
    """PPOTrainer._get_train_sampler gives it `set_epoch`: without, a resumed run sees other prompts than one unbroken."""
    loader = ppo_trainer(tmp_path).get_train_dataloader()

    def prompts(epoch):
        loader.set_epoch(epoch)
        return [row["prompt"] for row in next(iter(loader))]

    orders = [prompts(epoch) for epoch in range(6)]
    assert prompts(3) == orders[3] and len({tuple(order) for order in orders}) > 1


def test_the_rollout_buffer_is_a_list_of_dicts_of_tensors(tmp_path):
    """rollout_state.RolloutState writes `_buffered_inputs`, and `_step` counts micro-batches."""
    trainer = ppo_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1)
    trainer.train()
    assert trainer._step == 2 and len(trainer._buffered_inputs) == 2
    assert all(isinstance(v, torch.Tensor) for batch in trainer._buffered_inputs for v in batch.values())


def test_rollouts_are_shuffled_and_split_by_two_functions_of_the_module(tmp_path):
    """like_lengths.LikeLengths puts its own in their places, and draws the shuffle behind `_generate`, as TRL's does."""
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_iterations": 1}
    trainer = ppo_trainer(tmp_path, **shape)
    trainer.model.train()
    names, called, counts = ("shuffle_sequence_dict", "split_tensor_dict"), [], []

    def watched(name, function):
        def call(rollout, *count):
            called.append(name)
            counts.extend(count)
            return function(rollout, *count)

        return call

    with replaced(grpo_module, **{name: watched(name, getattr(grpo_module, name)) for name in names}):
        first = GRPOTrainer._prepare_inputs(trainer, [{"prompt": prompt} for prompt in "abcd"])
    assert called == [*names] and counts == [2] and len(trainer._buffered_inputs) == 2
    assert first is trainer._buffered_inputs[0]
    torch.manual_seed(3)
    expected = torch.randperm(5)
    torch.manual_seed(3)
    assert torch.equal(utils.shuffle_sequence_dict({"row": torch.arange(5)})["row"], expected)


def test_the_references_pass_says_its_batch_size_and_the_losss_does_not(tmp_path):
    """like_lengths.LikeLengths orders rows where `batch_size` is given; nothing else that is given has rows."""
    trainer = ppo_trainer(tmp_path, beta=0.1, num_iterations=1)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    order, asked = [], []

    def read(model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others):
        asked.append(
            (batch_size, compute_entropy, [name for name, value in others.items() if value not in (None, False)])
        )
        order.append("read")
        log_probs = torch.zeros(len(input_ids), logits_to_keep, requires_grad=True)
        return log_probs, log_probs if compute_entropy else None, None

    def generate(prompts):
        order.append("generate")
        return GRPOTrainer._generate(trainer, prompts)

    with replaced(trainer, _get_per_token_logps_and_entropies=read, _generate=generate):
        rollout = GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": prompt} for prompt in "aabb"])
        GRPOTrainer._compute_loss(trainer, trainer.model, rollout)
    assert order == ["generate", "read", "read"]  # the reference's, the loss's
    assert asked == [(4, False, []), (None, True, [])]


def test_reduce_sums_over_processes():
    """masked.masked_sums relies on `Accelerator.reduce`."""
    assert Accelerator(cpu=True).reduce(torch.tensor([1.0, 2.0]), reduction="sum").tolist() == [1.0, 2.0]


@several_end_tokens
def test_end_tokens_are_two_attributes(grpo_trainer):
    """trl_versions.add_end_tokens adds to `eos_token_ids` (what is masked) and to `generation_config` (what stops)."""
    assert grpo_trainer.generation_config.eos_token_id == grpo_trainer.eos_token_ids == [1]
    everything = list(range(len(byte_tokenizer())))
    grpo_trainer.eos_token_ids = grpo_trainer.generation_config.eos_token_id = everything
    rollout = grpo_trainer._generate_and_score_completions([{"prompt": "a"}] * 4)
    assert rollout["completion_mask"].tolist() == [[1]] * 4


def test_trls_vllm_takes_further_settings_from_one_attribute():
    """trl_versions.add_end_tokens adds `stop_token_ids` to it, for vLLM in the process and for a server."""
    source = inspect.getsource(grpo_module.VLLMGeneration)
    assert "generation_kwargs.update(self.generation_kwargs)" in source
    assert '"generation_kwargs": self.generation_kwargs' in source


def test_trainer_adds_up_the_losses_of_micro_batches(grpo_trainer):
    """PPOTrainer._mean_over_window and TextMix.loss divide by the window themselves: nobody else must."""
    weight = grpo_trainer.model.lm_head.weight
    grpo_trainer.current_gradient_accumulation_steps = 4
    with replaced(grpo_trainer, _prepare_inputs=lambda x: x, _compute_loss=lambda model, inputs: weight.sum()):
        grpo_trainer.training_step(grpo_trainer.model, {}, None)
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_losses_are_counted_from_zero(tmp_path):
    """TextMix.loss (text_mix) takes its batch by `_step`, which counts the micro-batches before this one."""
    seen = []

    class Watched(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            seen.append(self._step)
            return super()._compute_loss(model, inputs)

    watched_grpo(Watched, tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2, max_steps=2).train()
    assert seen == [0, 1, 2, 3]


def test_callbacks_stand_around_the_optimizers_step(tmp_path):
    """critic.CriticCallback clips before it and clears after it; a callback may stop the run behind it."""
    seen = []

    class Order(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.append(("before", model.lm_head.weight.grad is not None, model.lm_head.weight.detach().clone()))

        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.append(("after", model.lm_head.weight.grad is not None, model.lm_head.weight.detach().clone()))

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer = watched_grpo(GRPOTrainer, tmp_path, max_steps=3)
    trainer.add_callback(Order())
    trainer.train()
    (before, had_gradient, old), (after, _, new) = seen
    assert (before, after, had_gradient, trainer.state.global_step) == ("before", "after", True, 1)
    assert not torch.equal(old, new)


def watched_grpo(kind: type[GRPOTrainer], folder, **options) -> GRPOTrainer:
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_completion_length": 5,
        "logging_steps": 1,
    }
    settings |= {"bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "num_generations": 2}
    return kind(
        tiny_llama(byte_tokenizer()), even_letters, GRPOConfig(str(folder), **settings | options),
        Dataset.from_dict({"prompt": PROMPTS}), processing_class=byte_tokenizer(),
    )  # fmt: skip


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("kind", [GRPOTrainer, SFTTrainer, RewardTrainer])
def test_adapters_are_cast_where_the_model_says_that_it_is_quantised(tmp_path, tokenizer, kind, said):
    """A role of SharedBase says that it is not, whatever the model below it says; adapters.keep_adapters_in_fp32."""
    model = (tiny_reward_model if kind is RewardTrainer else tiny_llama)(tokenizer)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    model.get_base_model().is_loaded_in_8bit, model.is_loaded_in_8bit = True, said
    settings = {"bf16": False, "use_cpu": True, "report_to": "none"}
    if kind is GRPOTrainer:
        args, rows = GRPOConfig(str(tmp_path), per_device_train_batch_size=8, **settings), {"prompt": PROMPTS}
        kind(model, even_letters, args, Dataset.from_dict(rows), processing_class=tokenizer)
    else:
        config, rows = (SFTConfig, TEXTS) if kind is SFTTrainer else (RewardConfig, PAIRS)
        kind(model, args=config(str(tmp_path), **settings), train_dataset=rows, processing_class=tokenizer)
    trained = {p.dtype for name, p in model.named_parameters() if "lora_" in name}
    assert trained == {torch.bfloat16 if said else torch.float32}


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_deepcopy_leaves_what_the_memo_holds(tmp_path, bits):
    """shared_tree.tree_over: parameters and bitsandbytes' states that are in the memo stay the very same objects."""
    model = SharedBase.from_pretrained(base_path(tmp_path), bits=bits).model
    states = [layer.state if bits == 8 else layer.quant_state for layer in quantised_linears(model)]
    shared = [*model.parameters(), *model.buffers(), *states]
    other = copy.deepcopy(model, {id(part): part for part in shared})
    assert other is not model and other.model.layers[0] is not model.model.layers[0]
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    theirs = [layer.state if bits == 8 else layer.quant_state for layer in quantised_linears(other)]
    assert len(states) == (0 if bits is None else 14) and all(a is b for a, b in zip(states, theirs, strict=True))


def test_adapters_to_save_are_selected(tmp_path):
    """policy.without_reference saves all but `ref` through PEFT's `selected_adapters`."""
    model = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(target_modules=["q_proj"]))
    model.add_adapter("ref", model.peft_config["default"])
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "ref").exists()


def test_prompts_are_sampled_in_single_turns(grpo_trainer):
    """PPOTrainer._generate, once around it, keeps the mode, which continuous batching would change."""
    called = []

    def turn(prompt_ids, *args, **kwargs):
        called.append(prompt_ids)
        return [[5, 6, 1]] * len(prompt_ids), None

    with replaced(grpo_trainer, _generate_single_turn=turn), outputs_of(grpo_trainer, "_generate") as around:
        rollout = grpo_trainer._generate_and_score_completions([{"prompt": "a"}] * 4)
    assert len(called) == len(around) == 1 and rollout["completion_ids"].tolist() == [[5, 6, 1]] * 4


def test_a_rollout_function_may_be_given_late(grpo_trainer):
    """PPOTrainer(generator=…) sets `rollout_func` on the trainer: one completion per repeated prompt, with log-probabilities."""
    asked = []

    def rollouts(prompts, trainer):
        asked.append((prompts, trainer))
        rows = len(prompts)
        return {"prompt_ids": [[9]] * rows, "completion_ids": [[5, 1]] * rows, "logprobs": [[-0.5, None]] * rows}

    with replaced(grpo_trainer, rollout_func=rollouts):
        rollout = grpo_trainer._generate_and_score_completions([{"prompt": prompt} for prompt in "aabb"])
    assert asked == [(["a", "a", "b", "b"], grpo_trainer)]
    assert rollout["completion_ids"].tolist() == [[5, 1]] * 4
    assert str(rollout["sampling_per_token_logps"].tolist()) == str([[-0.5, float("nan")]] * 4)


class Processor(ProcessorMixin):
    """Of text alone; one that sees images is no other kind to TRL."""

    attributes = ("tokenizer",)
    tokenizer_class = "AutoTokenizer"


def test_a_processor_makes_the_policy_one_that_sees_images(tmp_path, grpo_trainer):
    """PPOTrainer refuses it by `_is_vlm`, in ppo_input.check_policy."""
    args = GRPOConfig(str(tmp_path), bf16=False, report_to="none", per_device_train_batch_size=8)
    prompts, processor = Dataset.from_dict({"prompt": PROMPTS}), Processor(byte_tokenizer())
    model = tiny_llama(byte_tokenizer(), image_token_id=3)
    other = GRPOTrainer(model, even_letters, args, prompts, processing_class=processor)
    assert (other._is_vlm, grpo_trainer._is_vlm) == (True, False)


def test_the_table_of_completions_has_a_rollouts_advantages(tmp_path, grpo_trainer, rollout):
    """metrics.PPOMetrics.replace_groups puts the means of PPO's own into `_logs`, to be shown in their place."""
    table = grpo_trainer._logs["advantages"]
    assert list(table) == pytest.approx(rollout["advantages"].tolist())
    table[1], grpo_trainer.log_completions = 9.0, True
    (tmp_path / "completions").mkdir()
    grpo_trainer.log({})
    (shown,) = (tmp_path / "completions").iterdir()
    assert pq.read_table(shown)["advantage"].to_pylist() == list(table)


def test_a_model_reads_on_behind_a_cache(policy):
    """inference.behind, by trl_versions.cache_argument: for Grow, and for scores behind a shared prefix."""
    ids, cache = torch.tensor([[5, 6, 7, 8]]), DynamicCache(config=policy.config)
    with torch.no_grad():
        policy(ids[:, :3], **behind(cache, policy))
        last = policy(ids[:, 3:], attention_mask=torch.ones_like(ids), **behind(cache, policy)).logits
        torch.testing.assert_close(last[:, -1], policy(ids).logits[:, -1])


def test_a_cache_is_left_with_the_rows_that_are_asked_for(policy):
    """decoding: each completion begins with a copy of its prompt's keys and values, and ended ones are taken out."""
    ids, rows = torch.tensor([[5, 6, 7, 8], [9, 5, 4, 3]]), torch.tensor([1, 0, 1])
    cache = DynamicCache(config=policy.config)
    with torch.no_grad():
        policy(ids[:, :3], **behind(cache, policy))
        cache.batch_select_indices(rows)
        last = policy(ids[rows, 3:], attention_mask=torch.ones(3, 4), **behind(cache, policy)).logits
        torch.testing.assert_close(last[:, -1], policy(ids[rows]).logits[:, -1])


@pytest.mark.parametrize("changes", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3]}])
def test_an_embedding_that_is_trained_keeps_the_pretrained_one(policy, changes):
    """vocabulary_head finds it below PEFT's wrapper of either kind."""
    pretrained = policy.get_input_embeddings()
    model = get_peft_model(policy, LoraConfig(target_modules=["q_proj"], **changes))
    wrapper = model.get_base_model().get_input_embeddings()
    assert isinstance(wrapper, AuxiliaryTrainingWrapper) and wrapper.original_module is pretrained


# What trainer_kit.finite_steps assumes


def reward_run(folder, tokenizer, kind=RewardTrainer, margin=0.0, **changes) -> RewardTrainer:
    settings = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    settings |= {"per_device_train_batch_size": 1, "logging_steps": 1, "max_steps": 1, "dataloader_pin_memory": False}
    rows = Dataset.from_list([row | {"margin": margin} for row in PAIRS])
    args = RewardConfig(str(folder), **settings | changes)
    return kind(tiny_reward_model(tokenizer), args=args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("on", [True, False])
def test_the_filter_of_logged_losses_hides_what_is_not_finite(tmp_path, tokenizer, on):
    """finite_steps.FiniteSteps turns it off in each run: it logs 0.0 and trains on."""
    trainer = reward_run(tmp_path, tokenizer, margin=float("nan"), logging_nan_inf_filter=on)
    trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    assert loss == 0.0 if on else math.isnan(loss)


def test_gradients_are_whole_behind_a_windows_last_training_step(tmp_path, tokenizer):
    """finite_steps looks at them there, by `sync_gradients`: they are not clipped, nor is a step made with them."""
    seen = []

    class Watched(RewardTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            seen.append((self.accelerator.sync_gradients, self.model.score.weight.grad.norm().item()))
            return loss

        def _clip_grad_norm(self, model):
            seen.append(("clip", model.score.weight.grad.norm().item()))
            return super()._clip_grad_norm(model)

    reward_run(tmp_path, tokenizer, Watched, gradient_accumulation_steps=2, max_steps=2).train()
    assert [name for name, _ in seen] == [False, True, "clip"] * 2
    assert seen[1][1] == seen[2][1] and seen[4][1] == seen[5][1]


def test_inputs_are_prepared_inside_a_training_step(tmp_path):
    """finite_steps.FiniteSteps remembers what each loss reads: of GRPO a slice of a rollout, with its prompts' ids."""
    seen = []

    class Watched(GRPOTrainer):
        def _prepare_inputs(self, inputs):
            seen.append(super()._prepare_inputs(inputs))
            return seen[-1]

        def training_step(self, *args, **kwargs):
            seen.clear()
            return super().training_step(*args, **kwargs)

    watched_grpo(Watched, tmp_path, max_steps=1).train()
    assert len(seen) == 1 and len(seen[0]["prompt_ids"]) == 4


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path, tokenizer):
    """finite_steps relies on it: neither `load_best_model_at_end` nor `save_strategy="best"` takes it."""
    for greater in (True, False):
        trainer = reward_run(tmp_path, tokenizer, metric_for_best_model="eval_x", greater_is_better=greater)
        found = [trainer._determine_best_metric({"eval_x": x}, None) for x in (float("nan"), 1.0, float("nan"))]
        assert found == [False, True, False] and trainer.state.best_metric == 1.0


# What RAFT and ReST assume of SFTTrainer


@pytest.mark.parametrize("kind", [SFTTrainer, RewardTrainer])
def test_a_column_that_the_signature_names_reaches_the_collator(tmp_path, tokenizer, kind):
    """SelfTrainingTrainer adds `old_log_probs` to `_signature_columns`, ImitationRewardTrainer the prompts' lengths."""
    seen = []

    class Wider(kind):
        def _set_signature_columns_if_needed(self):
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*self._signature_columns, "more"]

    if kind is SFTTrainer:
        model, rows, args = tiny_llama(tokenizer), [{"input_ids": [5, 6], "labels": [5, 6]}], sft_config(tmp_path)
    else:
        model, rows = tiny_reward_model(tokenizer), PAIRS.to_list()
        args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", dataloader_pin_memory=False)
    rows = Dataset.from_list([row | {"more": 1, "unnamed": 2} for row in rows])
    trainer = Wider(model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.data_collator = lambda rows: seen.extend(rows) or {"input_ids": torch.zeros(1, 1)}
    next(iter(trainer.get_train_dataloader()))
    assert all("more" in row and "unnamed" not in row for row in seen) and seen


def test_the_progress_bar_is_there_in_training(tmp_path, tokenizer, policy):
    """SelfTrainingTrainer._say writes on `ProgressCallback.training_bar`, which is None outside."""
    bars = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            progress.training_bar.set_description("stage 1/2")
            bars.append(progress.training_bar.desc)

    rows = Dataset.from_list([{"input_ids": [5, 6], "labels": [5, 6]}])
    args = sft_config(tmp_path, disable_tqdm=False, max_steps=1)
    trainer = SFTTrainer(policy, args, train_dataset=rows, processing_class=tokenizer, callbacks=[Look()])
    (progress,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressCallback))
    assert progress.training_bar is None
    trainer.train()
    assert [bar.removesuffix(": ") for bar in bars] == ["stage 1/2"]


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_without_its_state_steps_as_a_fresh_one(tmp_path, name):
    """stage_loop._begin_stage clears it for `fresh_optimizer`, through accelerate's wrapper."""
    args = TrainingArguments(str(tmp_path), optim=name, use_cpu=True, report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    first, second = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))  # large enough for 8 bits

    def last_step(gradients, *, clear):
        weight = torch.nn.Parameter(torch.zeros(64, 64))
        optimizer = Accelerator(cpu=True).prepare_optimizer(kind([weight], **options))
        for gradient in gradients:
            if clear:
                optimizer.state.clear()
            weight.data.zero_()
            weight.grad = gradient.clone()
            optimizer.step()
        return weight.data

    fresh = last_step([second], clear=False)
    assert torch.equal(last_step([first, second], clear=True), fresh)
    assert not torch.allclose(last_step([first, second], clear=False), fresh)


def test_prepared_rows_are_taken_as_they_are(tmp_path, tokenizer, policy):
    """self_training.stage_loop: labels that are there already stay, and rows that a map-style data set holds later are read."""
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    trainer = SFTTrainer(
        policy, sft_config(tmp_path), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    assert trainer.train_dataset[0] == rows[0]
    trainer.train_dataset = ImproveRows(2, {"input_ids": [8, 9], "labels": [-100, 9]})
    (batch,) = trainer.get_train_dataloader()
    assert batch["labels"].tolist() == [[-100, 9]] * 2


def test_preparing_marks_completions_and_adds_the_end(tmp_path, tokenizer, policy):
    """generation.tokenising: what is learned is the completion with its end token."""
    rows = Dataset.from_list([{"prompt": "ab", "completion": "c"}])
    args = sft_config(tmp_path, completion_only_loss=True)
    trainer = SFTTrainer(policy, args, train_dataset=rows, processing_class=tokenizer)
    prepared = trainer._prepare_dataset(rows, tokenizer, args, False, None, "samples")[0]
    ids = tokenizer("abc<eos>")["input_ids"]
    assert (prepared["input_ids"], prepared["labels"]) == (ids, [-100, -100, *ids[2:]])


def test_an_epochs_rows_are_read_after_it_has_begun(tmp_path, tokenizer, policy):
    """stage_loop: `on_epoch_begin` sets the rows of an Improve; a loader that read ahead would train on the former ones."""
    rows, seen = ImproveRows(4, {"input_ids": [5, 6], "labels": [-100, 6]}), []

    class Turn(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            token = 10 + state.global_step
            rows.set_rows([{"input_ids": [5, token], "labels": [-100, token]}], [0] * 4)

    class Watched(SFTTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(inputs["labels"][0, 1].item())
            return super().compute_loss(model, inputs, *args, **kwargs)

    args = sft_config(tmp_path, per_device_train_batch_size=2, num_train_epochs=3)
    placeholder = Dataset.from_list([rows[0]])
    trainer = Watched(policy, args, train_dataset=placeholder, processing_class=tokenizer, callbacks=[Turn()])
    trainer.train_dataset = rows
    trainer.train()
    assert seen == [10, 10, 12, 12, 14, 14]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_schedules_are_functions_of_the_step(kind):
    """self_training.schedule: rates by Improve are put in through `lr_lambdas`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=4)
    scheduler.lr_lambdas = [lambda step: 10.0 + step]
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [11.0]


def test_steps_are_counted_and_averaged_by_what_jumping_sets():
    """stage_loop: leaving an Improve sets these; Trainer divides the logged loss by their difference."""
    source = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert "self.state.global_step - self._globalstep_last_logged" in source
    assert "global_step // num_update_steps_per_epoch" in inspect.getsource(Trainer._init_training_state)


@pytest.mark.parametrize("switch", ["HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE"])
def test_trls_telemetry_has_a_switch(tmp_path, monkeypatch, switch):
    """trl_ext's README: TRL sends one note per trainer to the hub, unless the environment says no when Python starts."""
    if not hasattr(base_trainer, "send_telemetry"):
        pytest.skip("this TRL sends none")
    code = "import sys; from huggingface_hub import constants as c; sys.exit(c.is_offline_mode() or c.HF_HUB_DISABLE_TELEMETRY)"
    others = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    for environment, is_off in ((others, False), (others | {switch: "1"}, True)):
        assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == is_off

    started = []
    monkeypatch.setattr(telemetry, "_start_telemetry_thread", lambda: started.append(1))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switch == "HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", switch != "HF_HUB_OFFLINE")
    ppo_trainer(tmp_path)
    assert started == []


def test_trls_telemetry_says_nothing_of_the_run(tmp_path, monkeypatch):
    """README: of a trainer of trl_ext it says "other", and no name of a model, a data set or a folder."""
    if not hasattr(base_trainer, "send_telemetry"):
        pytest.skip("this TRL sends none")
    sent = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda **note: sent.append(note))
    monkeypatch.delenv("CI", raising=False)
    ppo_trainer(tmp_path)
    (note,) = sent
    assert note["topic"] == "trl/other" and note["user_agent"].keys() == {
        "model_arch", "peft", "dataset_source", "distributed", "world_size", "device", "gpu",
    }  # fmt: skip


def sft_config(folder, **changes) -> SFTConfig:
    settings = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_length": None}
    settings |= {"gradient_checkpointing": False, "save_strategy": "no", "dataloader_pin_memory": False}
    return SFTConfig(str(folder), **settings | changes)


@pytest.mark.parametrize("template", ["lm_model_card.md", "rm_model_card.md"])
def test_model_cards_have_what_is_put_right_in_them(template):
    """card_files: the heading before which a run is told of, that from which it is told, and the links of base and data."""
    text = (Path(utils.__file__).parents[1] / "templates" / template).read_text()
    assert text.count(f"\n{card_files.VERSIONS}\n") == 1 and text.count(f"\n{card_files.TRAINING}\n") == 1
    for part in ("{{ base_model }}](https://huggingface.co/{{ base_model }})", 'model="{{ hub_model_id }}"'):
        assert part in text
    assert "{{ dataset_name }}](https://huggingface.co/datasets/{{ dataset_name }})" in text
