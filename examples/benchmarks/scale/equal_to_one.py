"""Do two processes take PPO's, RAFT's, ReST's and a reward model's steps as one does, and save the same model? Over a fixed
table of completions PPO and the reward model make three steps, and RAFT and ReST six: two stages, or two thresholds.

    python -m examples.benchmarks.scale.equal_to_one --engine fsdp2     # or ddp, zero2, zero3

launches each row of its table by `accelerate launch --config_file examples/accelerate/ENGINE.yaml`, and prints by how much at
most the saved policy, PPO's critic in the checkpoint and an evaluation (RAFT and ReST sample the policy for it) differ from those
of one process, in float64 (but for the softmax of attention, and the weights that DeepSpeed's optimizer keeps, which are in
float32). DeepSpeed clips policy and critic by one norm, so that beside it nothing of PPO's is clipped; RAFT and ReST refuse it.
The reward model reads its trunk with a vocabulary head of its own, and where the engine takes it with its embedding. CPU
processes (gloo) stand in for cards.
"""

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from examples.benchmarks.common.made_models import config_of, word_tokenizer
from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.scale.cpu_processes import ROOT, launch_command, leave, take_for_cards
from examples.benchmarks.scale.table_pairs import CUTTING, HEADS, NUMBERS, pair_trainer
from examples.benchmarks.scale.table_stages import METHODS, self_trainer
from trl_ext import PPOConfig, PPOTrainer

WHAT = {"head": "PPO, head", "model": "PPO, value model"} | {method: method for method in METHODS} | HEADS
CELLS = [(what, how) for what in WHAT for how in ("full", "LoRA")]
VOCABULARY, BATCH, STEPS = 512, 8, 3
TABLE = {f"w{i + 4} w{i + 9}": [(7 * i + 3 * k) % 500 + 4 for k in range(i % 5 + 1)] for i in range(16)}
EVALUATED = {"eval_loss", "eval_score", "eval_explained_variance", "eval_length", *NUMBERS}
AS_CARDS = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
ON_CPU = {None: {}, "ddp": {"ACCELERATE_USE_CPU": "true"}, **dict.fromkeys(("fsdp2", "zero2", "zero3"), AS_CARDS)}
PATIENCE = 900  # seconds that a launch may take


def even_ids(completion_ids, **columns) -> list[float]:
    """Score: how many of a completion's tokens have an even id."""
    return [float(sum(i % 2 == 0 for i in ids)) for ids in completion_ids]


def completions_of(prompts: list[str], trainer: PPOTrainer) -> dict:
    ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    return {"prompt_ids": ids, "completion_ids": [TABLE[prompt] for prompt in prompts], "logprobs": None}


def made(kind, task: str, how: str, seed: int, *, tied: bool = False):
    """A tiny model of a kind, with a LoRA that is not the identity or without one; `tied`: the head is the embedding."""
    torch.manual_seed(seed)
    config = config_of("tiny", window=64)
    config.num_labels, config.tie_word_embeddings = 1, tied
    model = kind.from_config(config)
    if how == "full":
        return model
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type=task)
    return get_peft_model(model, lora)


