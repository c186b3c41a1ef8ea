"""Reward models that two CPU processes train, under one engine after the other.

    sharded_reward_case.py FOLDER WHAT '{"DDP": {"adapter": {"full": false}}}' DDP

WHAT is a function below. What it returns is written to FOLDER, one file per process.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from cpu_sharding import CUT, ENGINES, shard_on_cpu
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_imitation_reward_trainer import config, logged, pairs, trainer_of
from tiny import byte_tokenizer, tiny_reward_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from two_processes import leave

from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.sharding import CUTTING, engine_of, is_in_pieces, whole

STEPS = {"max_steps": 3, "adam_epsilon": 0.1, "max_grad_norm": 0.5, "learning_rate": 0.1, "imitation_coef": 1.0}
EVALUATED = ("eval_ranking_loss", "eval_accuracy", "eval_margin", "eval_mean_reward", "eval_imitation_loss")
SAVED = ("model.safetensors", "adapter_model.safetensors")
BY_DATA = "one device or data parallelism"
PREPARE_BACKEND = PartialState._prepare_backend
BEGINS = {"eval_on_start": False, "eval_strategy": "no", "save_strategy": "no", "max_steps": 1}


def own_head() -> nn.Linear:
    """A vocabulary head that is not the model's."""
    torch.manual_seed(3)
    return nn.Linear(16, len(byte_tokenizer()), bias=False)


