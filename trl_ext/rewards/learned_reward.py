"""A trained reward model as a reward function."""

import functools
import os
import warnings
from collections.abc import Iterable, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.rewards.reward_columns import Columns, check_counts
from trl_ext.rewards.reward_models import load_scorer, score_sequences
from trl_ext.sequences.prompt_rows import check_completions, check_prompts
from trl_ext.sequences.template_check import check_has_template
from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import whole_ids
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.sequences.turn_end import turn_end_id
from trl_ext.sequences.vocabulary import check_ids, check_vocabulary, is_token
from trl_ext.sequences.windows import model_window
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.device import checked_device, default_device
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule


class LearnedReward:
    """Scores each completion with a reward model, on the tokens that `RewardTrainer` would have shown it.

    Prompt and completion are read together: text with the BOS that its tokenizer adds, messages through its chat
    template, and the end token (of messages: of the turn) if and only if the completion ended. TRL itself scores
    text without either, that is, at a position which training never saw. What the policy sampled is decoded and
    tokenised anew, so that policy and reward model need not share a tokenizer; the reward model's chat template is its
    own too, and a trainer's `chat_template_kwargs`, which are for the policy's, do not reach it. Several completions of
    one long prompt, next to each other, are read behind it, and it once.

    Args:
        model: A path or hub id (of a model, or of an adapter), or a sequence-classification model with one label.
        tokenizer: The reward model's; None: the one saved beside it.
        batch_size: Sequences per forward pass; those of like length go together.
        max_length: Longest sequence in tokens; a longer one loses its beginning. None: the model's window.
        eos_token_ids: Tokens with which the policy ends a completion, where it is not said otherwise. None: the
            end token of `tokenizer`, and the one with which its chat template closes an assistant's turn.
        device: Where it runs; None: where the model is, or, loaded from a path, this process's device.

    Attributes:
        module: The model. Each call leaves it in the mode, train or eval, in which it was.
        tokenizer: Its tokenizer.
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        eos_token_ids: int | Iterable[int] | None = None,
        device: str | torch.device | None = None,
    ):
        options = {
            "batch_size": batch_size,
            "max_length": max_length,
            "eos_token_ids": eos_token_ids,
            "device": device,
        }
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self._recipe = functools.partial(type(self), model, tokenizer, **options)
        batch_size, max_length = check_options(batch_size=batch_size, max_length=max_length)
        if device is not None:
            checked_device(device, call=f"LearnedReward(device={str(device)!r})")
        self.module = load_scorer(model) if isinstance(model, str) else _one_label(model)
        source = model if isinstance(model, str) else self.module.config._name_or_path
        self.__name__ = source.rstrip("/").split("/")[-1] or type(self.module).__name__
        self.tokenizer = tokenizer or tokenizer_beside(
            source, self.module.config._name_or_path, call=f"LearnedReward({source or type(self.module).__name__!r})"
        )
        if device is not None or isinstance(model, str):
            self.module.to(default_device() if device is None else device)
        self.batch_size = batch_size
        window = model_window(self.module.config)
        longest = min(window or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        self.max_length = _fitting(max_length, window) or longest
        if eos_token_ids is None:
            eos_token_ids = [i for i in (self.tokenizer.eos_token_id, turn_end_id(self.tokenizer)) if i is not None]
        self.eos_token_ids = _token_ids(eos_token_ids)
        self._pad_token_id = _set_pad_token(self.module, self.tokenizer)
        self._call = f"LearnedReward({self.__name__!r})"
        check_vocabulary(self.tokenizer, self.module.config, call=self._call, pad_token_id=self._pad_token_id)
        self._warned = False

    @property
    def path(self) -> str | None:
        """Where it was loaded from; None where a model was given."""
        model = self._recipe.args[0]
        return model if isinstance(model, str) else None

    def __reduce__(self):
        return super().__reduce__() if self.path is None else (self._recipe, ())

    def __call__(
        self,
        *,
        prompts: list[Text],
        completions: list[Text],
        completion_ids: list[list[int]] | None = None,
        completion_ended: list[bool] | None = None,
        **columns,
    ) -> list[float]:
        """One score per completion.

        Args:
            prompts, completions: Text, or messages.
            completion_ids: What the policy sampled; a completion ended if its last token is one of `eos_token_ids`.
            completion_ended: Which completions ended, if that is known. Without both, all are taken to have ended.
        """
        call = f"LearnedReward {self.__name__!r}"
        given = {"prompts": prompts, "completions": completions}
        check_counts(given | {"completion_ids": completion_ids, "completion_ended": completion_ended}, call=self._call)
        check_prompts(prompts, call=call, column="prompts", may_be_empty=True)
        check_completions(prompts, completions, call=call, column="completions")
        check_has_template(prompts, self.tokenizer, call=call)
        if completion_ended is None:
            completion_ended = self._ended(completion_ids) if completion_ids is not None else [True] * len(prompts)
        texts = zip(prompts, completions, completion_ended, strict=True)
        ids = self._shortened([self.token_ids(*text) for text in texts])
        check_ids(ids, self.tokenizer, self.module.config, call=self._call)
        keys = [prompt if isinstance(prompt, str) else repr(prompt) for prompt in prompts]
        return score_sequences(self.module, ids, keys, pad_token_id=self._pad_token_id, batch_size=self.batch_size)

    def check_columns(self, columns: Columns, rows: Sequence[int]) -> None:
        """Raise a ValueError for messages that its tokenizer has no chat template for."""
        check_has_template(columns.get("prompts", ())[:1] if rows else (), self.tokenizer, call=self._call)

    def held_model(self) -> PreTrainedModel | PeftModel:
        return self.module

    def token_ids(self, prompt: Text, completion: Text, ended: bool = True) -> list[int]:
        """The tokens of prompt and completion as the reward model was trained to read them."""
        return whole_ids(prompt, completion, self.tokenizer, ended=ended)

    def _ended(self, completion_ids: list[list[int]]) -> list[bool]:
        return [len(ids) > 0 and int(ids[-1]) in self.eos_token_ids for ids in completion_ids]

    def _shortened(self, ids: list[list[int]]) -> list[list[int]]:
        too_long = sum(len(row) > self.max_length for row in ids)
        if too_long and not self._warned:
            self._warned = True
            warnings.warn(
                f"LearnedReward {self.__name__!r}: {too_long} of {len(ids)} sequences are longer than "
                f"max_length={self.max_length} tokens and lose their beginning; said once. Shorten the prompts.",
                stacklevel=3,
            )
        return [row[-self.max_length :] for row in ids]


def check_options(*, batch_size: int = 1, max_length: int | None = None, **others) -> tuple[int, int | None]:
    """Both sizes as whole numbers, or a ValueError for those that no reward model can have."""
    sizes = (("batch_size", batch_size, int), ("max_length", max_length, int | None))
    return tuple(checked("LearnedReward", name, size, kind, AT_LEAST_1) for name, size, kind in sizes)


def _token_ids(given: int | Iterable[int]) -> frozenset[int]:
    ids = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    return frozenset(checked("LearnedReward", "eos_token_ids", ids, list[int], Rule(0, expected="ids of tokens")))


def _fitting(max_length: int | None, window: int | None) -> int | None:
    """A length as given, or a ValueError for one beyond the model's window, where sequences would not be cut in time."""
    if max_length is not None and window is not None and max_length > window:
        raise ValueError(
            f"LearnedReward(max_length={max_length}): the model's window has {window} positions. Give max_length={window} "
            "or less, or leave it out."
        )
    return max_length


def _one_label(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    if model.config.num_labels != 1:
        raise ValueError(
            f"LearnedReward(model={type(model).__name__}): expected a sequence-classification model with one label, "
            f"got {model.config.num_labels} labels. Load it with num_labels=1."
        )
    return model


def _set_pad_token(module: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The model's pad token, by which it finds the last real one.

    Where its config has none, or one that is no token, it is set from the tokenizer, as TRL does; so it is under an
    adapter, whose files do not say with which it was trained, and the base's config knows nothing of it.
    """
    config = module.config.get_text_config()
    own = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if own is not None and (isinstance(module, PeftModel) or not is_token(config.pad_token_id, config)):
        config.pad_token_id = own
    if config.pad_token_id is None:
        raise ValueError(
            f"LearnedReward({type(module).__name__}): neither the model nor its tokenizer has a pad token. Set "
            "`tokenizer.pad_token`."
        )
    return config.pad_token_id
