"""What a run's folder remembers of how it was begun: written with the run, and into each of its checkpoints."""

import json
import re
from collections.abc import Set
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from transformers import TrainingArguments

from trl_ext.trainer_kit.whole_files import remove_leftovers, written_whole

RECORD = "trl_ext_run.json"
FORMER = "self_training_run.json"  # its name when only RAFT, ReST and `trl-ext generate` kept one
RECORD_NAME = re.compile(f"{re.escape(RECORD)}|{re.escape(FORMER)}")
Record = dict[str, Any]  # as JSON takes it

# Fields that may differ when a run is gone on with: what it says, saves and evaluates, where and how fast it runs.
HARMLESS_PREFIXES = ("logging_", "log_", "save_", "hub_", "push_to_hub", "report_to", "trackio_", "ddp_", "torch_")
HARMLESS_PREFIXES += ("vllm_server_", "dataloader_prefetch", "dataloader_pin", "dataloader_persistent")
HARMLESS = {
    "accept_changes",
    "output_dir",
    "run_name",
    "project",
    "disable_tqdm",
    "debug",
    "use_cpu",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "restore_callback_states_from_checkpoint",
    "enable_jit_checkpoint",
    "local_rank",
    "per_device_eval_batch_size",
    "load_best_model_at_end",
    "skip_memory_metrics",
    "include_num_input_tokens_seen",
    "num_completions_to_print",
    "dataset_num_proc",
    "dataloader_num_workers",
    "dataloader_multiprocessing_context",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing",  # their names from transformers 5.23 on
    "activation_checkpointing_kwargs",
    "activation_offloading",
    "ds3_gather_for_generation",
    "vllm_mode",
    "vllm_group_port",
    "vllm_gpu_memory_utilization",
    "vllm_tensor_parallel_size",
    "vllm_enable_sleep_mode",
}
EVALUATION_PREFIX = "eval_"
EVALUATION = {
    "metric_for_best_model",
    "greater_is_better",
    "batch_eval_metrics",
    "include_for_metrics",
    "prediction_loss_only",
    "bf16_full_eval",
    "fp16_full_eval",
    "num_generations_eval",
}


def config_record(args: TrainingArguments, *, harmless: Set[str] = frozenset(), evaluates: bool = False) -> Record:
    """The options of a config that decide what a run samples and learns.

    Args:
        args: The config.
        harmless: Further options that a trainer's run may go on without.
        evaluates: Whether evaluations decide what it learns.
    """
    names = [field.name for field in fields(args) if not _is_harmless(field.name, harmless, evaluates)]
    return as_json({name: getattr(args, name) for name in names})


def optimizer_record(optimizer: Optimizer | None, given: tuple[type, dict] | None) -> Record | None:
    """The optimizer that the user has built, or asked for by `optimizer_cls_and_kwargs`; None: it follows from the config."""
    if optimizer is not None:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        return {"class": type(optimizer).__name__, "settings": as_json(groups)}
    return given and {"class": given[0].__name__, "settings": as_json(given[1])}


def as_json(values: Any) -> Any:
    """Values as they come back from a JSON file."""
    return json.loads(json.dumps(values, default=str, sort_keys=True))


def write_record(folder: Path, record: Record) -> None:
    """Write it, in place of one by the former name."""
    remove_leftovers(folder, RECORD_NAME)  # of a kill: this one takes their place
    with written_whole(folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    (folder / FORMER).unlink(missing_ok=True)


def read_record(folder: Path) -> Record | None:
    """The record in a folder, also by its former name; None where there is none, a ValueError for a damaged one."""
    path = next((folder / name for name in (RECORD, FORMER) if (folder / name).is_file()), None)
    if path is None:
        return None
    remedy = "Put a copy in its place (each checkpoint of a run has one), or give another folder."
    return read_object(path, f"what says how the run was begun. {remedy}")


def read_object(path: Path, what: str) -> Record:
    """The object in a JSON file; a ValueError that says what it should be, where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(f"{str(path)!r} cannot be read ({error}): expected {what}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds {type(content).__name__}: expected {what}")
    return content


def by_new_names(record: Record, renamed: dict[str, str]) -> Record:
    """A record, which may be older than the names of its config's options; `renamed`: those names by the former ones."""
    config = record.get("config", {})
    older = {name: config[former] for former, name in renamed.items() if former in config and name not in config}
    return record | {"config": {name: value for name, value in config.items() if name not in renamed} | older}


def _is_harmless(name: str, harmless: Set[str], evaluates: bool) -> bool:
    if name in EVALUATION or name.startswith(EVALUATION_PREFIX):
        return not evaluates
    return name in HARMLESS or name in harmless or name.startswith(HARMLESS_PREFIXES)