def train(folder: Path, what: str, how: str, clip: float) -> None:
    """A process's part of a run that leaves a policy, a checkpoint and an evaluation in `folder`."""
    quiet()
    faulthandler.dump_traceback_later(PATIENCE - 30, exit=True)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    sharded = "true" in map(os.environ.get, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    if sharded:  # accelerate takes CPU processes for cards
        take_for_cards()
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # compiled, by whoever holds a lock that outlives a process
        )
    torch.set_default_dtype(torch.float64)
    kind = (AutoModelForSequenceClassification, "SEQ_CLS") if what in HEADS else (AutoModelForCausalLM, "CAUSAL_LM")
    policy = made(*kind, how, seed=0, tied=what == "tied reward")
    each = {f"per_device_{kind}_batch_size": BATCH // processes for kind in ("train", "eval")}
    kept = {"save_strategy": "steps", "save_steps": STEPS, "logging_strategy": "no"}
    quietly = {"report_to": "none", "disable_tqdm": True}
    plain = {"bf16": False, "use_cpu": not sharded, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    options = {"output_dir": str(folder), "max_grad_norm": clip, **each, **kept, **quietly, **plain}
    if what in METHODS:
        trainer = self_trainer(what, policy, word_tokenizer(VOCABULARY), [*TABLE], steps=STEPS, **options)
    elif what in HEADS:
        trainer = pair_trainer(what, policy, word_tokenizer(VOCABULARY), TABLE, steps=STEPS, **options)
    else:
        trainer = ppo_trainer(what, policy, how, **options)
    if trainer.is_deepspeed_enabled:  # or tensors as small as these would be left whole
        told = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        told["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    trainer.train()
    trainer.save_model(str(folder / "policy"))
    said = trainer.evaluate() | trainer.state.log_history[-1]
    if trainer.accelerator.is_main_process:
        (folder / "said.json").write_text(json.dumps({name: said[name] for name in EVALUATED if name in said}))
    if processes > 1:
        leave()


def ppo_trainer(critic: str, policy: PreTrainedModel, how: str, **options) -> PPOTrainer:
    value_model = made(AutoModelForSequenceClassification, "SEQ_CLS", how, seed=1) if critic == "model" else None
    learned = {"max_steps": STEPS, "num_iterations": 2, "learning_rate": 1e-3, "beta": 0.1, "max_completion_length": 5}
    return PPOTrainer(
        policy,
        even_ids,
        PPOConfig(**options, **learned),
        Dataset.from_dict({"prompt": [*TABLE]}),
        Dataset.from_dict({"prompt": [*TABLE][:BATCH]}),
        word_tokenizer(VOCABULARY),
        rollout_func=completions_of,
        value_model=value_model,
    )


def launched(folder: Path, what: str, how: str, engine: str | None, clip: float) -> dict[str, dict[str, torch.Tensor]]:
    """What a run leaves: of one process, or of two under an engine."""
    folder.mkdir(parents=True)
    module = "examples.benchmarks.scale.equal_to_one"
    start = launch_command(engine, module) if engine else [sys.executable, "-m", module]
    command = [*start, "--worker", str(folder)]
    environment = os.environ | ON_CPU[engine] | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--what", what, "--how", how, "--clip", str(clip)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode:
        raise RuntimeError(f"{engine or 'one process'}, {what}, {how} failed:\n{done.stderr[-3000:]}")
    said = json.loads((folder / "said.json").read_text())
    policy = folder / "policy" / ("model.safetensors" if how == "full" else "adapter_model.safetensors")
    critic = folder / f"checkpoint-{STEPS}" / "ppo_critic.safetensors"
    return {
        "policy": load_file(policy),
        "critic": load_file(critic) if critic.exists() else {},
        "evaluation": {name: torch.tensor(value, dtype=torch.float64) for name, value in said.items()},
    }


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Over all numbers of the same tensors, 0 without any; a KeyError where either has one more."""
    return max(((one[name] - two[name]).abs().max().item() for name in one.keys() | two.keys()), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--engine", choices=("ddp", "fsdp2", "zero2", "zero3"), default="fsdp2")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=WHAT, help="only this one: PPO's critic, another method or head")
    parser.add_argument("--how", choices=("full", "LoRA"), help="only this one")
    parser.add_argument(
        "--clip", type=float, help="max_grad_norm; 1 by default, 0 (nothing is clipped) for PPO under DeepSpeed"
    )
    given = parser.parse_args()
    if given.worker:
        return train(given.worker, given.what, given.how, given.clip)
    zero = given.engine.startswith("zero")
    print("| engine | trainer | policy | saved policy | critic | evaluation |\n|---|---|---|---|---|---|")
    for what, how in CELLS:
        refused = (zero and what in METHODS) or (what == "tied reward" and given.engine in CUTTING)
        if given.what in (None, what) and given.how in (None, how) and not refused:
            clip = float(not zero or what in HEADS) if given.clip is None else given.clip
            with tempfile.TemporaryDirectory() as folder:
                one, two = (
                    launched(Path(folder, str(engine)), what, how, engine, clip) for engine in (None, given.engine)
                )
            numbers = [f"{largest_difference(one[part], two[part]):.1e}" if one[part] else "–" for part in one]
            print(f"| {given.engine} | {WHAT[what]} | {how} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
