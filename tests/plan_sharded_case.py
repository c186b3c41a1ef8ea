"""What FSDP2 leaves on each of two CPU processes, beside the plan: `plan_sharded_case.py FOLDER '{"kind": "head"}'`."""

import json
import sys
from pathlib import Path

import torch
from cpu_sharding import shard_on_cpu
from table_case import table_trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from two_processes import leave


def size(tensor: Tensor) -> int:
    """Bytes of what a process has of it."""
    mine = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.numel() * mine.element_size()


def uncut(model: nn.Module) -> int:
    """Bytes of gradients that wait whole for further micro-batches."""
    groups = [
        module._get_fsdp_state()._fsdp_param_group for module in model.modules() if isinstance(module, FSDPModule)
    ]
    parameters = [parameter for group in groups if group for parameter in group.fsdp_params]
    waiting = [parameter._unsharded_param.grad for parameter in parameters if hasattr(parameter, "_unsharded_param")]
    return sum(
        size(gradient)
        for gradient in {id(gradient): gradient for gradient in waiting if gradient is not None}.values()
    )


class Look(TrainerCallback):
    def __init__(self):
        self.seen = {"waiting": 0}

    def on_substep_end(self, args, state, control, *, model, **kwargs):
        self.seen["waiting"] = uncut(model)

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.seen["gradients"] = sum(size(p.grad) for p in model.parameters() if p.grad is not None)

    def on_step_end(self, args, state, control, *, model, optimizer, **kwargs):
        self.seen["weights"] = sum(map(size, model.parameters()))
        states = getattr(optimizer, "optimizer", optimizer).state.values()
        self.seen["states"] = sum(size(one) for state in states for name, one in state.items() if name != "step")


if __name__ == "__main__":
    torch.set_num_threads(1)
    shard_on_cpu()
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    trainer, look = table_trainer(folder, max_steps=1, **options), Look()
    trainer.add_callback(look)
    trainer.train()
    if trainer.ref_model is not None:
        look.seen["reference"] = sum(map(size, trainer.ref_model.parameters()))
    if trainer.accelerator.is_main_process:
        told = {
            "seen": look.seen,
            "plan": trainer.memory.plan.phases["train"].terms,
            "cards": trainer.memory.plan.settings.num_gpus,
        }
        (folder / "told.json").write_text(json.dumps(told))
    leave()
