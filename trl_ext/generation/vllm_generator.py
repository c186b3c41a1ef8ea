"""Samples of the policy through vLLM, which runs in a process of its own while the policy is off the card."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel

from trl_ext.generation.card_turns import vllms_turn
from trl_ext.generation.protocol import Part, Policy, Sampling, read_again
from trl_ext.generation.vllm_checks import base_of, check_adapted, check_installed, check_served
from trl_ext.generation.vllm_engine import DTYPES, checked_engine_kwargs, engine_of, save_whole
from trl_ext.generation.vllm_process import VLLMProcess, environment
from trl_ext.generation.vllm_requests import longest_of, request_of, samples_of, save_adapter
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.template_check import check_template
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.config_checks import check_config
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule, without

RULES = {
    "dtype": Rule(words=DTYPES),
    "work_dir": Rule(
        fits=lambda path: isinstance(path, str | Path) and Path(path).is_dir(), expected="a folder that is there"
    ),
    "gpu_memory_utilization": Rule(
        above=0.0, high=1.0, expected="a share in (0, 1]", needs=without("kv_cache_memory_bytes", "that says how much")
    ),
    "kv_cache_memory_bytes": AT_LEAST_1,
    "max_model_len": AT_LEAST_1,
    "prompts_at_once": AT_LEAST_1,
}


@dataclass(eq=False)
class VLLMGenerator:
    """Samples the policy with vLLM, many times faster than transformers on a GPU.

    vLLM is started once, by the first call, with the base in the precision that it serves; each call sends it the policy's
    adapter as LoRA, nothing merged. It is started anew where more must fit than it was started for: a longer sequence, a
    higher rank; and once a call if it crashes. On a card it sleeps between calls, and during them the training weights
    wait in the computer's memory. A policy without adapter is saved and served whole: vLLM is then started for each call.

    Args:
        model: Base that vLLM serves, id or path; None: the one that the policy's adapter names.
        dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is the checkpoint's.
        gpu_memory_utilization: Share of the card that vLLM takes, in (0, 1].
        kv_cache_memory_bytes: Bytes of keys and values, in the place of that share, as `memory_plan(generator="vllm")`
            counts them; None: the share's, on a CPU 1 GiB.
        max_model_len: Longest prompt with completion, in tokens; None: the longest so far, rounded up to a power of two.
        engine_kwargs: Further arguments of `vllm.LLM` than these, as JSON takes them, e.g. {"tensor_parallel_size": 2}; with
            {"quantization": "bitsandbytes"} and vllm-bnb-plugin the base is served in NF4, as one that is trained in 4 bits.
        work_dir: Where the adapter, or the whole policy, and finished parts are kept meanwhile; None: the system's
            folder for temporary files.
        prompts_at_once: Small parts are sampled together up to this many prompts. Larger keeps the card fuller, smaller
            loses less if the run dies.
    """

    model: str | None = None
    _: KW_ONLY
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    max_model_len: int | None = None
    engine_kwargs: dict[str, Any] | None = None
    work_dir: str | Path | None = None
    prompts_at_once: int = 128

    name = "vllm"
    _process: VLLMProcess | None = field(default=None, init=False, repr=False)
    _checked: str | None = field(default=None, init=False, repr=False)  # fingerprint of the tokenizer
    _sent: int = field(default=0, init=False, repr=False)  # adapters
    _expected: int = field(default=1, init=False, repr=False)  # tokens

    def __post_init__(self):
        check_config(self, RULES)
        self.engine_kwargs = checked_engine_kwargs(self.engine_kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_process"}  # a copy starts its own

    def settings(self) -> dict[str, Any]:
        decisive = ("model", "dtype", "max_model_len", "engine_kwargs")
        return {"generator": self.name} | {name: getattr(self, name) for name in decisive}

    def expect(self, tokens: int) -> None:
        """Start vLLM with room for so long a prompt with completion, so that it need not be started anew for it."""
        self._expected = max(self._expected, tokens)

    def close(self) -> None:
        """End vLLM; the next call starts it again."""
        if self._process is not None:
            self._process.close()
        self._process = None

    def check_policy(self, policy: Policy, sampling: Sampling) -> None:
        """Raise an error for what vLLM, as it is installed here, cannot serve. It is not started for that.

        Raises:
            ImportError: Without vLLM.
            ValueError: For a vLLM of another version; a policy that is more than a causal LM with one plain LoRA; a base
                without an id or path, of other weights or another tokenizer, or that needs what is not installed.
        """
        if self.max_model_len is not None and self.max_model_len <= sampling.max_completion_length:
            raise ValueError(
                f"VLLMGenerator(max_model_len={self.max_model_len}): completions of {sampling.max_completion_length} tokens leave "
                "no room for a prompt. Raise it, or leave it out."
            )
        check_served(policy, self.model, self.engine_kwargs, self.dtype)
        check_installed(call="VLLMGenerator")

    def generate(
        self, parts: Iterable[Part], sampling: Sampling, policy: Policy
    ) -> Iterator[tuple[Part, list[Sample]]]:
        """Yield each part as soon as vLLM has finished it. The policy must not be called until the last has come.

        Raises:
            ImportError, ValueError: As `check_policy`; for prompts that are too long for `max_model_len`.
            RuntimeError: If vLLM fails; it ends with the end of vLLM's own output.
        """
        parts = read_again(parts)
        for part in parts:
            options = {"call": "VLLMGenerator.generate", "template_kwargs": policy.chat_template_kwargs}
            check_template(part.prompts, policy.tokenizer, rows=part.rows, **options)
        self._check_call(policy, sampling)
        request = request_of(parts, sampling, policy, prompts_at_once=self.prompts_at_once)
        self._check_fit(longest_of(request))
        places = {asked["index"]: place for place, asked in enumerate(request["parts"])}
        with vllms_turn(policy.model, lambda: self._process_for(policy)) as process:
            adapter = self._next_adapter(policy, process.folder) if isinstance(policy.model, PeftModel) else None
            with closing(process.ask(request | {"adapter": adapter})) as finished:
                for index, answers in finished:
                    part, asked = parts[places[index]], request["parts"][places[index]]["prompts"]
                    yield part, samples_of(part, asked, answers, policy)
            if adapter is None:  # the policy may be another by the next call
                self.close()

    def _check_call(self, policy: Policy, sampling: Sampling) -> None:
        """`check_policy`; of a policy that the running vLLM was checked for, what may have changed."""
        if self._process is not None and self._process.is_busy:
            raise ValueError(
                "VLLMGenerator.generate: the call before has not been read to its end. Read it, or close it, first."
            )
        fingerprint = tokenizer_fingerprint(policy.tokenizer)
        is_checked = self._process is not None and self._process.is_alive and self._checked == fingerprint
        if is_checked and isinstance(policy.model, PeftModel):
            check_adapted(policy.model, self.model, self.engine_kwargs)
        else:
            self.check_policy(policy, sampling)
            self._checked = fingerprint

    def _check_fit(self, longest: int) -> None:
        if self.max_model_len is not None and longest > self.max_model_len:
            raise ValueError(
                f"VLLMGenerator(max_model_len={self.max_model_len}): the longest prompt with its completion has {longest} "
                "tokens. Raise it, or leave it out."
            )
        self.expect(longest)

    def _next_adapter(self, policy: Policy, folder: Path) -> dict[str, Any]:
        self._sent += 1
        return save_adapter(policy, folder, self._sent)

    def _process_for(self, policy: Policy) -> VLLMProcess:
        """The one that sleeps, woken, if it serves this policy, else a new one in its place."""
        has_adapter = isinstance(policy.model, PeftModel)
        if has_adapter:
            engine = self._engine(policy, base_of(policy.model, self.model))
            if self._process is not None and self._process.serves(engine) and self._process.wakes():
                return self._process
        self.close()
        folder = Path(tempfile.mkdtemp(dir=self.work_dir, prefix="trl-ext-vllm-"))
        try:
            engine = engine if has_adapter else self._engine(policy, save_whole(policy, folder))
            self._process = VLLMProcess(engine, environment(policy.model.device, engine), folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self._process

    def _engine(self, policy: Policy, model: str) -> dict[str, Any]:
        own = {"gpu_memory_utilization": self.gpu_memory_utilization} if self.kv_cache_memory_bytes is None else {}
        if self.max_model_len is not None:
            own["max_model_len"] = self.max_model_len
        return engine_of(
            policy,
            model,
            dtype=self.dtype,
            tokens=self._expected,
            cache=self.kv_cache_memory_bytes,
            given=own | self.engine_kwargs,
        )
