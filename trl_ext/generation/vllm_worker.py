"""vLLM for one Grow, in a process of its own: reads a specification, writes each finished part.

    python -m trl_ext.generation.vllm_worker spec.json

`VLLMGenerator` starts it. It ends by itself when its standard input closes, that is, when its parent is gone.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from trl_ext.sequences.tokenizers import tokenizer_beside, tokenizer_fingerprint
from trl_ext.trainer_kit.whole_files import written_whole

PARENT_IS_GONE = 3


def main(spec_path: str) -> None:
    """Make all parts that the specification names.

    Args:
        spec_path: A JSON file, as `VLLMGenerator` writes it.
    """
    spec = json.loads(Path(spec_path).read_text())
    check_tokenizer(spec["engine"], spec["tokenizer"])
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise ImportError('VLLMGenerator needs vLLM: pip install "trl-ext[vllm]"') from error
    llm = LLM(**spec["engine"])
    adapter = LoRARequest("policy", 1, spec["adapter"]) if spec["adapter"] else None
    for parts in batches(spec["parts"], spec["prompts_at_once"]):
        prompts = [prompt for part in parts for prompt in part["prompts"]]
        outputs = llm.generate(
            [{"prompt_token_ids": prompt["ids"]} for prompt in prompts],
            [sampling_params(spec, seed=prompt["seed"]) for prompt in prompts],
            use_tqdm=False,
            lora_request=adapter,
        )
        answers = iter(outputs)
        for part in parts:
            done = [completions(next(answers), spec) for _ in part["prompts"]]
            with written_whole(part_file(Path(spec["folder"]), part["index"])) as partial:
                partial.write_text(json.dumps(done))


def part_file(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.json"


def check_tokenizer(engine: dict[str, Any], fingerprint: str) -> None:
    """Raise if ids of the policy's tokenizer mean something else to the model that vLLM serves."""
    served = engine.get("tokenizer") or engine["model"]
    theirs = tokenizer_fingerprint(tokenizer_beside(served, call=f"VLLMGenerator(model={engine['model']!r})"))
    if theirs != fingerprint:
        raise ValueError(
            f"VLLMGenerator(model={engine['model']!r}): a generator with another tokenizer: {served} has the "
            f"vocabulary {theirs}, the policy has {fingerprint}. Give the model that the policy was made from, or, if "
            "tokens were only added, engine_kwargs={'tokenizer': a folder with the policy's tokenizer}."
        )


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


def sampling_params(spec: dict[str, Any], *, seed: int):
    """One prompt's settings. vLLM refuses several samples at temperature 0, which would be equal anyway.

    Text is made from the ids by the policy's tokenizer, so vLLM need not.
    """
    from vllm import SamplingParams

    sampling = spec["sampling"]
    return SamplingParams(
        n=1 if sampling["temperature"] == 0 else sampling["num_generations"],
        temperature=sampling["temperature"],
        top_p=sampling["top_p"],
        top_k=sampling["top_k"],
        min_p=sampling["min_p"] or 0.0,
        repetition_penalty=sampling["repetition_penalty"],
        max_tokens=sampling["max_completion_length"],
        seed=seed,
        stop_token_ids=spec["end_token_ids"],
        detokenize=False,
    )


def completions(output, spec: dict[str, Any]) -> list[tuple[list[int], bool]]:
    """The token ids of a prompt's samples, each with whether it came to its own end, with its end token."""
    ends, samples = spec["end_token_ids"], []
    for sampled in sorted(output.outputs, key=lambda sampled: sampled.index):
        ids, ended = list(sampled.token_ids), sampled.finish_reason == "stop"
        if ended and not (ids and ids[-1] in (*ends, sampled.stop_reason)):
            ids += ends[:1] if sampled.stop_reason is None else [sampled.stop_reason]
        samples.append((ids, ended))
    return samples * (spec["sampling"]["num_generations"] // len(samples))


def end_with_parent(descriptor: int, end: Callable[[int], None] = os._exit) -> None:
    """End the process when the pipe that the parent holds closes, so that no card stays taken after a kill.

    Read without a buffer: a thread that holds a buffer's lock would abort the interpreter at its regular end.
    """
    os.read(descriptor, 1)
    end(PARENT_IS_GONE)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(sys.stdin.fileno(),), daemon=True).start()
    main(sys.argv[1])
