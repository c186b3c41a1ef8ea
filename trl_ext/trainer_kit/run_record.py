"""What a run's folder remembers of how it was begun, so that it is only gone on with in the same way."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from trl_ext.trainer_kit.whole_files import written_whole

RECORD = "self_training_run.json"

# Fields that may differ when a run is gone on with: what it says, what it saves, where and how fast it runs.
HARMLESS_PREFIXES = ("logging_", "log_", "save_", "hub_", "push_to_hub", "dataloader_", "report_to", "ddp_", "torch_")
HARMLESS = {
    "output_dir",
    "run_name",
    "project",
    "disable_tqdm",
    "use_cpu",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "restore_callback_states_from_checkpoint",
    "local_rank",
    "generation_batch_size",
    "per_device_eval_batch_size",
    "load_best_model_at_end",
    "skip_memory_metrics",
    "include_num_input_tokens_seen",
    "trackio_space_id",
    "dataset_num_proc",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing",  # their names from transformers 5.23 on
    "activation_checkpointing_kwargs",
    "activation_offloading",
}

MOVABLE = {"base_model_name_or_path"}  # an adapter's: the model's own fingerprint says whether the base is the same


def run_record(
    args: TrainingArguments, dataset: Dataset, *, tokenizer: str, rewards: list[str], generator: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides what a run samples, keeps and learns, as JSON takes it."""
    config = {field.name: getattr(args, field.name) for field in fields(args) if not _is_harmless(field.name)}
    record = {
        "config": config,
        "train_dataset": data_fingerprint(dataset),
        "tokenizer": tokenizer,
        "reward_funcs": rewards,
        "generator": generator,
    }
    return json.loads(json.dumps(record, default=str, sort_keys=True))


def model_fingerprint(model: nn.Module) -> str:
    """Of a model before the run: its parameters' names and shapes, and some numbers of those that are not trained.

    Under an adapter these are the base's; without one, all are looked at. A new adapter's random numbers are not: they
    follow from the seed, or are the user's affair.
    """
    digest, has_base = hashlib.blake2b(digest_size=16), any(not p.requires_grad for p in model.parameters())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if not (has_base and parameter.requires_grad):
            digest.update(parameter.detach().flatten()[:64].cpu().float().numpy().tobytes())
    return digest.hexdigest()


def data_fingerprint(dataset: Dataset) -> str:
    """Of the rows' content: equal data have equal fingerprints, wherever they were loaded from."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(sorted(dataset.column_names)).encode())
    for row in dataset:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def write_record(output_dir: Path, record: dict[str, Any]) -> None:
    with written_whole(output_dir / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1, sort_keys=True))


def read_record(output_dir: Path) -> dict[str, Any] | None:
    path = output_dir / RECORD
    return json.loads(path.read_text()) if path.is_file() else None


def by_new_names(record: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    """A record, which may be older than the names of its config's options; `renamed`: those names by the former ones."""
    config = record.get("config", {})
    older = {name: config[former] for former, name in renamed.items() if former in config and name not in config}
    return record | {"config": {name: value for name, value in config.items() if name not in renamed} | older}


def check_unchanged(before: dict[str, Any], now: dict[str, Any], *, call: str) -> None:
    """Raise a ValueError that names the first differences between a folder's run and this one."""
    different = [
        f"{name}: {_short(old)} then, {_short(new)} now" for name, old, new in _differences(before, now) if old != new
    ]
    if different:
        raise ValueError(
            f"{call}: the folder's run was begun otherwise; {'; '.join(different[:5])}. Go on with the same values, or "
            "begin anew with another output_dir."
        )


def _differences(before: dict, now: dict):
    for name in sorted((before.keys() | now.keys()) - MOVABLE):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new)
        else:
            yield name, old, new


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_harmless(name: str) -> bool:
    return name in HARMLESS or name.startswith(HARMLESS_PREFIXES)
