"""The tiny relevance encoder: BERT-shaped, trained as Contriever is (Izacard et al., 2022, arXiv:2112.09118).

Unsupervised: two random crops of one document, each with some tokens deleted, are a positive pair; the other
documents of the batch are the negatives. No question is ever paired with its answer. Shapes: `B` documents, `T`
tokens, `D` dimensions.
"""

import random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from trl_ext.demo.corpus import document, documents
from trl_ext.demo.fitting import fit
from trl_ext.demo.world import Entity, questions

DELETED_SHARE = 0.25
LONGEST_CROP = 16
TEMPERATURE = 0.1
SHARED = 0.25  # of the mean vector, so that relevance seldom falls below 0, where more words would earn less
LONGEST = 128


def new_encoder(tokenizer: PreTrainedTokenizerFast) -> BertModel:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertModel(config)
    torch.nn.init.constant_(last_norm(model).weight, config.hidden_size**-0.5)  # vectors of length 1 to begin with
    return model


def last_norm(model: BertModel) -> torch.nn.LayerNorm:
    return model.encoder.layer[-1].output.LayerNorm


def embed(model: BertModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Mean of the last hidden states over real tokens, `(B, D)`."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=LONGEST)
    hidden = model(**batch).last_hidden_state
    mask = batch.attention_mask.unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def random_crop(text: str, rng: random.Random) -> str:
    """A random span of the text's words, at most LONGEST_CROP, some of them deleted."""
    words = text.split()
    length = rng.randint(3, min(LONGEST_CROP, len(words)))
    start = rng.randrange(len(words) - length + 1)
    kept = [word for word in words[start : start + length] if rng.random() >= DELETED_SHARE]
    return " ".join(kept or words[start : start + 1])


def contrastive_loss(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE over the batch: each crop must find the other crop of its document, from both sides.

        L = − ½ mean_i [log softmax_j(q_i·k_j / τ)_i + log softmax_j(k_i·q_j / τ)_i]

    Args:
        queries, keys: `(B, D)` each; row i of both comes from document i.
        temperature: τ, in units of the dot product; smaller means sharper.
    """
    scores = queries @ keys.T / temperature
    own = torch.arange(len(scores))
    return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2


def train_encoder(
    model: BertModel, tokenizer: PreTrainedTokenizerFast, world: list[Entity], *, steps: int, batch: int,
    learning_rate: float, seed: int,
) -> float:  # fmt: skip
    """Crops of `batch` documents in each step; returns the mean loss of the last fifty steps."""
    rng = random.Random(f"crops {seed}")

    def loss_of(about: list[tuple[Entity, str | None]]) -> Tensor:
        texts = [document(*one, rng) for one in about]
        queries, keys = embed(model, tokenizer, [random_crop(text, rng) for text in texts + texts]).chunk(2)
        return contrastive_loss(queries, keys, temperature=TEMPERATURE)

    batches = (rng.sample(documents(world), batch) for _ in range(steps))
    return fit(model, loss_of, batches, steps=steps, learning_rate=learning_rate)


@torch.no_grad()
def calibrate(model: BertModel, tokenizer: PreTrainedTokenizerFast, world: list[Entity], *, seed: int) -> None:
    """Shift and scale the last LayerNorm so that related texts have a dot product near 1, unrelated ones far less.

        h ← (h − (1 − SHARED) h̄) / √s     h̄: mean vector of all crops,  s: mean dot product of two crops of one document

    InfoNCE sees differences of dot products only, so it leaves open how much all vectors have in common and how long
    they are. R³ multiplies the dot product itself with a length, and Contriever's is near 1 for relevant text. A mean
    over tokens is shifted and scaled as its tokens are, so the weight and bias of the last LayerNorm do both.
    """
    rng = random.Random(f"calibration {seed}")
    texts = [document(*about, rng) for about in documents(world)]
    crops = [embed(model, tokenizer, [random_crop(text, rng) for text in texts]) for _ in range(2)]
    shift = (1 - SHARED) * torch.cat(crops).mean(0)
    scale = ((crops[0] - shift) * (crops[1] - shift)).sum(1).mean().rsqrt()
    norm = last_norm(model)
    norm.bias.sub_(shift).mul_(scale)
    norm.weight.mul_(scale)


@torch.no_grad()
def triplet_relevances(
    model: BertModel, tokenizer: PreTrainedTokenizerFast, world: list[Entity], *, seed: int
) -> tuple[Tensor, Tensor]:
    """Relevance of each held-out question to its right answer, and to the right answer to a question about another entity."""
    rng = random.Random(f"triplets {seed}")
    rows = questions(world, held_out=True)
    others = [rng.choice([row for row in rows if row["subject"] != asked["subject"]]) for asked in rows]
    texts = [[row["prompt"] for row in rows], *([row["reference"] for row in answers] for answers in (rows, others))]
    asked, right, wrong = (embed(model, tokenizer, column) for column in texts)
    return (asked * right).sum(1), (asked * wrong).sum(1)
