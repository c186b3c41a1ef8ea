"""A gold that is known, and proxies that learn from its labels alone, on the demo's world: made once per seed.

The questions of training are in three parts, of which no two share a prompt, nor a question in other words; best of n asks
those that are held out.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.benchmarks.common.quiet_runs import on_cpu
from examples.benchmarks.reward_models.bon_models import with_flips
from trl_ext import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows, sample_questions
from trl_ext.demo.world import OPEN, Entity, load_world
from trl_ext.reward_evaluation import BestOfN, best_of_n
from trl_ext.trainer_kit.seeds import seeded, stable_seed

PARTS = (
    "gold",
    "gold",
    "proxies",
    "people",
)  # a question is of each with equal chances: the gold's half is A, then B and C
GOLD_PAIRS = 1600
EPOCHS = 2  # of a proxy over its pairs
BATCH = 256


class Proxy(NamedTuple):
    """What tells a proxy from others.

    Args:
        flipped: Share of its labels that are exchanged.
        coef: Of imitation.
        member: Its number: seed of head and order.
    """

    flipped: float
    coef: float
    member: int

    def __str__(self) -> str:
        return f"flipped-{self.flipped:g}-coef-{self.coef:g}-{self.member}"


def part_of(world: list[Entity], part: str, *, seed: int) -> list[Entity]:
    """A world whose held-out questions are those of one part.

    All wordings of a question are in one part. What the world itself holds out is in none.
    """

    def names(entity: Entity) -> list[str]:
        asked = [name for name in (*entity.facts, OPEN) if name not in entity.held_out]
        return [name for name in asked if PARTS[stable_seed(seed, entity.subject, name) % len(PARTS)] == part]

    return [dataclasses.replace(entity, held_out=names(entity)) for entity in world]


def gold_of(folder: Path, *, seed: int) -> tuple[Path, Path]:
    """The policy after SFT, and the gold: a reward model of all its layers, from pairs about its part."""
    policy, gold, world = folder / "sft", folder / "gold", load_world()
    if not is_made(policy):
        stages.supervised(world, policy, stages.FULL, seed=seed)
    if not is_made(gold):
        rows = preference_rows(part_of(world, "gold", seed=seed), held_out=True, count=GOLD_PAIRS, seed=seed)
        stages.reward_model_of(rows, policy, gold, imitation_coef=0.0, seed=seed)
    return policy, gold


def sampled(policy: Path, gold: Path, questions: list[dict], *, n: int, seed: int) -> BestOfN:
    """The policy's answers with what the gold says of them, in the column `proxy`."""
    return best_of_n(
        str(policy),
        stages.learned(gold),
        Dataset.from_list(questions),
        n=n,
        max_completion_length=stages.COMPLETION_LENGTH,
        batch_size=BATCH,
        seed=seed,
    )


def labelled(two: BestOfN) -> list[dict]:
    """Pairs of two answers, the better one by the gold as chosen; without those that tie, repeat, are empty or did not end."""
    rows = two.samples
    prompts, texts, scores, ended = (rows[name][:] for name in ("prompt", "completion", "proxy", "ended"))
    pairs = []
    for i in range(0, len(texts), 2):
        high, low = (i, i + 1) if scores[i] > scores[i + 1] else (i + 1, i)
        whole = all(texts[j] and ended[j] for j in (i, i + 1))
        if whole and scores[high] > scores[low] and texts[high] != texts[low]:
            pairs.append({"prompt": prompts[i], "chosen": texts[high], "rejected": texts[low]})
    return pairs


def proxy_pairs(policy: Path, gold: Path, *, count: int, seed: int) -> list[dict]:
    """Two of the policy's answers to each of so many questions of the proxies' part, labelled by the gold."""
    questions = sample_questions(part_of(load_world(), "proxies", seed=seed), held_out=True, count=count, seed=seed)
    return labelled(sampled(policy, gold, questions, n=2, seed=seed + 2000))


def trunk_of(name: str, policy: Path, folder: Path) -> Path:
    """The language model that proxies begin with.

    Args:
        name: `half`, the first half of the policy's layers; `fresh`, as many that have learned nothing; or a path.
        policy: After SFT.
        folder: Where it is made.
    """
    if name not in ("half", "fresh"):
        return Path(name)
    if not is_made(folder):
        model = AutoModelForCausalLM.from_pretrained(policy)
        model.config.num_hidden_layers = max(1, model.config.num_hidden_layers // 2)
        model.model.layers = model.model.layers[: model.config.num_hidden_layers]
        if name == "fresh":
            with seeded(0):
                model = AutoModelForCausalLM.from_config(model.config)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


def proxy_of(pairs: list[dict], which: Proxy, trunk: Path, folder: Path, *, seed: int) -> Path:
    """A reward model of the gold's labels; head and order are those of its number, whatever its coefficient."""
    folder = folder / str(which)
    if not is_made(folder):
        args = ImitationRewardConfig(
            **on_cpu(folder, 100 * seed + which.member),
            imitation_coef=which.coef,
            num_train_epochs=EPOCHS,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            max_length=128,
        )
        rows = Dataset.from_list(with_flips(pairs, which.flipped, seed=seed))
        trainer = ImitationRewardTrainer(str(trunk), args, train_dataset=rows)
        trainer.train()
        trainer.save_model(folder)
    return folder


def is_made(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()
