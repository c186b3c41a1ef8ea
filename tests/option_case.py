"""Tokenizers that merge, split and put blanks before words, made in place, and log-probabilities by reading all text anew."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:.,?!()[]{}'-\n"


def byte_level_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2; a blank is Ġ and belongs to the word behind it where it is merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIALS.values(), *alphabet, *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIALS)


def sentence_piece_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """As SentencePiece's unigram model of Llama: ▁ for a blank, one before all; the likeliest pieces win, bytes else."""
    pieces = [*SPECIALS.values(), "<unk>", "▁", *LETTERS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [0.0] * 4 + [-10.0] * (len(pieces) - 4 - len(words)) + [-5.0] * len(words)
    backend = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=3, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **SPECIALS)
