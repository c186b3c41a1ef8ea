"""trainer_kit.head_tiles: narrow tiles for the calls of our trainers on a CPU, the same numbers, and TRL's own size after."""

import pytest
import torch
from datasets import Dataset
from ppo_case import PROMPTS, even_letters, ppo_trainer, rollout_of
from self_training_case import trainer as raft_trainer
from tiny import byte_tokenizer, tiny_llama
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils

from trl_ext.trainer_kit import head_tiles
from trl_ext.trainer_kit.head_tiles import CPU_TILE, TILE, tiles_for
from trl_ext.trainer_kit.overrides import replaced

CPU = torch.device("cpu")
TRLS = getattr(utils, TILE, None)  # before any pass
has_tiles = pytest.mark.skipif(TRLS is None, reason="this TRL has no tiles in utils")


@pytest.fixture
def asked(monkeypatch):
    """Widths of the tiles of each pass through TRL's head."""
    widths, function = [], utils._ChunkedLogProbFunction

    class Watched(function):
        @staticmethod
        def forward(ctx, *args):
            widths.append(args[5])
            return function.forward(ctx, *args)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Watched)
    return widths


@has_tiles
def test_tiles_are_narrow_in_the_block_only():
    with tiles_for(CPU):
        assert getattr(utils, TILE) == CPU_TILE == 512 < TRLS
    assert getattr(utils, TILE) == TRLS
    with pytest.raises(RuntimeError, match="inside"), tiles_for(CPU):
        raise RuntimeError("inside")
    assert getattr(utils, TILE) == TRLS


@has_tiles
@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "meta"])
def test_other_devices_keep_trls_tiles(device):
    with tiles_for(torch.device(device)):
        assert getattr(utils, TILE) == TRLS


def test_a_trl_without_tiles_is_left_as_it_is(monkeypatch):
    monkeypatch.delattr(utils, TILE, raising=False)
    with tiles_for(CPU):
        assert not hasattr(utils, TILE)
    assert not hasattr(utils, TILE)


@has_tiles
@pytest.mark.parametrize("kind", [ppo_trainer, raft_trainer])
def test_each_pass_of_our_trainers_takes_narrow_tiles(tmp_path, asked, kind):
    """PPO: of the reference, for old log-probabilities, of the loss; RAFT: of the loss."""
    kind(tmp_path).train()
    assert len(asked) >= 2 and set(asked) == {CPU_TILE}
    assert getattr(utils, TILE) == TRLS


@has_tiles
def test_a_grpo_trainer_beside_keeps_its_tiles(tmp_path, asked):
    """Also behind a pass of ours that failed."""
    trainer = ppo_trainer(tmp_path / "ppo")
    rollout = rollout_of(trainer)
    with pytest.raises(TypeError, match="logits_to_keep"):
        trainer._get_per_token_logps_and_entropies(trainer.model, rollout["prompt_ids"], rollout["prompt_mask"])
    asked.clear()
    args = GRPOConfig(
        str(tmp_path / "grpo"), bf16=False, report_to="none", per_device_train_batch_size=4, num_generations=2,
        max_completion_length=5, max_steps=1, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    prompts, tokenizer = Dataset.from_dict({"prompt": PROMPTS}), byte_tokenizer()
    GRPOTrainer(tiny_llama(tokenizer), even_letters, args, prompts, processing_class=tokenizer).train()
    assert asked and set(asked) == {TRLS}


@has_tiles
def test_values_and_gradients_of_ppo_are_those_of_trls_tiles(tmp_path, asked):
    """259 words: one tile of TRL's, ten of 26 words here, the last of which is not full."""
    found = {}
    for tile in (TRLS, 26):
        with replaced(head_tiles, CPU_TILE=tile):
            trainer = ppo_trainer(tmp_path, beta=0.1)
            torch.manual_seed(0)
            rollout = rollout_of(trainer)
            trainer.current_gradient_accumulation_steps = 1
            loss = trainer._compute_loss(trainer.model, rollout)
        loss.backward()
        gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        kept = ("old_per_token_logps", "values", "advantages", "returns")
        found[tile] = {name: rollout[name] for name in kept} | {"loss": loss.detach()} | gradients
    trls, ours = found.values()
    assert len(ours) > 10 and set(asked) == {TRLS, 26}
    torch.testing.assert_close(ours, trls, rtol=0, atol=1e-6)


@has_tiles
def test_training_is_that_of_trls_tiles(tmp_path):
    """The loss and the gradient's norm of each step, over two rollouts and their epochs."""
    logs = []
    for tile in (TRLS, 26):
        with replaced(head_tiles, CPU_TILE=tile):
            trainer = ppo_trainer(tmp_path, num_iterations=2, max_steps=4, learning_rate=1e-4)
            trainer.train()
        logs.append(
            [entry[name] for entry in trainer.state.log_history if "loss" in entry for name in ("loss", "grad_norm")]
        )
    trls, ours = logs
    assert len(ours) == 8 and ours == pytest.approx(trls, abs=1e-6)
