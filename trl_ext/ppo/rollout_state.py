"""The part of PPO's state that is neither weights nor optimizer: rollouts in use, and statistics of scores.

A checkpoint inside a rollout's epochs must go on with the same rollouts, or the resumed run would sample others.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_ext.ppo.critic import CRITIC_FILE
from trl_ext.trainer_kit.checkpoints import ResumableTrainer

Rollouts = list[dict[str, Tensor]]  # one per micro-batch

# Attributes of the trainer that change as it runs, and which of theirs a checkpoint keeps.
TRACKERS = {
    "score_moments": ("count", "mean", "squares"),
    "kl_control": ("beta",),
    "drift": ("over", "skipped"),
    "collapse": ("history", "warned"),
}


def state_files(process: int) -> tuple[str, str]:
    """Names of a process's own files in a checkpoint: its rollouts, and its counters."""
    return f"ppo_rollouts_{process}.safetensors", f"ppo_state_{process}.json"


def save_rollout_state(
    folder: str | Path, process: int, *, rollouts: Rollouts | None, trackers: dict[str, dict], counters: dict[str, int]
) -> None:
    """Write the state of one process: tensors as `<micro-batch>.<name>` in safetensors, the rest as JSON."""
    tensor_file, state_file = (Path(folder) / name for name in state_files(process))
    tensors = {f"{i}.{name}": tensor for i, batch in enumerate(rollouts or []) for name, tensor in batch.items()}
    save_file({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, tensor_file)
    state_file.write_text(json.dumps({"counters": counters} | trackers))


def load_rollout_state(
    folder: str | Path, process: int, device: torch.device
) -> tuple[Rollouts | None, dict[str, dict], dict[str, int]]:
    """Read what `save_rollout_state` wrote; None for rollouts where there were none.

    Raises:
        ValueError: If the folder has no such files, e.g. a checkpoint of another trainer.
    """
    tensor_file, state_file = (Path(folder) / name for name in state_files(process))
    if not (tensor_file.is_file() and state_file.is_file()):
        raise ValueError(
            f"PPOTrainer.train(resume_from_checkpoint={str(folder)!r}): there is no {state_file.name} in it, so it is "
            "not a checkpoint of PPOTrainer with as many processes. To start from its weights, load them as the model."
        )
    state = json.loads(state_file.read_text())
    batches: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(tensor_file, device=str(device)).items():
        index, key = name.split(".", 1)
        batches.setdefault(int(index), {})[key] = tensor
    rollouts = [batches[i] for i in sorted(batches)] or None
    counters = state.pop("counters")
    return rollouts, state, counters


class PPOCheckpoints(ResumableTrainer):
    """Mixin before GRPOTrainer: its checkpoints also hold the critic, the rollouts in use and the statistics.

    Written with the optimizer, i.e. before `trainer_state.json`, which marks a checkpoint as complete.
    """

    def _checkpoint_files(self):
        processes = range(self.accelerator.num_processes)
        entropy = ("entropy_ctrl_state.json",) if self.use_adaptive_entropy else ()  # TRL writes it last of all
        return (CRITIC_FILE, *entropy, *(name for process in processes for name in state_files(process)))

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.accelerator.is_main_process:
            self.critic.save(output_dir)
        save_rollout_state(
            output_dir,
            self.accelerator.process_index,
            rollouts=self._buffered_inputs,
            trackers={
                name: {key: getattr(getattr(self, name), key) for key in keys} for name, keys in TRACKERS.items()
            },
            counters={"step": self._step, "rollouts": self._rollouts} | self._batching(),
        )

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            self._load_rollout_state(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rollout_state(self, checkpoint: str) -> None:
        process, device = self.accelerator.process_index, self.accelerator.device
        rollouts, trackers, counters = load_rollout_state(checkpoint, process, device)
        changed = {name: (counters[name], now) for name, now in self._batching().items() if counters[name] != now}
        if changed:
            raise ValueError(
                f"PPOTrainer.train(resume_from_checkpoint={checkpoint!r}): changed since (then, now): {changed}. The "
                "checkpoint's rollouts are cut to the former. Resume with the same values."
            )
        self.critic.load(checkpoint)
        self._buffered_inputs = rollouts
        for name, values in trackers.items():
            for key, value in values.items():
                setattr(getattr(self, name), key, value)
        self._step, self._rollouts = counters["step"], counters["rollouts"]

    def _batching(self) -> dict[str, int]:
        """What rollouts are cut and repeated by."""
        names = ("per_device_train_batch_size", "steps_per_generation", "num_iterations")
        return {name: getattr(self.args, name) for name in names}
