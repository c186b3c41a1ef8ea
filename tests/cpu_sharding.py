"""Lets accelerate take FSDP2 or DeepSpeed for CPU processes (gloo): of itself it falls back to data parallelism there."""

import faulthandler
import json
import os

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import training_args

FSDP2 = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}  # what `accelerate launch` says by examples/accelerate/fsdp2.yaml
ZERO2 = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "DS_ACCELERATOR": "cpu",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
}  # and by zero2.yaml
ZERO3 = ZERO2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}  # and by zero3.yaml
CUT = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,  # or tensors as small as a test's would be left whole
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    **dict.fromkeys(("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps"), "auto"),
    "gradient_clipping": "auto",
}
ENGINES = {
    "FSDP2": FSDP2,
    "FSDP2, whole between passes": FSDP2 | {"FSDP_RESHARD_AFTER_FORWARD": "false"},
    "FSDP2, by a layer's name": FSDP2 | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"},
    "ZeRO-1": ZERO2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "ZeRO-2": ZERO2,
    "ZeRO-3": ZERO3 | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": json.dumps(CUT)},
    "ZeRO-3, small tensors whole": ZERO3,
}


def shard_on_cpu(*, engine: str = "FSDP2", patience: float = 240, **changes: str) -> None:
    """Before the first trainer of a process that is one of several.

    Args:
        engine: Which of `ENGINES`.
        patience: Seconds after which all threads' stacks are printed and the process ends.
        changes: Of what accelerate is told.
    """
    faulthandler.dump_traceback_later(patience, exit=True)
    os.environ.update(ENGINES[engine] | changes)
    if engine.startswith("ZeRO"):
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # compiled, by whoever holds a lock that outlives a process
        )
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    training_args.is_torch_bf16_gpu_available = lambda: True  # which a CPU's processes may use, too
