"""Texts to vectors, by a frozen encoder. N texts, T tokens of the longest in a batch, D dimensions."""

import functools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.rewards.encoder_repository import is_sentence_repository
from trl_ext.sequences.tokenizers import tokenizer_at
from trl_ext.sequences.vocabulary import check_ids
from trl_ext.sequences.windows import model_window
from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.overrides import replaced

CPU_BATCH = (
    8  # texts per pass at most on a CPU, whose caches hold no more: 64 take 2.6 times as long (MiniLM, one core)
)
PROBES = ("Why?", "What is the capital of Korea?", "It is Seoul, a city of ten million people on the river Han.")


def encode(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, texts: list[str], *, max_length: int, batch_size: int
) -> Tensor:
    """One vector per text, `(N, D)` in fp32.

    Mean of the last hidden state over a text's tokens; a `SentenceTransformer` (`tokenizer` None) pools in its own way.
    What is longer than `max_length` tokens, or than the encoder's window, loses its beginning. A text without a token of
    its own, that is, with only those that the tokenizer puts around every text such as [CLS] and [SEP], says nothing: 0.
    """
    model.eval()
    if next(model.parameters()).device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    way = _encode_with_sentence_transformer if tokenizer is None else _encode_with_mean
    vectors, ids = way(model, tokenizer or model.tokenizer, texts, max_length=max_length, batch_size=batch_size)
    silent = [not text.strip() for text in texts] if ids is None else _silent(tokenizer or model.tokenizer, texts, ids)
    return vectors.masked_fill(torch.tensor(silent, device=vectors.device)[:, None], 0.0)


def _silent(tokenizer: PreTrainedTokenizerBase, texts: list[str], ids: list[list[int]]) -> list[bool]:
    """Of each text, whether it has no token of its own, but only those that are put around every text."""
    around = {*tokenizer("")["input_ids"], *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    return [not text.strip() or around.issuperset(row) for text, row in zip(texts, ids, strict=True)]


def _encode_with_mean(
    model, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, max_length: int, batch_size: int
) -> tuple[Tensor, list[list[int]]]:
    window = model_window(model.config) or max_length
    with replaced(tokenizer, truncation_side="left"):
        longest = min(max_length, window, tokenizer.model_max_length)
        ids = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
    check_ids(ids, tokenizer, model.config, call="RelevanceReward(encoder=…)")
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # texts of like length together: little padding
    batches = [[ids[i] for i in order[start : start + batch_size]] for start in range(0, len(ids), batch_size)]
    with torch.no_grad():
        vectors = [mean_pooled(model, batch) for batch in batches]
    vectors = torch.cat(_of_one_size(vectors))
    return vectors[torch.tensor(order).argsort()], ids


def _of_one_size(vectors: list[Tensor]) -> list[Tensor]:
    sizes = sorted({each.size(1) for each in vectors})
    if len(sizes) > 1:
        raise ValueError(
            f"RelevanceReward(encoder=…): expected vectors of one size, got some of {sizes[0]} and some of {sizes[-1]} "
            "dimensions. Make the encoder's last hidden state as wide for every batch."
        )
    return vectors


def mean_pooled(model: nn.Module, ids: list[list[int]]) -> Tensor:
    """Masked mean of the last hidden state, `(N, D)`, with gradient; 0 for a text without tokens.

        M(x) = Σ_t h_t · mask_t / Σ_t mask_t

    Padding goes to the right whatever the tokenizer prefers: on the left it would shift a BERT's positions.
    """
    device = next(model.parameters()).device
    padded = pad_sequence([torch.tensor(row or [0]) for row in ids], batch_first=True).to(device)  # (N, T)
    lengths = torch.tensor([[len(row)] for row in ids], device=device)
    mask = torch.arange(padded.size(1), device=device) < lengths
    hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.float()
    return hidden.masked_fill(~mask[..., None], 0.0).sum(1) / lengths.clamp(min=1)


def _encode_with_sentence_transformer(
    model, tokenizer, texts: list[str], *, max_length: int, batch_size: int
) -> tuple[Tensor, list[list[int]] | None]:
    with _left_truncation(model, max_length) as longest:
        ids = longest and tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        for part in model.modules() if ids else ():
            if isinstance(part, PreTrainedModel):
                check_ids(ids, tokenizer, part.config, call="RelevanceReward(encoder=…)")
        vectors = model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    return vectors.float(), ids


@contextmanager
def _left_truncation(model, max_length: int) -> Iterator[int | None]:
    """Cut beginnings; yields the most tokens of a text, None where it is read whole, as static embeddings do."""
    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        yield None
        return
    longest = min(max_length, model.max_seq_length or max_length)
    with replaced(model.tokenizer, truncation_side="left"), replaced(model, max_seq_length=longest):
        yield longest


def common_length(vectors: Tensor) -> float | None:
    """The length that all of an encoder's vectors have, within 1 %; None where it differs, or fewer than three tell.

    >>> common_length(torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 5.0], [0.0, 0.0]]))  # a text without a token tells nothing
    5.0
    """
    vectors = vectors[vectors.any(dim=1)]
    lengths = vectors.norm(dim=1)
    if not len(lengths) or lengths.max() - lengths.min() > 0.01 * lengths.max() or len(vectors.unique(dim=0)) < 3:
        return None
    return lengths.mean().item()


@functools.cache
def load_encoder(
    path: str, device: str | torch.device, dtype: str | torch.dtype
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """The frozen encoder at a path or hub id, with its tokenizer; loaded once per process, device and dtype."""
    path = os.path.expanduser(path)
    try:
        if is_sentence_repository(path):
            return _load_sentence_transformer(path, device, dtype).requires_grad_(False), None
        with whole_loading():
            model = AutoModel.from_pretrained(path, dtype=dtype).to(device)
    except (OSError, ValueError) as error:  # ValueError: a folder of something else
        raise ValueError(
            f"RelevanceReward(encoder={path!r}): expected a folder written by save_pretrained or the id of a model on "
            "the Hugging Face hub, and could load neither. Check the spelling; for an id, also that the hub can be "
            f"reached (HF_HUB_OFFLINE) or that the model was downloaded before. The reason: {error}"
        ) from error
    tokenizer = tokenizer_at(path)
    if tokenizer is None:
        raise ValueError(
            f"RelevanceReward(encoder={path!r}): found no tokenizer beside the model. Save the one that it was trained "
            "with there."
        )
    return model.requires_grad_(False), tokenizer


def _load_sentence_transformer(path: str, device: str | torch.device, dtype: str | torch.dtype) -> nn.Module:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(f"{path} is a sentence-transformers model: pip install 'trl-ext[encoders]'.") from error
    return SentenceTransformer(path, device=str(device), model_kwargs={"dtype": dtype})


def is_sentence_transformer(encoder) -> bool:
    library = sys.modules.get("sentence_transformers")  # without it there can be no instance
    return library is not None and isinstance(encoder, library.SentenceTransformer)


def is_missing_folder(path: str | os.PathLike) -> bool:
    """True where nothing is at `path` and it cannot be meant as a hub id, `name` or `owner/name`."""
    could_be_id = isinstance(path, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path)
    return not could_be_id and not Path(path).expanduser().exists()
