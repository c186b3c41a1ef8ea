"""What vLLM is asked for one prompt, and what it answers, as lists that JSON takes. Runs in vLLM's process."""

from collections.abc import Iterable, Iterator
from typing import Any


def batches(parts: Iterable[dict], prompts_at_once: int) -> Iterator[list[dict]]:
    """Parts that are sampled together, so that small ones keep the card full.

    >>> sizes = [2, 2, 3, 1]
    >>> [len(batch) for batch in batches([{"prompts": ["?"] * size} for size in sizes], 4)]
    [2, 2]
    """
    batch: list[dict] = []
    for part in parts:
        batch.append(part)
        if sum(len(part["prompts"]) for part in batch) >= prompts_at_once:
            yield batch
            batch = []
    if batch:
        yield batch


def sampling_params(request: dict[str, Any], *, seed: int):
    """One prompt's settings. vLLM refuses several samples at temperature 0, which would be equal anyway.

    Text is made from the ids by the policy's tokenizer, so vLLM need not. `logprobs=0` asks for the sampled token's alone.
    """
    from vllm import SamplingParams

    sampling = request["sampling"]
    greedy = sampling["temperature"] == 0
    return SamplingParams(
        n=1 if greedy else sampling["num_generations"],
        temperature=sampling["temperature"],
        top_p=sampling["top_p"],
        top_k=sampling["top_k"],
        min_p=sampling["min_p"] or 0.0,
        repetition_penalty=sampling["repetition_penalty"],
        max_tokens=sampling["max_completion_length"],
        seed=seed,
        stop_token_ids=request["end_token_ids"],
        detokenize=False,
        logprobs=None if greedy else 0,
    )


def completions(output, request: dict[str, Any]) -> list[tuple[list[int], bool, list[float] | None]]:
    """The token ids of a prompt's samples, each with whether it came to its own end, and the ids' log-probabilities.

    The ids hold the end token. The log-probabilities are as many, or None: at temperature 0, where nothing is drawn, and
    where vLLM has cut the end token off, so that its own is not known.
    """
    ends, samples = request["end_token_ids"], []
    for sampled in sorted(output.outputs, key=lambda sampled: sampled.index):
        ids, ended = list(sampled.token_ids), sampled.finish_reason == "stop"
        log_probs = _log_probs(sampled)
        if ended and not (ids and ids[-1] in (*ends, sampled.stop_reason)):
            ids += ends[:1] if sampled.stop_reason is None else [sampled.stop_reason]
            log_probs = None
        samples.append((ids, ended, log_probs))
    return samples * (request["sampling"]["num_generations"] // len(samples))


def _log_probs(sampled) -> list[float] | None:
    if sampled.logprobs is None:
        return None
    return [step[token].logprob for token, step in zip(sampled.token_ids, sampled.logprobs, strict=True)]
