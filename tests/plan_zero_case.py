"""What DeepSpeed, or DDP, leaves on each of two CPU processes, beside the plan: `plan_zero_case.py FOLDER '{"kind": "head"}' ZeRO-2`.

All storages that live are counted, at moments of the first two steps.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from cpu_sharding import CUT, shard_on_cpu
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from table_case import table_trainer
from tiny import TRAINING, byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import PreTrainedModel, TrainerCallback
from two_processes import leave

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
BUCKET = 50_000  # numbers, fewer than are trained where all weights are


def alive() -> int:
    """Bytes of all storages that a tensor of this process stands in."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type == "cpu"]
    storages = [one.untyped_storage() for one in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Look(TrainerCallback):
    """The most that lived at each kind of moment."""

    def __init__(self):
        self.seen = {}

    def note(self, moment: str) -> None:
        self.seen[moment] = max(self.seen.get(moment, 0), alive())

    def on_step_end(self, args, state, control, **kwargs):
        self.note("rest")


def watched(look: Look, trainer) -> None:
    """Looks where a pass has gone forward, where DeepSpeed exchanges a bucket, and where Adam steps."""
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for kind, name in (
        (stage_1_and_2.DeepSpeedZeroOptimizer, "reduce_ipg_grads"),
        (stage3.DeepSpeedZeroOptimizer_Stage3, "partition_grads"),
    ):
        made = getattr(kind, name)
        setattr(
            kind,
            name,
            lambda self, *args, made=made, **kwargs: (look.note("exchange"), made(self, *args, **kwargs))[1],
        )
    step = torch.optim.AdamW.step

    def stepped(self, *args, **kwargs):
        look.note("step")
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = stepped
    back = trainer.accelerator.backward
    trainer.accelerator.backward = lambda *args, **kwargs: (look.note("forward"), back(*args, **kwargs))[1]


def reward_trainer(folder: Path, *, full: bool, **options) -> ImitationRewardTrainer:
    pairs = Dataset.from_list([{"prompt": "why?", "chosen": "because", "rejected": "no"}] * 16)
    tokenizer = byte_tokenizer()
    model = tiny_reward_model(tokenizer, **SIZES)
    head = torch.nn.Embedding(len(tokenizer), 256)
    config = ImitationRewardConfig(**TRAINING | {"output_dir": str(folder), "max_length": 64} | options)
    return ImitationRewardTrainer(model, config, train_dataset=pairs, processing_class=tokenizer, imitation_head=head)


def on_all_layers(seed: int, task_type: str, model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type=task_type))


def policy_trainer(folder: Path, *, kind: str, full: bool, **options):
    tokenizer = byte_tokenizer()
    adapted = (lambda seed, task, model: model) if full else on_all_layers
    model = adapted(0, "CAUSAL_LM", tiny_llama(tokenizer, **SIZES))
    value = adapted(1, "SEQ_CLS", tiny_reward_model(tokenizer, **SIZES)) if kind == "model" else None
    return table_trainer(folder, model=model, value_model=value, kind=kind, full=full, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, options, engine = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    if engine == "DDP":
        options |= {"ddp_backend": "gloo", "use_cpu": True}
    else:
        stage = int(engine[-1])
        told = CUT | {"zero_optimization": CUT["zero_optimization"] | {"stage": stage, "reduce_bucket_size": BUCKET}}
        shard_on_cpu(engine=engine, ACCELERATE_DEEPSPEED_CONFIG_FILE=json.dumps(told))
    make, look = reward_trainer if options.pop("method", "ppo") == "reward" else policy_trainer, Look()
    trainer = make(folder, max_steps=2, **options)
    if engine != "DDP":
        watched(look, trainer)
    trainer.add_callback(look)
    trainer.train()
    wrapped = trainer.model_wrapped
    buckets = wrapped._get_ddp_logging_data()["bucket_sizes"] if engine == "DDP" else ""
    if trainer.accelerator.is_main_process:
        plan = trainer.memory.plan
        (folder / "told.json").write_text(
            json.dumps(
                {
                    "seen": look.seen,
                    "buckets": buckets,
                    "plan": plan.phases["train"].terms,
                    "settings": {
                        name: getattr(plan.settings, name) for name in ("shard", "num_gpus", "reduce_bucket_size")
                    },
                }
            )
        )
    leave()
