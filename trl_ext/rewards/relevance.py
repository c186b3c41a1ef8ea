"""Relevance of a completion to its question or to a reference answer. N completions, D dimensions."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trl_ext.rewards.encoder import (
    PROBES,
    common_length,
    encode,
    is_missing_folder,
    is_sentence_transformer,
    load_encoder,
)
from trl_ext.rewards.relevance_cache import kept_vectors
from trl_ext.rewards.reward_columns import Columns, check_counts, checked_references
from trl_ext.rewards.similarities import mean_to_others, places, similarities
from trl_ext.sequences.prompt_rows import check_prompts
from trl_ext.sequences.texts import last_user_text, last_user_texts, text_of
from trl_ext.trainer_kit.config_checks import check_config
from trl_ext.trainer_kit.device import checked_device, checked_dtype, default_device
from trl_ext.trainer_kit.option_rules import AT_LEAST_1

SOME_NAN = (
    "RelevanceReward(encoder=…): the encoder gives NaN or infinity for some texts. Their scores are NaN, which trainers refuse, "
    "or leave out (invalid_scores='drop'). Load it in fp32 (dtype='float32'), or take another."
)


@dataclass(frozen=True)
class RelevanceReward:
    """How near a completion's vector is to its prompt's, or to its reference answer's (R³, arXiv:2402.03469).

        r_x = M(x) · M(ŷ)    to="prompt": x is the last user turn, without template or system prompt
        r_y = M(y) · M(ŷ)    to="reference": y is the column `reference`

        r_x − mean r_x'       contrast=True: x' are the other prompts of the batch

    M is the masked mean of an encoder's last hidden state. Alone it is easily gamed, by copying the question; R³
    multiplies it by length and by lack of repetition.

        RelevanceReward()                                                   # facebook/contriever, as in the paper
        RelevanceReward("facebook/mcontriever", to="reference")             # any encoder, by id or by folder
        RelevanceReward(AutoModel.from_pretrained(p), tokenizer=AutoTokenizer.from_pretrained(p))
        RelevanceReward(SentenceTransformer("BAAI/bge-m3"), similarity="cosine")

    Args:
        encoder: Id or folder, loaded frozen on first use and shared by all rewards that name it; only the name is
            pickled, and the latest vectors of prompts and references are kept (256 MiB at most). Or an object: a
            transformers model with its `tokenizer`, or a `SentenceTransformer`, which pools in its own way, as does a
            local folder of one. An object is put into eval mode and otherwise left alone; nothing of it is kept, since
            its weights are yours to change.
        tokenizer: Only for a transformers model given as an object.
        to: `"prompt"` or `"reference"`.
        similarity: `"dot"` (unbounded, about 1 for Contriever) or `"cosine"` (in [−1, 1]).
        contrast: Take off the mean relevance to the batch's other prompts, which the similarities of an encoder such
            as Contriever mostly consist of. The score then depends on the batch, may be negative, and means nothing
            where all prompts are equal. Only to="prompt"; not the paper's form.
        max_length: Longest text in tokens; beginnings are cut, and never more is read than the encoder's window.
        batch_size: Texts per forward pass, sorted by length; at most 8 on a CPU. Repeated ones are encoded once.
        device: Of an encoder given by name; by default CUDA where there is one, else the CPU.
        dtype: Of an encoder given by name; by default fp32.
        top_relevance: What R³ takes for the best relevance: a ValueError where the encoder's vectors, all of one length,
            could never reach it. None: any will do.
    """

    encoder: str | os.PathLike | nn.Module = "facebook/contriever"
    _: KW_ONLY
    tokenizer: PreTrainedTokenizerBase | None = None
    to: Literal["prompt", "reference"] = "prompt"
    similarity: Literal["dot", "cosine"] = "dot"
    contrast: bool = False
    max_length: int = 512
    batch_size: int = 64
    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    top_relevance: float | None = None

    def __post_init__(self):
        check_config(self, {"max_length": AT_LEAST_1, "batch_size": AT_LEAST_1})
        self._check_choices()
        if isinstance(self.encoder, (str, os.PathLike)):
            self._check_name()
        else:
            self._check_object()

    @property
    def name(self) -> str:
        return f"relevance_{self.to}"

    def __call__(self, *, prompts: list, completions: list, reference: list | None = None, **kwargs) -> list[float]:
        asked = {"prompts": prompts} if self.to == "prompt" else {"reference": reference}
        check_counts({"completions": completions} | asked, call="RelevanceReward")
        if self.to == "prompt":
            check_prompts(prompts, call="RelevanceReward", column="prompts", may_be_empty=True)
        answers = [text_of(completion) for completion in completions]
        beside = [f"beside the completion {answer[:60]!r}" for answer in answers]
        targets = [last_user_text(p) for p in prompts] if self.to == "prompt" else self._references(reference, beside)
        left, right = self._pairs(targets, answers)
        scores = similarities(left, right, kind=self.similarity)
        if self.contrast:
            scores = scores - mean_to_others(targets, left, right, kind=self.similarity)
        return scores.tolist()

    def vectors(self, texts: list[str]) -> Tensor:
        """M of each text, `(N, D)` in fp32."""
        return encode(*self._load(), texts, max_length=self.max_length, batch_size=self.batch_size)

    def check_columns(self, columns: Columns, rows: Sequence[int]) -> None:
        """Raise a ValueError where a question or reference is missing, or the encoder, or it cannot reach `top_relevance`."""
        texts = []
        if self.to == "prompt" and "prompts" in columns:
            last_user_texts(columns["prompts"], rows)
        if self.to == "reference" and rows:
            given = columns.get("reference")
            texts = self._references(given and [given[i] for i in rows], [f"in row {i}" for i in rows])
        if rows:
            probed = list(dict.fromkeys([*texts[: self.batch_size], *PROBES]))
            vectors = self.vectors(probed)
            self._check_numbers(vectors)
            self._check_reach(vectors, count=len(probed))

    def _pairs(self, targets: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
        """Vectors of targets and of answers, `(N, D)` each. A named encoder never changes, so those of targets are kept."""
        asked, said = list(dict.fromkeys(targets)), list(dict.fromkeys(answers))
        texts = list(dict.fromkeys(asked + said))
        if isinstance(self.encoder, nn.Module):
            vectors = self.vectors(texts)
            known, made = vectors[places(asked, texts)], vectors[places(said, texts)]
        else:
            known, made = kept_vectors(*self._load(), asked, max_length=self.max_length), self.vectors(said)
        self._check_numbers(torch.cat([known, made]))
        self._check_reach(torch.cat([known, made]), count=len(texts))
        return known[places(targets, asked)], made[places(answers, said)]

    def _check_numbers(self, vectors: Tensor) -> None:
        """Raise a ValueError where no text has a vector, and warn where some have none: what then is the trainer's affair."""
        spoken = vectors[(vectors != 0).any(1)]  # NaN is not 0
        finite = spoken.isfinite().all(1)
        if finite.any() and not finite.all():
            warnings.warn(SOME_NAN, stacklevel=4)
        if len(spoken) and not finite.any():
            raise ValueError(
                f"RelevanceReward(encoder=…): the encoder gives NaN or infinity for all of {len(spoken)} texts. Load it in "
                "fp32 (dtype='float32'), or take another."
            )

    def _check_reach(self, vectors: Tensor, *, count: int) -> None:
        """Raise a ValueError where vectors of so many texts, all of one length, could never be as near as `top_relevance`."""
        if self.top_relevance is None or self.similarity != "dot":
            return
        few = count < 3 and self._load()[1] is None  # which may normalise
        length = common_length(self.vectors(list(PROBES)) if few else vectors)
        if length is not None and self.top_relevance > 1.02 * length**2:
            raise ValueError(
                f"R3Reward(top_relevance={self.top_relevance}): all vectors of this encoder have the length {length:.3g}, so "
                f"that no relevance is above {length**2:.3g}, and closed answers would earn at most "
                f"{length**2 / self.top_relevance:.2f} of what the paper means. Give top_relevance={length**2:.3g}, or what "
                "trl_ext.calibrate_relevance(encoder, dataset) proposes."
            )

    def _load(self) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
        if not isinstance(self.encoder, (str, os.PathLike)):
            return self.encoder, self.tokenizer
        device = self.device or default_device()
        return load_encoder(os.fspath(self.encoder), device, self.dtype or torch.float32)

    def _references(self, reference: list | None, places: list[str]) -> list[str]:
        missing = "the right answers, and the dataset has none. Add it, or measure relevance to the prompt."
        instead = "give the row a query type that needs no reference"
        call = "RelevanceReward(to='reference')"
        return list(checked_references(reference, places, call=call, missing=missing, instead=instead))

    def _check_choices(self) -> None:
        for option, choices in {"to": ("prompt", "reference"), "similarity": ("dot", "cosine")}.items():
            if getattr(self, option) not in choices:
                raise ValueError(f"RelevanceReward({option}={getattr(self, option)!r}): expected one of {choices}.")
        if self.contrast and self.to != "prompt":
            raise ValueError(
                f"RelevanceReward(contrast=True, to={self.to!r}): the contrast is to other prompts. Give to='prompt', or "
                "leave it out."
            )

    def _check_name(self) -> None:
        if self.device is not None:
            checked_device(self.device, call=f"RelevanceReward(device={str(self.device)!r})")
        if self.dtype not in (None, "auto"):
            checked_dtype(self.dtype, call=f"RelevanceReward(dtype={str(self.dtype)!r})")
        if is_missing_folder(self.encoder):
            raise ValueError(
                f"RelevanceReward(encoder={str(self.encoder)!r}): there is no such folder. Give one written by "
                "save_pretrained, or the id of a model on the Hugging Face hub such as 'facebook/contriever'."
            )
        if self.tokenizer is not None:
            raise ValueError(
                f"RelevanceReward(encoder={str(self.encoder)!r}, tokenizer=…): an encoder given by name brings its "
                "own tokenizer. Leave `tokenizer` out, or give the loaded model as `encoder`."
            )

    def _check_object(self) -> None:
        given = f"RelevanceReward(encoder=<{type(self.encoder).__name__}>"
        if is_sentence_transformer(self.encoder) != (self.tokenizer is None):
            raise ValueError(
                f"{given}, tokenizer={'None' if self.tokenizer is None else '…'}): expected a transformers model with "
                "its tokenizer, or a SentenceTransformer without one. Give both, or the encoder's id."
            )
        if self.device is not None or self.dtype is not None:
            raise ValueError(
                f"{given}, device={self.device}, dtype={self.dtype}): an object is used as it is. Move it yourself, "
                "`encoder.to(device, dtype)`, and leave both out."
            )
