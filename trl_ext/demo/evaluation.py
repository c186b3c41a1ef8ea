"""How good a policy's answers to held-out questions are."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.demo.stages import COMPLETION_LENGTH, closed_right, learned, r3
from trl_ext.generation.decoding import until_end
from trl_ext.self_training.monitors import distinct
from trl_ext.sequences.log_probs import completion_log_probs
from trl_ext.sequences.texts import wordpunct
from trl_ext.sequences.training_rows import training_row


@dataclass(frozen=True)
class Answers:
    """Sampled answers to questions, and how far the policy went for them."""

    texts: list[str]
    ended: list[bool]
    kl: float  # to the policy after SFT, nats per answer


def pair_accuracy(judge: Path, pairs: list[dict]) -> float:
    """Share of held-out pairs in which the reward model scores the chosen answer higher."""
    reward, prompts = learned(judge), [pair["prompt"] for pair in pairs]
    chosen, rejected = (
        reward(prompts=prompts, completions=[pair[side] for pair in pairs]) for side in ("chosen", "rejected")
    )
    return mean(good > bad for good, bad in zip(chosen, rejected, strict=True))


def sample_answers(policy: Path, start: Path, questions: list[dict], *, seed: int) -> Answers:
    """One answer to each question at temperature 1, and the policy's KL to where PPO started."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model, reference = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (policy, start))
    torch.manual_seed(seed)
    prompts = tokenizer([row["prompt"] for row in questions], padding=True, padding_side="left", return_tensors="pt")
    ids = model.generate(**prompts, max_new_tokens=COMPLETION_LENGTH, do_sample=True, top_k=0)
    kl = [_log_probs(m, ids, prompts) for m in (model, reference)]
    completions = ids[:, prompts["input_ids"].size(1) :]
    return Answers(
        texts=tokenizer.batch_decode(completions, skip_special_tokens=True),
        ended=(completions == tokenizer.eos_token_id).any(1).tolist(),
        kl=(kl[0] - kl[1]).mean().item(),
    )


def _log_probs(model: PreTrainedModel, ids: Tensor, prompts: PreTrainedTokenizerBase) -> Tensor:
    """log p(answer | question) of each row, `(B,)`."""
    ends, answers = frozenset({model.config.eos_token_id}), ids[:, prompts["input_ids"].size(1) :].tolist()
    padded = zip(prompts["input_ids"], prompts["attention_mask"], strict=True)
    asked = [row[mask.bool()].tolist() for row, mask in padded]
    rows = [training_row(prompt, until_end(answer, ends)) for prompt, answer in zip(asked, answers, strict=True)]
    log_probs = completion_log_probs(model, rows, pad_token_id=0, batch_size=len(rows), device=ids.device)
    return torch.tensor([sum(row) for row in log_probs])


def measure(answers: Answers, questions: list[dict], judge: Path) -> dict[str, float]:
    """R³ and each factor, the reward model's score, right closed answers, length, KL and distinct-2."""
    columns = {name: [row[name] for row in questions] for name in questions[0]}
    columns |= {"prompts": columns.pop("prompt"), "completions": answers.texts}
    factors = {}
    score = r3()(**columns, log_metric=factors.__setitem__)
    right = [value for value in closed_right(**columns) if value is not None]
    judged = learned(judge)(**columns, completion_ended=answers.ended)
    return {
        "R³": mean(score),
        "relevance to the question (open)": factors["r3/relevance_prompt"],
        "relevance to the reference (closed)": factors["r3/relevance_reference"],
        "length incentive (open)": factors["r3/length_incentive"],
        "repetition penalty": factors["r3/repetition_penalty"],
        "reward model's score": mean(judged),
        "closed questions answered right": mean(right),
        "words per open answer": mean(_lengths(answers.texts, columns["query_type"], "open")),
        "words per closed answer": mean(_lengths(answers.texts, columns["query_type"], "closed")),
        "KL to SFT per answer (nats)": answers.kl,
        "distinct-2": distinct(answers.texts, n=2),
    }


def _lengths(texts: list[str], query_types: list[str], query_type: str) -> list[int]:
    return [len(wordpunct(text)) for text, kind in zip(texts, query_types, strict=True) if kind == query_type]
