"""Samples the policy with transformers, in the process and on the device where it is: the default generator."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from trl_ext.generation.batching import Batcher
from trl_ext.generation.decoding import complete
from trl_ext.generation.drawing import seeded_uniforms
from trl_ext.generation.protocol import Part, Policy, Sampling, read_again
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.windows import check_windows
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import AT_LEAST_1
from trl_ext.trainer_kit.passes import caches_attention_only, eval_mode, under_adapter
from trl_ext.trainer_kit.seeds import stable_seed

CALL = "TransformersGenerator.generate"


class TransformersGenerator:
    """Samples with transformers: every row stops at its own end, and ended rows leave their batch.

    Each completion is drawn from a stream of its own, seeded by (seed, row, sample), by the inverse of the
    distribution function. So it depends on its prompt, its seed and the weights only. Batch size, order, number of
    processes and retries after running out of memory change no more than the rounding of logits. In fp32 it almost
    never decides a token, in 16 bits now and then; on an 8-bit base with outliers (`llm_int8_threshold` > 0), which
    are looked for in a whole batch, more often. The same batches give the same samples.

    Args:
        batch_size: Completions sampled at once. None: on CUDA what half of the free memory holds, counted by the
            bytes that the model's cache takes per token; on the CPU 64. Out of CUDA memory, it is halved.
    """

    name = "transformers"
    gives_log_probs = False

    def __init__(self, *, batch_size: int | None = None):
        self.batch_size = checked("TransformersGenerator", "batch_size", batch_size, int | None, AT_LEAST_1)

    def generate(
        self, parts: Iterable[Part], sampling: Sampling, policy: Policy
    ) -> Iterator[tuple[Part, list[Sample]]]:
        """Yield each part with its samples, in order of row and sample. All prompts are checked before any is sampled.

        Raises:
            ValueError: For a model that cannot be sampled from here, a prompt without tokens or with too many for the
                model's window, or memory that holds not even one completion.
        """
        parts = read_again(parts)
        model = checked_model(policy.model)
        for part in parts:
            check_prompts(policy, part, room=sampling.max_completion_length)
        end_ids = policy.end_token_ids(prompt for part in parts for prompt in part.prompts)
        with eval_mode(model):
            batcher = Batcher(model, batch_size=self.batch_size, room=sampling.max_completion_length)
        for part in parts:
            with eval_mode(model):
                samples = part_samples(part, sampling, policy, batcher, end_ids)
            yield part, samples

    def check_policy(self, policy: Policy, sampling: Sampling) -> None:
        """Raise a ValueError for a model that cannot be sampled from here."""
        checked_model(policy.model)

    def settings(self) -> dict[str, Any]:
        return {"generator": self.name}


def part_samples(
    part: Part, sampling: Sampling, policy: Policy, batcher: Batcher, end_ids: frozenset[int]
) -> list[Sample]:
    """All samples of a part's prompts, sampled from the longest prompt to the shortest."""
    prompts = [prompt for prompt in part.prompts for _ in range(sampling.num_generations)]
    rows = [(row, sample) for row in part.rows for sample in range(sampling.num_generations)]
    prompt_ids = [ids for ids in map(policy.prompt_ids, part.prompts) for _ in range(sampling.num_generations)]
    seeds = [stable_seed(sampling.seed, row, sample) for row, sample in rows]
    completion_ids = sample_tokens(prompt_ids, seeds, sampling, policy, batcher, end_ids)
    texts = policy.completion_texts(prompts, completion_ids)
    return [
        Sample(
            row=row,
            sample=sample,
            prompt=prompt,
            completion=text,
            prompt_ids=ids,
            completion_ids=new_ids,
            ended=new_ids[-1] in end_ids,
            generator=TransformersGenerator.name,
            seed=seed,
        )
        for (row, sample), prompt, text, ids, new_ids, seed in zip(
            rows, prompts, texts, prompt_ids, completion_ids, seeds, strict=True
        )
    ]


def sample_tokens(
    prompt_ids: list[list[int]],
    seeds: list[int],
    sampling: Sampling,
    policy: Policy,
    batcher: Batcher,
    end_ids: frozenset[int],
) -> list[list[int]]:
    """A completion for each prompt and seed, in their order."""
    longest_first = sorted(range(len(seeds)), key=lambda i: -len(prompt_ids[i]))

    def run(prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        uniforms = torch.stack([seeded_uniforms(seed, sampling.max_completion_length) for seed in seeds])
        return complete(policy.model, prompts, uniforms, sampling=sampling, end_ids=end_ids)

    done = batcher.run([prompt_ids[i] for i in longest_first], [seeds[i] for i in longest_first], run)
    return [ids for _, ids in sorted(zip(longest_first, done, strict=True))]


def checked_model(model: PreTrainedModel | PeftModel | None) -> PreTrainedModel | PeftModel:
    """The model, or a ValueError where its completions cannot be decoded a token at a time, row by row."""
    if model is None:
        raise ValueError(f"{CALL}: the policy has no model. Give Policy(model=…), or use another generator.")
    kind = type(under_adapter(model)).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{CALL}: {kind} is an encoder–decoder. Give a decoder of text, or use another generator.")
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(f"{CALL}: adapters of virtual tokens are not supported. Use LoRA, or another generator.")
    if not caches_attention_only(model):
        raise ValueError(
            f"{CALL}: {kind} keeps a state other than the keys and values of attention, from which ended rows cannot "
            "be taken. Use another generator, e.g. VLLMGenerator."
        )
    return model


def check_prompts(policy: Policy, part: Part, *, room: int) -> None:
    """Raise a ValueError for a prompt of no tokens, or of so many that `room` more are beyond the model's window."""
    check_windows(
        part.prompts,
        policy.tokenizer,
        policy.model.config,
        max_completion_length=room,
        call=CALL,
        template_kwargs=policy.chat_template_kwargs,
        rows=part.rows,
    )
    for row, prompt in zip(part.rows, part.prompts, strict=True):
        if not policy.prompt_ids(prompt):
            raise ValueError(
                f"{CALL}: the prompt of row {row} has no tokens, so there is nothing to begin after. Give it text, or "
                "a tokenizer that begins with a token of its own."
            )
