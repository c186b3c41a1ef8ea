"""A sentence encoder from nothing but texts of one's own, the Contriever way (Izacard et al., 2022, arXiv:2112.09118).

    python examples/train_encoder.py --texts TEXTS.jsonl … --output-dir OUT [--except HELD_OUT.jsonl …]

1. A WordPiece tokenizer is trained on the texts, or `--tokenizer` names one.
2. Of each text two spans are cut independently of each other, each a tenth to a half of it, and a tenth of their tokens
   is dropped. A small BERT, made here, learns to tell which two belong together, by raw dot products of masked means:

        L = −log exp(M(a)·M(b)/τ) / Σ_b' exp(M(a)·M(b')/τ)    b': the other spans of the batch

   Its vectors keep their own lengths, as Contriever's do; those of its first step are shorter than 1.
3. OUT gets encoder and tokenizer, every tenth of the time anew: `RelevanceReward("OUT")`.

Each JSON row's texts (all its string fields that are named by `--fields`) are joined in that order to one document, so
that a question may be told by its answer. A row is left out where one of its texts is also one of a file after
`--except`: what one wants to evaluate on. A file that is not JSON lines is read by its paragraphs.

This makes an encoder where none is at hand: a hundred thousand times less text than Contriever's. Where there is a network,
take `facebook/contriever`, or `facebook/mcontriever` for other languages.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trl_ext.rewards import mean_pooled
from trl_ext.trainer_kit import ends_in_one_line

SPAN = (0.1, 0.5)  # of a text, Contriever's
DROPPED = 0.1  # of a span's tokens
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
FIELDS = ["query", "prompt", "reference", "text", "original", "positive"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--texts", type=Path, nargs="+", required=True)
    add("--except", dest="held_out", type=Path, nargs="+", default=[], help="files whose texts are not learned from")
    add("--fields", nargs="+", default=FIELDS, help="of a JSON row, joined to one document")
    add("--output-dir", type=Path, required=True)
    add("--tokenizer", help="path or hub id; by default one is trained on the texts")
    add("--minutes", type=float, default=20.0, help="of CPU time per core that is used; learning rate ends at 0")
    add("--vocabulary", type=int, default=8000)
    add("--layers", type=int, default=2)
    add("--width", type=int, default=256)
    add("--longest", type=int, default=128, help="tokens of a text of which spans are cut")
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=5e-4)
    add("--temperature", type=float, default=0.05, help="τ")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def documents(files: list[Path], fields: list[str], held_out: list[Path]) -> list[str]:
    """One text a row, without rows that share a text with what is held out."""
    known = {text for file in held_out for row in rows(file) for text in row.values() if isinstance(text, str)}
    found = []
    for row in (row for file in files for row in rows(file)):
        texts = [row[name] for name in fields if isinstance(row.get(name), str)]
        if texts and known.isdisjoint(texts):
            found.append("\n".join(texts))
    return list(dict.fromkeys(found))


def rows(file: Path) -> Iterator[dict]:
    """Of a file of JSON lines; of any other its paragraphs, as `text`."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return (json.loads(line) for line in content.splitlines() if line.strip())
    return ({"text": part} for part in content.split("\n\n") if part.strip())


def trained_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """WordPiece over lower-cased words, [CLS] before and [SEP] behind, as BERT's."""
    backend = BertWordPieceTokenizer(lowercase=True)
    backend.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False)
    backend.post_processor = bert_marks(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, **SPECIAL)


def bert_marks(backend: BertWordPieceTokenizer):
    from tokenizers.processors import TemplateProcessing

    ids = [(mark, backend.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    return TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)


def new_encoder(tokenizer: PreTrainedTokenizerBase, *, layers: int, width: int, longest: int) -> BertModel:
    """A BERT whose vectors begin shorter than 1, so that the first dot products are of Contriever's size."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        intermediate_size=4 * width,
        max_position_embeddings=4 * longest,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,  # that spans differ is noise enough
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    nn.init.constant_(model.encoder.layer[-1].output.LayerNorm.weight, width**-0.5)
    return model


def span(ids: list[int], rng: random.Random) -> list[int]:
    """A tenth to a half of a text from anywhere in it, less a tenth of its tokens; at least one is left."""
    length = max(1, round(len(ids) * rng.uniform(*SPAN)))
    start = rng.randrange(len(ids) - length + 1)
    cut = ids[start : start + length]
    return [token for token in cut if rng.random() >= DROPPED] or cut[:1]


def vectors(model: BertModel, ids: list[list[int]]) -> Tensor:
    """Masked means with gradient, `(N, D)`; spans of like length pass together, which halves the time."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    quarter = -(-len(ids) // 4)
    parts = [[ids[i] for i in order[start : start + quarter]] for start in range(0, len(ids), quarter)]
    return torch.cat([mean_pooled(model, part) for part in parts])[torch.tensor(order).argsort()]


def contrastive_loss(left: Tensor, right: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of which of the batch's right spans belongs to a left one, and the other way round.

    >>> contrastive_loss(torch.eye(2) * 100, torch.eye(2) * 100, temperature=1.0)
    tensor(0.)
    """
    scores, own = left @ right.T / temperature, torch.arange(len(left))
    return (nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)) / 2


def train(model: BertModel, tokenizer: PreTrainedTokenizerBase, texts: list[list[int]], args) -> None:
    """Until the time is over."""
    rng, seconds, step = random.Random(args.seed), args.minutes * 60 * torch.get_num_threads(), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    marks = tokenizer("")["input_ids"]  # what is put around each text
    start, tenth, recent = time.process_time(), 0.1, []
    model.train()
    while (done := (time.process_time() - start) / seconds) < 1:
        batch = rng.sample(texts, args.batch_size)
        left, right = ([marks[:1] + span(ids, rng) + marks[1:] for ids in batch] for _ in "ab")
        loss = contrastive_loss(vectors(model, left), vectors(model, right), temperature=args.temperature)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(step / 50, 1.0, (1 - done) / 0.9)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, recent = step + 1, [*recent[-49:], loss.item()]
        if done > tenth:
            tenth += 0.1
            print(f"{done:4.0%}  step {step:5d}  loss {sum(recent) / len(recent):.3f}", flush=True)
            save(model, tokenizer, args.output_dir)
    save(model, tokenizer, args.output_dir)
    print(f"100%  step {step:5d}  loss {sum(recent) / len(recent):.3f}  → {args.output_dir}")


def save(model: BertModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    transformers.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    texts = documents(args.texts, args.fields, args.held_out)
    if len(texts) < 2 * args.batch_size:
        raise ValueError(
            f"--texts: expected at least {2 * args.batch_size} documents (twice --batch-size), got {len(texts)}."
        )
    tokenizer = (
        AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else trained_tokenizer(texts, args.vocabulary)
    )
    ids = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    parts = [row[i : i + args.longest] for row in ids for i in range(0, len(row), args.longest)]
    parts = [part for part in parts if len(part) >= 8]
    print(
        f"{len(texts)} documents, {sum(map(len, parts))} tokens in {len(parts)} parts, {len(tokenizer)} in the vocabulary"
    )
    model = new_encoder(tokenizer, layers=args.layers, width=args.width, longest=args.longest)
    train(model, tokenizer, parts, args)


if __name__ == "__main__":
    stopped = "OUT has the encoder of the last tenth of the time."
    with ends_in_one_line("train_encoder.py", when_stopped=stopped, folder=Path(__file__).parent):
        main()
