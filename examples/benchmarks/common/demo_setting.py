"""The demo's world as a task: a policy after SFT, a reward model, and a judge that nobody is paid by."""

import dataclasses
from pathlib import Path

from trl_ext import LearnedReward
from trl_ext.demo import stages
from trl_ext.demo.world import Entity, load_world

PAIRS = {"reward": 800, "judge": 1600}


@dataclasses.dataclass
class Setting:
    """What all arms of one seed share."""

    world: list[Entity]
    policy: Path
    reward: LearnedReward
    judge: LearnedReward
    seed: int


def prepare(folder: Path, seed: int) -> Setting:
    """The policy after SFT, the reward model and the judge of one seed; made once."""
    world, scale = load_world(), stages.FULL
    halves = {
        name: [entity for i, entity in enumerate(world) if (i // 2) % 2 == side]
        for side, name in enumerate(("reward", "judge"))
    }
    policy = folder / "sft"
    if not (policy / "model.safetensors").exists():
        stages.supervised(world, policy, scale, seed=seed)
    for name, half in halves.items():
        if not (folder / name / "model.safetensors").exists():
            pairs = dataclasses.replace(scale, pairs=PAIRS[name])
            stages.reward_model(half, policy, folder / name, pairs, imitation_coef=0.1, seed=seed + (name == "judge"))
    return Setting(world, policy, stages.learned(folder / "reward"), stages.learned(folder / "judge"), seed)
