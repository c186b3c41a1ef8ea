"""Samples of the policy through vLLM, which runs in a process of its own while the policy is off the card."""

import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoConfig

from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.vllm_process import environment, finished_parts, worker
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.template_check import check_template
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.config_checks import check_config
from trl_ext.trainer_kit.offloading import off_the_card
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule
from trl_ext.trainer_kit.seeds import stable_seed

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as max_lora_rank
RULES = {
    "gpu_memory_utilization": Rule(above=0.0, high=1.0, expected="a share in (0, 1]"),
    "max_model_len": AT_LEAST_1,
    "prompts_at_once": AT_LEAST_1,
}


@dataclass(eq=False)
class VLLMGenerator:
    """Samples the policy with vLLM, many times faster than transformers on a GPU.

    Each Grow starts vLLM anew, with the base in the precision that vLLM serves and the policy's adapter as LoRA beside
    it, nothing merged. Meanwhile the training weights wait in the computer's memory; afterwards they are moved back.

    Args:
        model: Base that vLLM serves, id or path; None: the one that the policy's adapter names. A policy without
            adapter is saved and served whole.
        dtype: As vLLM has it; "auto" is the checkpoint's.
        gpu_memory_utilization: Share of the card that vLLM takes, in (0, 1].
        max_model_len: Longest prompt with completion, in tokens; None: the longest of the Grow.
        engine_kwargs: Further arguments of `vllm.LLM`, as JSON takes them, e.g. {"tensor_parallel_size": 2}.
        work_dir: Where the adapter, or the whole policy, and finished parts are kept meanwhile; None: the system's
            folder for temporary files.
        prompts_at_once: Small parts are sampled together up to this many prompts. Larger keeps the card fuller, smaller
            loses less if the run dies.
    """

    model: str | None = None
    _: KW_ONLY
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    engine_kwargs: dict[str, Any] | None = None
    work_dir: str | Path | None = None
    prompts_at_once: int = 128

    name = "vllm"

    def __post_init__(self):
        check_config(self, RULES)
        try:
            json.dumps(self.engine_kwargs)
        except TypeError as error:
            raise ValueError(
                f"VLLMGenerator(engine_kwargs={self.engine_kwargs}): they go to another process as JSON ({error}). Give "
                "numbers, strings, lists and dictionaries."
            ) from error
        self.engine_kwargs = self.engine_kwargs or {}

    def settings(self) -> dict[str, Any]:
        decisive = ("model", "dtype", "max_model_len", "engine_kwargs")
        return {"generator": self.name} | {name: getattr(self, name) for name in decisive}

    def generate(
        self, parts: Iterable[Part], sampling: Sampling, policy: Policy
    ) -> Iterator[tuple[Part, list[Sample]]]:
        """Yield each part as soon as vLLM has finished it. The policy must not be called until the last has come.

        Raises:
            RuntimeError: If vLLM fails; it ends with the end of vLLM's own output.
        """
        parts = list(parts)
        if policy.model is None:
            raise ValueError("VLLMGenerator.generate(policy): it has no model, so there is nothing to sample.")
        for part in parts:
            options = {"call": "VLLMGenerator.generate", "template_kwargs": policy.chat_template_kwargs}
            check_template(part.prompts, policy.tokenizer, rows=part.rows, **options)
        with tempfile.TemporaryDirectory(dir=self.work_dir, prefix="trl-ext-vllm-") as folder:
            spec = self._specification(parts, sampling, policy, Path(folder))
            (Path(folder) / "spec.json").write_text(json.dumps(spec))
            variables = environment(policy.model.device, spec)
            asked = {part["index"]: part["prompts"] for part in spec["parts"]}
            with off_the_card(policy.model), worker(Path(folder), variables) as process:
                for part, answers in finished_parts(process, parts, Path(folder)):
                    yield part, samples_of(part, asked[part.index], answers, policy)

    def _specification(self, parts: list[Part], sampling: Sampling, policy: Policy, folder: Path) -> dict[str, Any]:
        """All that the worker needs to know; saves the adapter, or the whole policy, to the folder."""
        prompts = {
            part.index: [_request(row, prompt, sampling, policy) for row, prompt in _rows(part)] for part in parts
        }
        end_ids = policy.end_token_ids(prompt for part in parts for prompt in part.prompts)
        longest = max((len(prompt["ids"]) for asked in prompts.values() for prompt in asked), default=1)
        engine = {
            "dtype": self.dtype,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len or longest + sampling.max_completion_length,
        }
        served, adapter = self._save_adapter(policy, folder) if isinstance(policy.model, PeftModel) else ({}, None)
        served = served or self._save_whole(policy, folder)
        if self.dtype == "auto":
            engine["dtype"] = checkpoint_dtype(served["model"])
        return {
            "engine": engine | served | self.engine_kwargs,
            "adapter": adapter,
            "tokenizer": tokenizer_fingerprint(policy.tokenizer),
            "end_token_ids": sorted(end_ids, key=lambda i: i != policy.tokenizer.eos_token_id),
            "sampling": sampling.settings(),
            "parts": [{"index": index, "prompts": asked} for index, asked in prompts.items()],
            "prompts_at_once": self.prompts_at_once,
            "folder": str(folder),
        }

    def _save_adapter(self, policy: Policy, folder: Path) -> tuple[dict[str, Any], str]:
        """Arguments of vLLM for the base with an adapter, and where the adapter is."""
        active = policy.model.active_adapter
        config = policy.model.peft_config[active]
        base = self.model or policy.model.get_base_model().config._name_or_path
        if not base:
            raise ValueError(
                "VLLMGenerator(model=None): the policy's base has no id or path that vLLM could load. Give model."
            )
        check_lora_alone(policy.model)
        policy.model.save_pretrained(folder / "adapter", selected_adapters=[active], save_embedding_layers=False)
        rank = max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r
        if rank > RANKS[-1]:
            raise ValueError(f"VLLMGenerator: the adapter's rank is {rank}; vLLM takes at most {RANKS[-1]}.")
        engine = {"model": base, "enable_lora": True, "max_lora_rank": next(r for r in RANKS if r >= rank)}
        path = folder / "adapter" if active == "default" else folder / "adapter" / active
        return engine, str(path)

    def _save_whole(self, policy: Policy, folder: Path) -> dict[str, Any]:
        if self.model is not None:
            raise ValueError(
                f"VLLMGenerator(model={self.model!r}): the policy has no adapter, so that model would be sampled "
                "instead of it. Leave model at None: the policy is then saved and served whole."
            )
        policy.model.save_pretrained(folder / "policy")
        policy.tokenizer.save_pretrained(folder / "policy")
        return {"model": str(folder / "policy")}


