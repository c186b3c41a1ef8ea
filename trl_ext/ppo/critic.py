"""The critic: what a completion will score, foretold at each of its tokens.

It lives outside `trainer.model`, so that weight syncs, adapters and saved policies do not contain it. Trainer looks
after `trainer.model` only; `Critic` does for the value function what Trainer does for that: place it, join the
optimizer, clip, zero, save, load. Where FSDP2 or DeepSpeed shards, it lives inside `trainer.model` (`critic_inside.py`), so
that one engine shards both, and is taken out of what is saved and clipped as the policy's. DeepSpeed clips, steps, zeroes
and loads all of it by itself.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from trl_ext.ppo.critic_inside import PolicyAlone, put_inside
from trl_ext.trainer_kit.passes import seen_in
from trl_ext.trainer_kit.sharding import as_cut, copy_whole, whole, whole_shape

CRITIC_FILE = "ppo_critic.safetensors"


class WideLinear(nn.Linear):
    """A linear layer whose sum is in float32 at least, also where an engine has cast its weights to 16 bits."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return nn.functional.linear(input.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class ValueHead(nn.Module):
    """V = w · h + b on the policy's last hidden state h; zero at the start, so that it begins by expecting nothing."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = WideLinear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_states: Tensor, **_) -> Tensor:
        """`(B, L, H)` hidden states to `(B, L)` values."""
        with torch.autocast(hidden_states.device.type, enabled=False):  # 16 bits are too coarse for a return
            return self.linear(hidden_states).squeeze(-1).clone()  # FSDP2 warns of what is only a view


class ValueModel(nn.Module):
    """A sequence-classification model whose `score` head is read at every token instead of the last one only."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        if self._score_head is None:
            raise ValueError(
                f"PPOTrainer(value_model={type(model).__name__}): expected a sequence-classification model with a "
                "`score` head over every token. Load it with AutoModelForSequenceClassification, num_labels=1."
            )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_) -> Tensor:
        """`(B, L)` token ids to `(B, L)` values."""
        with seen_in(self._score_head, lambda args, output: output) as scores:
            self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return scores[0].squeeze(-1).float().clone()

    @property
    def _score_head(self) -> nn.Module | None:
        """The module named `score`, or what PEFT put in its place."""
        return next((module for name, module in self.model.named_modules() if name.split(".")[-1] == "score"), None)


