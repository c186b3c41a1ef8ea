"""What is sent to vLLM's process, and what becomes of its answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.vllm_worker import ADAPTERS
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit.seeds import stable_seed


def request_of(parts: Sequence[Part], sampling: Sampling, policy: Policy, *, prompts_at_once: int) -> dict[str, Any]:
    """All that vLLM needs to know but the adapter, as JSON takes it."""
    ends = policy.end_token_ids(prompt for part in parts for prompt in part.prompts)
    return {
        "end_token_ids": sorted(ends, key=lambda i: i != policy.tokenizer.eos_token_id),
        "sampling": sampling.settings(),
        "parts": [
            {"index": part.index, "prompts": [_asked(row, prompt, sampling, policy) for row, prompt in _rows(part)]}
            for part in parts
        ],
        "prompts_at_once": prompts_at_once,
    }


def longest_of(request: dict[str, Any]) -> int:
    """Tokens of the longest prompt with its completion."""
    prompts = [len(prompt["ids"]) for part in request["parts"] for prompt in part["prompts"]]
    return max(prompts, default=1) + request["sampling"]["max_completion_length"]


def save_adapter(policy: Policy, folder: Path, number: int) -> dict[str, Any]:
    """The policy's active adapter in a folder of its own, under a name and number of its own."""
    name, active = ADAPTERS.format(number), policy.model.active_adapter
    policy.model.save_pretrained(folder / name, selected_adapters=[active], save_embedding_layers=False)
    path = folder / name if active == "default" else folder / name / active
    return {"id": number, "name": name, "path": str(path), "folder": str(folder / name)}


def _rows(part: Part) -> Iterator[tuple[int, Any]]:
    return zip(part.rows, part.prompts, strict=True)


def _asked(row: int, prompt: Any, sampling: Sampling, policy: Policy) -> dict[str, Any]:
    return {"ids": policy.prompt_ids(prompt), "seed": stable_seed(sampling.seed, row)}


def samples_of(part: Part, asked: list[dict], answers: list[list], policy: Policy) -> list[Sample]:
    """A part's samples, in order.

    Args:
        part: What was asked.
        asked: Its prompts as token ids, with their seeds.
        answers: For each prompt, token ids, whether they ended, and their log-probabilities, of each sample.
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
            generator="vllm",
            seed=request["seed"],
            log_probs=log_probs,
        )
        for (row, prompt), request, answer in zip(_rows(part), asked, answers, strict=True)
        for number, (ids, ended, log_probs) in enumerate(answer)
    ]
    texts = policy.completion_texts(
        [sample["prompt"] for sample in samples], [sample["completion_ids"] for sample in samples]
    )
    return [sample | {"completion": text} for sample, text in zip(samples, texts, strict=True)]