def checkpoint_dtype(model: str) -> str:
    """As its config has it, since vLLM's own "auto" makes 16 bits of 32; "auto" where it says nothing."""
    dtype = AutoConfig.from_pretrained(model).dtype
    return "auto" if dtype is None else str(dtype).removeprefix("torch.")


def check_lora_alone(model: PeftModel) -> None:
    """Raise a ValueError for an adapter that holds more than vLLM takes of it: embeddings, tokens, whole modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it found embeddings
        names = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    beside = sorted(name for name in names if ".lora_" not in name)
    if beside:
        raise ValueError(
            f"VLLMGenerator: the policy's adapter holds {beside[0]!r} beside its LoRA, which vLLM would sample without. "
            "Serve it merged, or sample with TransformersGenerator."
        )


def _rows(part: Part) -> Iterator[tuple[int, Any]]:
    return zip(part.rows, part.prompts, strict=True)


def _request(row: int, prompt: Any, sampling: Sampling, policy: Policy) -> dict[str, Any]:
    return {"ids": policy.prompt_ids(prompt), "seed": stable_seed(sampling.seed, row)}


def samples_of(part: Part, asked: list[dict], answers: list[list], policy: Policy) -> list[Sample]:
    """A part's samples, in order.

    Args:
        part: What was asked.
        asked: Its prompts as token ids, with their seeds.
        answers: For each prompt, token ids and whether they ended, of each sample.
        policy: Whose tokenizer makes text of them.
    """
    samples = [
        Sample(
            row=row,
            sample=number,
            prompt=prompt,
            completion="",
            prompt_ids=request["ids"],
            completion_ids=ids,
            ended=ended,
            generator=VLLMGenerator.name,
            seed=request["seed"],
        )
        for (row, prompt), request, answer in zip(_rows(part), asked, answers, strict=True)
        for number, (ids, ended) in enumerate(answer)
    ]
    texts = policy.completion_texts(
        [sample["prompt"] for sample in samples], [sample["completion_ids"] for sample in samples]
    )
    return [sample | {"completion": text} for sample, text in zip(samples, texts, strict=True)]