class Critic:
    """A value function and all that its training needs beside Trainer's.

    Args:
        module: A `ValueHead` or a `ValueModel`.
        accelerator: The trainer's.
        learning_rate: Peak learning rate of the value function; the trainer's scheduler applies to it.
        inside: The policy that it becomes a part of, which an engine will shard; None: it is outside.

    Attributes:
        is_inside: Whether it is a part of the policy.
        engine_steps: Whether the engine clips, steps and loads by itself, the whole at once (DeepSpeed).
    """

    def __init__(
        self,
        module: ValueHead | ValueModel,
        accelerator: Accelerator,
        *,
        learning_rate: float,
        inside: PreTrainedModel | None = None,
    ):
        self.learning_rate, self.is_inside = learning_rate, inside is not None
        self.engine_steps = self.is_inside and accelerator.distributed_type == DistributedType.DEEPSPEED
        self._may_run = inside is None
        if inside is not None:
            put_inside(module, inside, accelerator)
            inside.register_forward_hook(self._follow)
        self.module = accelerator.prepare_model(module) if inside is None else module
        self._bare = accelerator.unwrap_model(self.module)

    @property
    def reads_policy(self) -> bool:
        """Whether it needs the policy's hidden states."""
        return isinstance(self._bare, ValueHead)

    @property
    def own_model(self) -> PreTrainedModel | None:
        """The model that it is, or None for a head on the policy."""
        return None if self.reads_policy else self._bare.model

    @property
    def head(self) -> nn.Linear | None:
        """The head on the policy that it is, or None for a model of its own."""
        return self._bare.linear if self.reads_policy else None

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: with an adapter, the adapter and the head."""
        return [parameter for _, parameter in self._named()]

    def values(self, completion_length: int, **inputs: Tensor) -> Tensor:
        """V at the positions that predict the completion's tokens: the prompt's last token, and all but the last.

        Args:
            completion_length: T, the number of completion tokens, which stand at the right.
            inputs: `hidden_states` `(B, L, H)`, `input_ids` and `attention_mask` `(B, L)`.

        Returns:
            `(B, T)` in float32.
        """
        if not self._may_run:
            raise RuntimeError(
                "Critic.values of a sharded policy: the policy must run once before its critic, a part of it, can."
            )
        return self.module(**inputs)[:, -completion_length - 1 : -1]

    def _follow(self, policy: nn.Module, args: tuple, output: object) -> None:
        self._may_run = True

    def join(self, optimizer: torch.optim.Optimizer, *, weight_decay: float, is_new: bool) -> None:
        """Let the policy's optimizer train the critic too, at its own rate, unless it does already.

        Args:
            optimizer: The policy's.
            weight_decay: Of matrices.
            is_new: Whether Trainer has just made it, and has taken a critic inside for the policy's.
        """
        if self.is_inside and is_new:
            own = {id(parameter) for parameter in self.parameters()}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        new = [parameter for parameter in self.parameters() if id(parameter) not in known]
        for params, decay in (
            ([parameter for parameter in new if parameter.ndim > 1], weight_decay),
            ([parameter for parameter in new if parameter.ndim < 2], 0.0),
        ):
            if params:
                optimizer.add_param_group({"params": params, "lr": self.learning_rate, "weight_decay": decay})

    def save(self, folder: str | Path, *, writes: bool = True) -> None:
        """Write what is trained to `ppo_critic.safetensors` in `folder`; where it is sharded, all processes take part.

        Args:
            folder: The checkpoint's.
            writes: Whether this process does.
        """
        if not (writes or self.is_inside):
            return
        weights = {name: whole(parameter).detach().cpu().contiguous() for name, parameter in self._named()}
        if writes:
            save_file(weights, Path(folder) / CRITIC_FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote, unless the engine has, or raise a ValueError if it came from another kind of critic."""
        saved, mine = load_file(Path(folder) / CRITIC_FILE), dict(self._named())
        then, now = ({name: whole_shape(tensor) for name, tensor in weights.items()} for weights in (saved, mine))
        other = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        if other:
            raise ValueError(
                f"PPOTrainer.train(resume_from_checkpoint={str(folder)!r}): the checkpoint's critic has other weights: "
                f"{len(other)} differ, e.g. {other[0]!r}, of shape {then.get(other[0], 'none')} there and "
                f"{now.get(other[0], 'none')} here. Resume with the same `value_model`."
            )
        for name, parameter in () if self.engine_steps else mine.items():
            copy_whole(parameter, saved[name])

    def policy_of(self, model: nn.Module) -> nn.Module | PolicyAlone:
        """What of `trainer.model` is the policy: its parameters are clipped, and rest, apart from the critic's."""
        return PolicyAlone(model) if self.is_inside else model

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in as_cut(self._bare).named_parameters() if p.requires_grad]


class CriticCallback(TrainerCallback):
    """Clips the critic's gradient before each optimizer step and clears it after, as Trainer does for the policy's.

    Of an engine that steps by itself no gradient is left then: it has clipped both by one norm, and stepped. Before the
    first, it looks whether any is left for the policy after the warm-up.

    Args:
        critic: The critic.
        policy_rests: Whether only the critic learns in this step (warm-up).
    """

    def __init__(self, critic: Critic, policy_rests):
        self.critic = critic
        self.policy_rests = policy_rests

    def on_train_begin(self, args, state, control, **kwargs):
        args.check_warmup(state.max_steps)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if args.max_grad_norm is not None and args.max_grad_norm > 0:  # as Trainer does for the policy's
            nn.utils.clip_grad_norm_(self.critic.parameters(), args.max_grad_norm)
        if self.policy_rests():
            self.critic.policy_of(model).zero_grad()  # no gradient, no step: not even weight decay

    def on_optimizer_step(self, args, state, control, **kwargs):
        for parameter in self.critic.parameters():
            parameter.grad = None
