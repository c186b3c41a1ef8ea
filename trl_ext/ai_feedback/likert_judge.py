"""Who grades: a causal LM, its tokenizer and what it is asked. N completions, 10 grades."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.ai_feedback.likert_prompts import Asked, fitted
from trl_ext.sequences.grouped_choices import grouped_log_probs
from trl_ext.sequences.option_log_probs import Choice, option_ids
from trl_ext.sequences.vocabulary import check_ids
from trl_ext.sequences.windows import model_window
from trl_ext.shared_base.given_policy import given_policy
from trl_ext.trainer_kit.device import default_device

GRADES = tuple(str(grade) for grade in range(1, 11))
Judge = PreTrainedModel | PeftModel


@dataclass
class LikertJudge:
    """Reads how likely a model answers with each grade.

    Args:
        model, tokenizer: A causal LM's.
        question: What is asked, of the texts that it is filled with.
        max_length: Longest question in tokens; None: the model's window, less a grade.
        batch_size: Questions per pass.
    """

    model: Judge
    tokenizer: PreTrainedTokenizerBase
    question: Callable[[Asked], str]
    max_length: int | None
    batch_size: int

    def log_probs(self, asked: list[Asked]) -> tuple[Tensor, int]:
        """log P of each grade, `(N, 10)` in float64, and how many questions were cut; one that comes again is asked once."""
        place = {each: i for i, each in enumerate(dict.fromkeys(asked))}
        choices = [self._read(each) for each in place]
        check_ids(
            (choice.context for choice in choices), self.tokenizer, self.model.config, call="LikertReward(model=…)"
        )
        cut = {each for each, choice in zip(place, choices, strict=True) if len(choice.context) > self._room(choice)}
        choices = [
            self._shortened(each, choice) if each in cut else choice
            for each, choice in zip(place, choices, strict=True)
        ]
        found = self._asked([each.prompt for each in place], choices)
        if found.isnan().any(1).all():
            raise ValueError(
                f"LikertReward(model=…): the judge gives NaN for all of {len(found)} completions. Load it in fp32 or bf16, or "
                "take another."
            )
        return found[[place[each] for each in asked]], sum(each in cut for each in asked)

    def _asked(self, prompts: list[str], choices: list[Choice]) -> Tensor:
        """log P of the options, `(N, 10)`; completions of one long prompt are read behind it, and it once."""
        return grouped_log_probs(self.model, choices, prompts, batch_size=self.batch_size)

    def _read(self, asked: Asked, grades: Sequence[str] = GRADES) -> Choice:
        """The question and the grades behind it: the user's turn and the next, or text and its next word."""
        if self.tokenizer.chat_template is None:
            return option_ids(self.question(asked), [f" {grade}" for grade in grades], self.tokenizer)
        return option_ids([{"role": "user", "content": self.question(asked)}], grades, self.tokenizer)

    def _room(self, choice: Choice) -> float:
        """Tokens that a question may take."""
        window = (model_window(self.model.config) or math.inf) - max(map(len, choice.options))
        return min(self.max_length or math.inf, window)

    def _shortened(self, asked: Asked, choice: Choice) -> Choice:
        room = self._room(choice)
        short = self._read(fitted(asked, fits=lambda each: len(self._read(each, GRADES[-2:]).context) <= room))
        if len(short.context) > room:
            raise ValueError(
                f"LikertReward(max_length={self.max_length}): its question alone, without prompt and completion, has "
                f"{len(short.context)} tokens, and there is room for {room}. Give a shorter template or rubric, or a judge "
                "with a larger window."
            )
        return short


def given_judge(
    model: Judge | str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None, device: str | torch.device | None
) -> tuple[Judge, PreTrainedTokenizerBase]:
    """A judge that is given, as it is, or the one at a path, which is loaded once per process and device."""
    if isinstance(model, str | os.PathLike):
        return _loaded(os.fspath(model), tokenizer, torch.device(device or default_device()))
    if device is not None:
        raise ValueError(
            f"LikertReward(model=<{type(model).__name__}>, device={device}): a model that is given is used where it is. Move "
            "it yourself, and leave `device` out."
        )
    return given_policy(model, None, tokenizer, device=default_device(), call="LikertReward(model=…)")


@functools.cache
def _loaded(
    path: str, tokenizer: PreTrainedTokenizerBase | None, device: torch.device
) -> tuple[Judge, PreTrainedTokenizerBase]:
    model, tokenizer = given_policy(path, None, tokenizer, device=device, call=f"LikertReward(model={path!r})")
    return model.requires_grad_(False).eval(), tokenizer
