"""Make the models and facts that `trl-ext demo` ships, from a seed, in some minutes on one core:

    python -m trl_ext.demo.make_assets --seed 0

A world of facts (world.json), a language model that has read about it (policy/), and an encoder that knows which
texts belong together (encoder/). What SFT, reward model and PPO train on is drawn from the facts at run time.
"""

import argparse
import time
from pathlib import Path

import torch

from trl_ext.demo.contrastive import calibrate, new_encoder, train_encoder, triplet_relevances
from trl_ext.demo.corpus import pretraining_texts
from trl_ext.demo.make_tokenizers import encoder_tokenizer, policy_tokenizer
from trl_ext.demo.pretraining import fact_recall, new_policy, packed_blocks, train_policy
from trl_ext.demo.world import ASSETS, Entity, make_world, save_world
from trl_ext.trainer_kit.commands import ends_in_one_line
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.seeds import check_seed

TEXTS = 60_000  # read once
ENCODER_STEPS, ENCODER_BATCH = 600, 64


def make_policy(world: list[Entity], folder: Path, *, seed: int, texts: int = TEXTS) -> None:
    torch.manual_seed(seed)
    tokenizer = policy_tokenizer(world)
    model = new_policy(tokenizer)
    blocks = packed_blocks(pretraining_texts(world, count=texts, seed=seed), tokenizer)
    loss = train_policy(model, blocks, learning_rate=3e-3)
    print(
        f"policy   {_size(model)}, {blocks.numel():,} tokens read, last loss {loss:.3f}; facts known: {fact_recall(model, tokenizer, world):.1%}"
    )
    _save(model, tokenizer, folder)


def make_encoder(world: list[Entity], folder: Path, *, seed: int, steps: int = ENCODER_STEPS) -> None:
    torch.manual_seed(seed)
    tokenizer = encoder_tokenizer(world)
    model = new_encoder(tokenizer)
    loss = train_encoder(model, tokenizer, world, steps=steps, batch=ENCODER_BATCH, learning_rate=3e-3, seed=seed)
    calibrate(model, tokenizer, world, seed=seed)
    right, wrong = triplet_relevances(model, tokenizer, world, seed=seed)
    print(
        f"encoder  {_size(model)}, last loss {loss:.3f}; right answer above another's: {(right > wrong).float().mean():.1%} "
        f"of questions; relevance {right.mean():.2f} ± {right.std():.2f} against {wrong.mean():.2f} ± {wrong.std():.2f}"
    )
    _save(model, tokenizer, folder)


def _save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _size(model: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=ASSETS)
    args = parser.parse_args()
    check_seed(args.seed, call=f"--seed {args.seed}")
    check_is_folder(args.output_dir, call=f"--output-dir {args.output_dir}")
    torch.set_num_threads(1)  # the sums of one thread are the same on every run
    start = time.perf_counter()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    world = make_world(args.seed)
    save_world(world, args.output_dir / "world.json")
    make_encoder(world, args.output_dir / "encoder", seed=args.seed)
    make_policy(world, args.output_dir / "policy", seed=args.seed)
    size = sum(file.stat().st_size for file in args.output_dir.rglob("*") if file.is_file())
    print(f"{size / 2**20:.2f} MiB in {args.output_dir}, made in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    with ends_in_one_line("make_assets", when_stopped="The same command begins anew, over what it has written."):
        main()
