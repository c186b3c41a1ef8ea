"""One frozen base, several roles: policy, reward models and value model over the same tensors."""

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.rewards.learned_reward import LearnedReward, check_options
from trl_ext.sequences.tokenizers import tokenizer_at, tokenizer_beside
from trl_ext.sequences.vocabulary import check_vocabulary
from trl_ext.shared_base.adapter_files import has_score_head, new_adapter, saved_adapter
from trl_ext.shared_base.base_loading import INT8_THRESHOLD, check_bits, check_model, check_threshold, quantisation
from trl_ext.shared_base.merge import Merged, merge_adapter
from trl_ext.shared_base.shared_tree import make_shareable, scorer_over, storage_bytes, tree_over
from trl_ext.trainer_kit.cut_checks import ask_before_cutting
from trl_ext.trainer_kit.device import checked_device, checked_dtype, default_device
from trl_ext.trainer_kit.engine_words import CUT_BASE
from trl_ext.trainer_kit.loading import loading, whole_loading
from trl_ext.trainer_kit.offloading import Slot, replace_storages, tensor_slots
from trl_ext.trainer_kit.seeds import check_seed
from trl_ext.trainer_kit.sharding import engine_asked, refuse_engine

CUT = f"it cuts the base {CUT_BASE}"
Bits = Literal[8, 4] | None
Adapter = str | os.PathLike | LoraConfig | None


