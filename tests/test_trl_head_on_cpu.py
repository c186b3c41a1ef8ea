"""examples/benchmarks/speed/trl_head_on_cpu.py: its heads give the same numbers, and each kind of step has its own tiles."""

import torch
from trl.trainer import utils

from examples.benchmarks.speed import trl_head_on_cpu as benchmark
from trl_ext.trainer_kit import head_tiles


def test_heads_agree():
    hidden, weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8).repeat(3, 1)
    targets = torch.tensor([0, 5, 11, 17, 23])
    expected = benchmark.plain(hidden, weight, targets)
    for tile in (7, 24, 100):
        torch.testing.assert_close(benchmark.fused(tile)(hidden, weight, targets), expected)


def test_each_kind_of_step_has_its_tiles_and_positions(tmp_path, monkeypatch):
    """8 prompts of 6 tokens and 4 new ones have 8 · 9 next tokens, of which 8 · 4 are learned."""
    passes, function = [], utils._ChunkedLogProbFunction

    class Watched(function):
        @staticmethod
        def forward(ctx, *args):
            passes.append((args[5], len(args[0])))
            return function.forward(ctx, *args)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Watched)
    monkeypatch.setitem(benchmark.SPEED, "new_tokens", 4)
    trainer, before = benchmark.step_trainer(tmp_path, "tiny", 6), vars(head_tiles).copy()
    found = {}
    for kind in benchmark.KINDS:
        passes.clear()
        assert benchmark.step_seconds(trainer, kind) > 0
        found[kind] = set(passes)
    assert found == {"TRL's tiles": {(32_768, 72)}, "ours": {(512, 72)}, "labelled only": {(512, 32)}}
    assert vars(head_tiles) == before
