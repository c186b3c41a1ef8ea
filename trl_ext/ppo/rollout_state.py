"""What PPO keeps from one batch of rollouts to the next, and from a run to the one that resumes it.

A checkpoint inside a rollout's epochs must go on with the same rollouts, or the resumed run would sample others.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_ext.ppo.collapse import CollapseWatch, EndWatch
from trl_ext.ppo.kl_control import KLController
from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.ppo.sampling_watch import SamplingWatch
from trl_ext.ppo.score_scaling import RunningMoments

Batches = list[dict[str, Tensor]]  # one per micro-batch

# What of each tracker changes as a run goes on, which is what a checkpoint keeps.
TRACKERS = {
    "score_moments": ("count", "mean", "squares"),
    "kl_control": ("beta",),
    "collapse": ("history", "warned"),
    "ending": ("rollouts", "any_ended"),
    "sampling": ("first_kl", "first_error", "first_distance", "lost", "warned"),
}
BATCHING = ("per_device_train_batch_size", "steps_per_generation", "num_iterations")  # by which rollouts are cut


def state_files(process: int) -> tuple[str, str]:
    """Names of a process's own files in a checkpoint: its rollouts, and its counters."""
    return f"ppo_rollouts_{process}.safetensors", f"ppo_state_{process}.json"


class RolloutState:
    """Counts batches of rollouts, and tracks over them what scales scores, prices KL and tells of collapse.

    Args:
        args: The trainer's config.

    Attributes:
        sampled: Batches of rollouts sampled in training.
        score_moments: Mean and deviation of all scores so far.
        kl_control: β, the price of KL.
        collapse: Signs of a reward that is got around.
        ending: Whether anything ends.
        sampling: Whether the policy is what is sampled.
    """

    def __init__(self, args: PPOConfig):
        self.args = args
        self.sampled = 0
        self.score_moments = RunningMoments()
        self.kl_control = KLController(args.beta, args.kl_target, args.kl_horizon)
        self.collapse = CollapseWatch(limit=args.max_completion_length)
        self.ending = EndWatch()
        self.sampling = SamplingWatch()

    def begin(self) -> None:
        """A batch of rollouts has been sampled to train on."""
        self.sampled += 1

    def scaled(self, scores: Tensor) -> Tensor:
        """Scores, `(B,)`, brought to the scale of the run; 0 for rows without, which are masked."""
        if self.args.score_scaling:
            scores = self.score_moments.scale(scores, clip=self.args.score_clip)
        return scores.nan_to_num(0.0)

    def follow(self, seen: dict[str, float], *, completions: int) -> None:
        """Set β for the next rollouts by the KL of these, and look for signs of collapse.

        Args:
            seen: What `PPOMetrics.of_rollout` says of them.
            completions: How many there are in all processes.
        """
        kl = seen["kl_per_completion"]
        self.kl_control.update(kl, completions=completions)
        self.collapse.update(length=seen["own_length"], perplexity=seen["perplexity"], kl=kl)

    def policy_rests(self) -> bool:
        """Whether only the critic learns, in its warm-up."""
        return self.sampled <= self.args.critic_warmup_rollouts

    def save(self, folder: str | Path, process: int, *, step: int, batches: Batches | None) -> None:
        """Write one process's state: tensors as `<micro-batch>.<name>` in safetensors, the rest as JSON.

        Args:
            folder: The checkpoint's.
            process: Index of the process.
            step: Micro-batches of this process so far.
            batches: The rollouts in use.
        """
        tensor_file, state_file = (Path(folder) / name for name in state_files(process))
        tensors = {f"{i}.{name}": tensor for i, batch in enumerate(batches or []) for name, tensor in batch.items()}
        save_file({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, tensor_file)
        trackers = {name: {key: getattr(getattr(self, name), key) for key in keys} for name, keys in TRACKERS.items()}
        counters = {"step": step, "rollouts": self.sampled} | self._batching()
        state_file.write_text(json.dumps({"counters": counters} | trackers), encoding="utf-8")

    def load(self, folder: str | Path, process: int, device: torch.device) -> tuple[int, Batches | None]:
        """Read what `save` wrote; returns its `step` and `batches`.

        Raises:
            ValueError: If the folder has no such files, e.g. a checkpoint of another trainer, or if rollouts were cut
                otherwise than now.
        """
        tensor_file, state_file = (Path(folder) / name for name in state_files(process))
        if not (tensor_file.is_file() and state_file.is_file()):
            raise ValueError(
                f"PPOTrainer.train(resume_from_checkpoint={str(folder)!r}): there is no {state_file.name} in it, so it is "
                "not a checkpoint of PPOTrainer with as many processes. To start from its weights, load them as the model."
            )
        state = json.loads(state_file.read_text(encoding="utf-8"))
        self._check_batching(state["counters"], folder)
        self.sampled = state["counters"]["rollouts"]
        for name in TRACKERS:
            for key, value in state.get(name, {}).items():
                setattr(getattr(self, name), key, value)
        target = device.type if device.type == "cpu" else str(device)  # nothing can be read to "cpu:0"
        return state["counters"]["step"], _batches_in(load_file(tensor_file, device=target))

    def _check_batching(self, then: dict[str, int], folder: str | Path) -> None:
        changed = {name: (then[name], now) for name, now in self._batching().items() if then[name] != now}
        if changed:
            raise ValueError(
                f"PPOTrainer.train(resume_from_checkpoint={str(folder)!r}): changed since (then, now): {changed}. The "
                "checkpoint's rollouts are cut to the former. Resume with the same values."
            )

    def _batching(self) -> dict[str, int]:
        return {name: getattr(self.args, name) for name in BATCHING}


def _batches_in(tensors: dict[str, Tensor]) -> Batches | None:
    """Tensors by `<micro-batch>.<name>` as batches in their order; None where there are none."""
    batches: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        batches.setdefault(int(index), {})[key] = tensor
    return [batches[i] for i in sorted(batches)] or None