class SharedBase:
    """A causal language model, frozen, that several roles share: a 7B run with four roles then fits one card.

        base = SharedBase.from_pretrained("meta-llama/Llama-2-7b-hf", bits=8)
        policy = base.policy(init_from="my-sft-adapter")           # or base.policy(LoraConfig(…)), or base.policy()
        reward = base.reward_model("my-reward-adapter")            # a reward function; reward.module is the model
        value = base.value_model(init_from="my-reward-adapter")

    Each role is a `PeftModel` of its own: its modules, hooks, modes and adapter belong to it alone, and only the frozen
    tensors below are common. So roles go unchanged into the trainers of trl_ext and of TRL, training one changes no
    other's outputs by a bit, and each saves its adapter by itself, in PEFT's format. They know nothing of merging (that
    is `merge`), and must not be copied or cast: `role.to(dtype)` would round the base for all. Adapters and `score` heads
    are in float32, whatever the base is in; TRL would turn them to bf16 on a quantised base, so a role does not tell it
    that it is on one (`is_loaded_in_8bit` and `is_loaded_in_4bit` are False on it, as ever on the model below).

    Args:
        model: A causal LM, plain or loaded by bitsandbytes in 8 or 4 bits. It is frozen, and must not be trained or
            wrapped by anybody else.
        tokenizer: Its tokenizer; None: the one saved beside it.

    Attributes:
        model: The base itself.
        tokenizer: Its tokenizer.
        name: Where it was loaded from; saved adapters name it.

    Raises:
        ValueError: If the model cannot be shared: it has an adapter already, or is no decoder.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None):
        check_model(model)
        make_shareable(model)
        self.model = model
        self.name: str = model.config._name_or_path
        self.tokenizer = tokenizer or tokenizer_beside(self.name, call=f"SharedBase({self.name!r})")
        check_vocabulary(self.tokenizer, model.config, call=f"SharedBase({self.name!r})")
        self._roles: weakref.WeakValueDictionary[str, PeftModel] = weakref.WeakValueDictionary()

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        bits: Bits = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        llm_int8_threshold: float = INT8_THRESHOLD,
        **model_kwargs,
    ) -> "SharedBase":
        """Load a base once.

        Args:
            name: Hub id or folder of a causal LM.
            bits: 8: LLM.int8(); 4: NF4 with double quantisation; None: as the checkpoint is.
            dtype: Of all that is not quantised, embeddings and head included. None: bfloat16, on a CPU float32.
            device_map: As in transformers; None: this process's accelerator, or the CPU where there is none.
            tokenizer: None: the one saved beside the model.
            llm_int8_threshold: With `bits=8`: activations above it are multiplied in 16 bits. 0: none, which is faster
                and, from about 6.7B parameters on, less exact.
            model_kwargs: Of `from_pretrained`, such as `revision` or `attn_implementation`.

        Raises:
            ValueError: For other bits, bits for a checkpoint that is quantised already, or a threshold without 8 bits.
        """
        name, device = os.fspath(name), default_device()
        llm_int8_threshold = check_threshold(llm_int8_threshold, bits)
        if dtype not in (None, "auto"):
            checked_dtype(dtype, call=f"SharedBase.from_pretrained(dtype={dtype!r})")
        if bits is not None:
            check_bits(name, bits, **{key: model_kwargs[key] for key in ("revision",) if key in model_kwargs})
            dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
            model_kwargs["quantization_config"] = quantisation(bits, dtype, llm_int8_threshold=llm_int8_threshold)
        with loading(f"SharedBase.from_pretrained({name!r})"), whole_loading():
            model = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16),
                device_map=device_map or (None if device.type == "cpu" else {"": device}),
                **model_kwargs,
            )
        return cls(model, tokenizer)

    # Roles

    def policy(
        self, lora: LoraConfig | None = None, *, init_from: str | os.PathLike | None = None, name: str | None = None
    ) -> PeftModel:
        """A policy: the base with a new adapter, or with a saved one that is trained on.

        Trainers measure KL to where the policy is now: the base under a new adapter, a frozen copy of a saved one.

        Args:
            lora: Of the new adapter; None: rank 16, α 32, on all linear layers.
            init_from: Folder or hub id of a saved adapter, e.g. of SFT; then `lora` is its own.
            name: By which the role is known. None: "policy", or the saved adapter's folder.
        """
        adapter = self._adapter("policy", lora, init_from)
        return self._role("policy", name, adapter, lambda: tree_over(self.model), TaskType.CAUSAL_LM)

    def reward_model(
        self,
        adapter: Adapter = None,
        *,
        init_from: str | os.PathLike | None = None,
        name: str | None = None,
        seed: int = 0,
        **options,
    ) -> LearnedReward:
        """A reward model as a reward function, which owns its tokenizer, pad token, eval mode and truncation.

        Its `module` is the model: train it with `ImitationRewardTrainer` or TRL's `RewardTrainer`.

        Args:
            adapter: Folder or hub id of a trained reward model's adapter; or the `LoraConfig` of a new one, None for
                the default.
            init_from: The same folder, by the name that it has in the other roles.
            name: By which the role is known and its scores are logged. None: "reward", or the adapter's folder.
            seed: Of a new head.
            options: Of `LearnedReward`: batch_size, max_length, eos_token_ids.
        """
        check_options(**options)
        check_seed(seed, call=f"SharedBase.reward_model(seed={seed!r})")
        adapter = _one_of("reward_model", "adapter", adapter, init_from)
        saved = _saved(adapter)
        if saved is not None and not has_score_head(saved, call="SharedBase.reward_model(…)"):
            raise ValueError(
                f"SharedBase.reward_model({str(saved)!r}): the adapter has no `score` head, so it is not that of a "
                "reward model. Train one: base.reward_model(LoraConfig(…)).module into ImitationRewardTrainer."
            )
        module = self._role("reward", name, adapter, lambda: scorer_over(self.model, seed=seed), TaskType.SEQ_CLS)
        reward = LearnedReward(module, tokenizer_at(saved) or self.tokenizer, **options)
        reward.__name__ = name or _default_name("reward", adapter)
        return reward

    def value_model(
        self, lora: LoraConfig | None = None, *, init_from: str | os.PathLike | None = None, name: str | None = None
    ) -> PeftModel:
        """A value model for `PPOTrainer(value_model=…)`.

        Args:
            lora: Of a new adapter, whose head begins at zero; None: the default.
            init_from: A saved adapter to begin from: a reward model's with its head, or a policy's with a head of zeros.
            name: By which the role is known. None: "value", or the saved adapter's folder.
        """
        adapter = self._adapter("value_model", lora, init_from)
        return self._role("value", name, adapter, lambda: scorer_over(self.model, seed=None), TaskType.SEQ_CLS)

    def _adapter(self, method: str, lora: LoraConfig | None, init_from: str | os.PathLike | None) -> Adapter:
        if lora is not None and not isinstance(lora, LoraConfig):
            raise ValueError(
                f"SharedBase.{method}({lora!r}): expected a LoraConfig. A saved adapter is init_from={lora!r}."
            )
        return _one_of(method, "lora", lora, init_from)

    def _role(
        self, kind: str, name: str | None, adapter: Adapter, make_tree: Callable[[], PreTrainedModel], task: TaskType
    ) -> PeftModel:
        """Make a role, know it by its name, and let it guard the base."""
        self.check_frozen()
        self.check_whole(coming=1)
        key = f"{kind} {name or _default_name(kind, adapter)}"
        self._check_name(key)
        saved = _saved(adapter)
        if saved is None:
            role = new_adapter(make_tree(), adapter, task=task, call=f"SharedBase, {key}")
        else:
            role = saved_adapter(make_tree(), saved, task=task, call=f"SharedBase, {key}", base=self.name)
        role.is_loaded_in_8bit = role.is_loaded_in_4bit = False  # or TRL would cut its adapter to bf16
        guard(role, self)
        self.check_frozen()
        self._roles[key] = role
        return role

    def _check_name(self, key: str) -> None:
        if key in self._roles:
            gc.collect()  # a role that nobody holds may wait for it
        if key in self._roles:
            kind, name = key.split(" ", 1)
            raise ValueError(
                f"SharedBase: there is a {kind} named {name!r} already. Give another name=…, or delete that role and "
                "all that holds it first."
            )

    # The base itself

    def check_frozen(self) -> None:
        """Raise a ValueError if a tensor of the base requires a gradient: training it would move every role."""
        thawed = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        if thawed:
            raise ValueError(
                f"SharedBase({self.name!r}): {len(thawed)} tensors of the base require gradients, e.g. {thawed[0]!r}, "
                "and training them would change every role. Freeze them with base.model.requires_grad_(False), and "
                "train adapters only."
            )

    def check_whole(self, *, coming: int = 0) -> None:
        """Raise a ValueError where an engine is to cut the base, or has cut it, which is one role's part, under several.

        Args:
            coming: How many more roles there will be.
        """
        engine = engine_asked()
        if engine is None or len(self._roles) + coming < 2:
            return
        gc.collect()  # a role that nobody holds may wait for it
        if len(self._roles) + coming > 1:
            refuse_engine(engine, trainer="SharedBase with several roles", why=CUT)

    def roles(self) -> dict[str, PeftModel]:
        """The roles in use, by kind and name."""
        return dict(self._roles)

    def memory(self) -> dict[str, int]:
        """Bytes of the base, and of what each role adds to it; each storage is counted once."""
        own = {key: storage_bytes(role, besides=(self.model,)) for key, role in self._roles.items()}
        return {"base": storage_bytes(self.model)} | own

    def to(self, device: str | torch.device) -> "SharedBase":
        """Move the base and its roles, so that somebody else can have the card meanwhile; sharing stays as it was.

        Gradients and optimizer states stay where they are. Also moves 8-bit and 4-bit weights, which transformers'
        own `to` refuses.
        """
        device = _checked_device(device)
        slots = [slot for module in (self.model, *self._roles.values()) for slot in tensor_slots(module)]
        moving = _elsewhere(slots, device)
        replace_storages(moving, lambda storage, slot: storage.to(device=device))
        if moving and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self

    def merge(self, adapter: str | os.PathLike, output_dir: str | os.PathLike, **options) -> Merged:
        """Write a policy for serving, adapter merged in, that plain transformers loads; see `merge_adapter`."""
        return merge_adapter(self, adapter, output_dir, **options)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{key}: {size / 2**20:.1f} MiB" for key, size in self.memory().items())
        return f"SharedBase({self.name!r}, {sizes})"


def guard(role: PeftModel, base: SharedBase) -> None:
    """Let each pass of a role check first that the base is whole, in training that it is frozen too; refuse to merge into it.

    A role may be given to any trainer, and an engine be asked for behind that: what accelerate then knows is seen in each pass,
    also in those of the model below it, of which sampling makes use. Trainers of this package ask before.
    """
    for merge in ("merge_adapter", "merge_and_unload"):
        setattr(role, merge, _refuse_to_merge)
        setattr(role.base_model, merge, _refuse_to_merge)
    reference = weakref.ref(base)  # a copy of the role must not copy the base

    def check(module, args):
        owner = reference()
        if owner is not None:
            owner.check_whole()
            if module.training:
                owner.check_frozen()

    for module in (role, role.base_model.model):
        module.register_forward_pre_hook(check)
    ask_before_cutting(role, lambda: reference() and reference().check_whole())


def _refuse_to_merge(*args, **kwargs):
    raise ValueError(
        "A role of a SharedBase cannot be merged in place: the base below is every other role's too. base.merge(adapter, "
        "folder) writes a merged model. TRL's use_vllm merges at each update, so it does not go with a SharedBase; sample "
        "with transformers."
    )


def _elsewhere(slots: list[Slot], device: torch.device) -> list[Slot]:
    return [slot for slot in slots if getattr(*slot).device != device]


def _checked_device(device: str | torch.device) -> torch.device:
    """With its index, as tensors have it."""
    device = checked_device(device, call=f"SharedBase.to({str(device)!r})")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _one_of(method: str, name: str, given: Adapter, init_from: str | os.PathLike | None) -> Adapter:
    """What a role begins as: a new adapter or a saved one."""
    if given is not None and init_from is not None:
        raise ValueError(
            f"SharedBase.{method}({name}=…, init_from={str(init_from)!r}): a saved adapter has its own LoRA settings. "
            "Give one of the two."
        )
    return given if init_from is None else init_from


def _saved(adapter: Adapter) -> str | os.PathLike | None:
    """Where a saved adapter lies; None for a new one."""
    return None if isinstance(adapter, PeftConfig) else adapter


def _default_name(kind: str, adapter: Adapter) -> str:
    saved = _saved(adapter)
    return kind if saved is None else Path(os.fspath(saved)).name