def reward_trainer(folder: Path, *, full: bool = True, tied: bool = False, in_16_bits: bool = False, **options):
    """One that saves after two of three steps, and evaluates before the first and behind all of them.

    Args:
        folder: For outputs.
        full: Whether all weights are trained, without an adapter.
        tied: Whether the vocabulary head is the embedding.
        in_16_bits: Whether the model comes in bfloat16.
        options: Of its config, or `optimizers`.
    """
    tokenizer = byte_tokenizer()
    with whole_loading():  # also where an earlier trainer's config asks for ZeRO-3
        model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    model = model.bfloat16() if in_16_bits else model
    if not full:
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="SEQ_CLS")
        model = get_peft_model(model, lora)
    processes, pieces = int(os.environ.get("WORLD_SIZE", 1)), options.get("gradient_accumulation_steps", 1)
    sharded = "true" in map(os.environ.get, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    plain = {"per_device_train_batch_size": 8 // processes // pieces, "per_device_eval_batch_size": 4 // processes}
    plain |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    plain |= {"eval_on_start": True, "use_cpu": not sharded}
    plain |= {"ddp_backend": "gloo"} if processes > 1 and not sharded else {}
    parts = {name: options.pop(name) for name in ("optimizers",) if name in options}
    args = config(folder, **plain | STEPS | options)
    head = {} if tied or not args.imitation_coef else {"imitation_head": own_head()}
    return trainer_of(folder, tokenizer, model, args=args, eval_dataset=pairs(5), **head, **parts)


def trained(folder: Path, *, engine: str | None = None, resume: str | None = None, **options) -> dict[str, Tensor]:
    """What is learned, logged, evaluated first and last, and saved; of what goes on from a checkpoint, learned and saved."""
    trainer = reward_trainer(folder, **options)
    assert engine_of(trainer) == engine
    trainer.train(resume_from_checkpoint=resume)
    assert is_cut(trainer.model) == (engine in CUTTING)
    trainer.save_model(folder / "saved")
    trainer.accelerator.wait_for_everyone()
    learned = [(name, parameter) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    told = {name: whole(parameter).detach().clone() for name, parameter in learned}
    saved = next(folder / "saved" / name for name in SAVED if (folder / "saved" / name).exists())
    told |= {f"saved.{name}": tensor for name, tensor in load_file(saved).items()}
    if resume is None:
        names = [*EVALUATED, "imitation_loss"] if options.get("imitation_coef", 1.0) else EVALUATED[1:-1]
        told |= {name: torch.tensor(logged(trainer, name)) for name in names}
    return told


def is_cut(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule) or any(map(is_in_pieces, model.parameters()))


def several(folder: Path, *, engine: str | None = None, **runs: dict) -> dict[str, Tensor]:
    """What each of some runs tells, once it is seen that one which goes on from its checkpoint ends alike."""
    told = {}
    for name, options in runs.items():
        found = trained(folder / name, engine=engine, **options)
        checkpoint = str(folder / name / "checkpoint-2")
        again = trained(folder / f"{name}, resumed", engine=engine, resume=checkpoint, **options)
        assert all(torch.equal(value, found[key]) for key, value in again.items()), (engine, name)
        told |= {f"policy.{name}.{key}": value for key, value in found.items()}
    return told


def engines(folder: Path, **runs: dict[str, dict]) -> dict[str, Tensor]:
    """Runs under one engine after the other; each is offered a checkpoint of those before it, and the first of the last."""
    told, before = {}, {}
    for engine, own in [*runs.items(), (next(iter(runs)), {})]:
        under(engine)
        for other in [one for one in before if one != engine]:
            refuses_checkpoint(folder, other, before[other], engine)
        found = several(folder / engine, engine=NAMES.get(engine, f"DeepSpeed {engine}"), **own)
        told |= {f"policy.{engine}.{name.removeprefix('policy.')}": value for name, value in found.items()}
        before[engine] = next(iter(own.items()), None) or before[engine]
    return told


NAMES = {"DDP": None, "FSDP2": "FSDP2"}  # what engine_of calls them


def refuses_checkpoint(folder: Path, other: str, run: tuple[str, dict], engine: str) -> None:
    name, options = run
    then, now = (NAMES.get(one, f"DeepSpeed {one}") or BY_DATA for one in (other, engine))
    trainer = reward_trainer(folder / f"{other} to {engine}", **options | {"tied": False})
    with pytest.raises((ValueError, RuntimeError), match=f"it was written under {then}, and now runs under {now}"):
        trainer.train(resume_from_checkpoint=str(folder / other / name / "checkpoint-2"))


def under(engine: str, **changes: str) -> None:
    """From here on trainers run under another engine, or with other settings of accelerate's."""
    for name in {name for told in ENGINES.values() for name in told} | {"ACCELERATE_DEEPSPEED_CONFIG_FILE"}:
        os.environ.pop(name, None)
    PartialState._reset_state()
    AcceleratorState._reset_state()
    PartialState._prepare_backend = PREPARE_BACKEND
    if engine != "DDP":
        shard_on_cpu(engine=engine, **changes)


def margins_in_32_bits(folder: Path, **options) -> None:
    """Of scores in bfloat16 no difference is rounded to it, nor the loss of it."""
    trainer, seen = reward_trainer(folder, bf16=True, **BEGINS | options), []
    add = trainer._with_labels
    trainer._with_labels = lambda loss, pairs, rewards, *others: (
        seen.append((loss.detach(), rewards.detach())) or add(loss, pairs, rewards, *others)
    )
    trainer.train()
    ((loss, rewards),) = seen
    assert torch.equal(
        rewards.float(), rewards.bfloat16().float()
    )  # as the score head gives them, also in one process
    chosen, rejected = rewards.float().chunk(2)
    torch.testing.assert_close(loss, -nn.functional.logsigmoid(chosen - rejected).mean(), rtol=1e-6, atol=0)


def refused(message: str, folder: Path, **options) -> None:
    """By the trainer, with imitation and without it."""
    for coefficient in (1.0, 0.0):
        with pytest.raises(ValueError, match=message):
            reward_trainer(folder, imitation_coef=coefficient, **options)


def evaluates_no_sooner(folder: Path, engine: str) -> None:
    trainer = reward_trainer(folder)
    for ask in (trainer.evaluate, partial(trainer.predict, trainer.train_dataset)):
        with pytest.raises(
            ValueError, match=rf"ImitationRewardTrainer.evaluate\(\) or predict\(\) under {engine}, before train"
        ):
            ask()


def trains_once(folder: Path) -> None:
    """An evaluation leaves some weights whole, which accelerate would not find again in the optimizer."""
    trainer = reward_trainer(folder, **BEGINS)
    trainer.train()
    trainer.evaluate()
    with pytest.raises(ValueError, match=r"train\(.* under FSDP2, after it has trained .*Make another trainer"):
        trainer.train()


def bad_input_of_fsdp2(folder: Path) -> dict[str, Tensor]:
    under("FSDP2", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
    refused("under FSDP2 with .*save_model would write no weights. Set it to FULL_STATE_DICT", folder)
    under("FSDP2", FSDP_OFFLOAD_PARAMS="true")
    with pytest.raises(ValueError, match="under FSDP2 with fsdp_offload_params=true: it was never tried"):
        reward_trainer(folder)
    under("FSDP2")
    with pytest.raises(ValueError, match="the vocabulary head is the embedding, which FSDP and ZeRO-3 cut"):
        reward_trainer(folder, tied=True)
    with pytest.raises(
        ValueError, match=r"with SGD without momentum and save_strategy='steps': torch loads no optimizer"
    ):
        reward_trainer(folder, optim="sgd")
    assert reward_trainer(folder, optim="sgd", optim_args="momentum=0.9").args.optim == "sgd"
    evaluates_no_sooner(folder, "FSDP2")
    trains_once(folder / "once")
    margins_in_32_bits(folder / "halves")
    return {}


ADAMW = {
    "type": "AdamW",
    "params": {**dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"), "torch_adam": True},
}
ZERO_2, UNCLIPPED = {"zero_optimization": {"stage": 2}}, {k: v for k, v in CUT.items() if k != "gradient_clipping"}
UNLIKE = (
    "an `optimizer` in its config: it would be obeyed in the place of optim='adamw.*Leave it out: ImitationRewardConf"
)
ZERO = [
    (ZERO_2 | {"optimizer": ADAMW | {"type": "Lamb"}}, {}, UNLIKE),
    (ZERO_2 | {"optimizer": ADAMW | {"params": {"lr": "auto"}}}, {}, UNLIKE),  # with DeepSpeed's own numbers
    (ZERO_2 | {"optimizer": ADAMW | {"params": ADAMW["params"] | {"amsgrad": True}}}, {}, UNLIKE),
    (ZERO_2 | {"optimizer": ADAMW}, {"weight_decay": 0.1}, UNLIKE),
    (ZERO_2 | {"scheduler": {"type": "WarmupLR", "params": {}}}, {}, "a `scheduler` in .* lr_scheduler_type='linear'"),
    (ZERO_2 | {"gradient_clipping": 1.0}, {}, r"=1.0 in its config, .*grad_norm=0.5\): the former would be obeyed"),
    ({"zero_optimization": {"stage": 3}}, {}, "zero3_save_16bit_model=false: save_model would write no weights"),
]  # of DeepSpeed's config, of the trainer's, and what it says
UNTRIED = [
    {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    ZERO_2 | {"torch_autocast": {"enabled": True}},
    ZERO_2 | {"tensor_parallel": {"autotp_size": 2}},
]


def told_by_file(**config) -> None:
    under("ZeRO-2", ACCELERATE_DEEPSPEED_CONFIG_FILE=json.dumps(config))


def bad_input_of_zero(folder: Path) -> dict[str, Tensor]:
    for changes, options, message in ZERO:
        told_by_file(**CUT | changes)
        refused(message, folder, **options)
    told_by_file(**CUT | ZERO_2 | {"optimizer": ADAMW})
    reward_trainer(folder)
    told_by_file(**UNCLIPPED | ZERO_2)
    refused("no gradient_clipping in its config.*Set gradient_clipping to auto", folder)
    for changes in UNTRIED:
        told_by_file(**CUT | changes)
        with pytest.raises(
            ValueError, match=r"ImitationRewardTrainer under DeepSpeed ZeRO-2 with .*it was never tried"
        ):
            reward_trainer(folder)
    for engine in ("ZeRO-2", "ZeRO-3"):
        under(engine)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        refused("with optimizers=…: transformers makes its own", folder, optimizers=(optimizer, None))
        refused("bf16=False and trained tensors in .*: it takes one dtype", folder, full=False, in_16_bits=True)
        margins_in_32_bits(folder / f"halves, {engine}", full=engine == "ZeRO-3")
    first_evaluated(folder / "evaluated")
    under("ZeRO-2")
    evaluates_no_sooner(folder, "DeepSpeed ZeRO-2")
    return {}


def first_evaluated(folder: Path) -> None:
    """ZeRO-3 evaluates without an optimizer, and then trains no more."""
    trainer = reward_trainer(folder)
    evaluated = trainer.evaluate()["eval_loss"]
    assert evaluated > 0 and trainer.evaluate()["eval_loss"] == evaluated
    with pytest.raises(ValueError, match=r"after it has trained or evaluated.*Make another trainer"):
        trainer.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, what, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    results = globals()[what](target, **options)
    save_file(results, target / f"process-{torch.distributed.get_rank()}.safetensors")
    leave()
