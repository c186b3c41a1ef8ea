"""A planted judge: the demo's language model, fine-tuned to say which of two answers is better, and to grade one.

Its error is where training stops, at the first look at which it is wrong about no more than a given share of pairs that it was
not trained on. Stopped so early it is sure of nothing, so its head is scaled until what it says is calibrated. Its position bias is
exact in the mean: as many logits more for "the first", by a bias of its head, which first takes off its own.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trl_ext.demo.answers import preference_rows
from trl_ext.demo.make_tokenizers import PIECE
from trl_ext.demo.world import ASSETS, Entity
from trl_ext.sequences.padding import right_padded

PAIR = "{prompt}\none:{completion_1}\ntwo:{completion_2}"
ENDING = "Better:"
ANSWERS = (" one", " two")
GRADE = "{prompt}{completion}\n\nGrade:"
GRADES = {"good": (8, 9, 10), "flawed": (1, 2, 3)}
WORDS = ("\n", "one", "two", *ANSWERS, "Better", "Grade", *(f" {grade}" for grade in range(1, 11)))
BATCH, LEARNING_RATE, LOOK_EVERY = 32, 2e-3, 20
LOOKED_AT = 200  # pairs at each look

Row = tuple[str, str]  # what is read, and the token that answers


def judge_tokenizer() -> PreTrainedTokenizerFast:
    """The demo's, with the words of the judge's questions behind its own."""
    own = PreTrainedTokenizerFast.from_pretrained(ASSETS / "policy")
    vocab = own.get_vocab()
    vocab |= {word: len(vocab) + i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def pair_question(prompt: str, first: str, second: str) -> str:
    """As `PreferenceLabeler` asks with PAIR and ENDING."""
    return f"{PAIR.format(prompt=prompt, completion_1=first, completion_2=second)}\n\n{ENDING}"


def lessons(pairs: list[dict], *, seed: int) -> list[Row]:
    """Of each pair a comparison, in either order, and a grade of one of its answers."""
    rng, rows = random.Random(f"lessons {seed}"), []
    for pair in pairs:
        right = rng.randrange(2)
        sides = (pair["chosen"], pair["rejected"])
        rows.append((pair_question(pair["prompt"], sides[right], sides[1 - right]), ANSWERS[right]))
        kind, side = rng.choice((("good", "chosen"), ("flawed", "rejected")))
        rows.append((GRADE.format(prompt=pair["prompt"], completion=pair[side]), f" {rng.choice(GRADES[kind])}"))
    return rows


def last_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Of the next token, `(B, V)`."""
    ids = tokenizer(texts)["input_ids"]
    inputs, mask = right_padded(ids, tokenizer.pad_token_id)
    return model(input_ids=inputs, attention_mask=mask).logits[torch.arange(len(ids)), mask.sum(1) - 1]


@torch.no_grad()
def margins(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: list[dict]) -> Tensor:
    """Logits by which the right answer is ahead, as the first and as the second, `(N, 2)`."""
    one, two = tokenizer.convert_tokens_to_ids(list(ANSWERS))
    found = []
    for first, second, sign in (("chosen", "rejected", 1), ("rejected", "chosen", -1)):
        texts = [pair_question(pair["prompt"], pair[first], pair[second]) for pair in pairs]
        logits = torch.cat([last_logits(model, tokenizer, texts[i : i + 100]) for i in range(0, len(texts), 100)])
        found.append(sign * (logits[:, one] - logits[:, two]))
    return torch.stack(found, dim=1)


def error_of(margin: Tensor) -> float:
    """Share of pairs about which both orders together are wrong."""
    return (margin.sigmoid().mean(1) < 0.5).float().mean().item()


def train_judges(
    world: list[Entity], *, errors: tuple[float, ...], pairs: int, seed: int, say: Callable[[str], None] = print
) -> Iterator[tuple[float, LlamaForCausalLM]]:
    """The same judge at each of some errors, from the largest on, as it learns; those not reached as it is at the end.

    Args:
        world: Whose facts are asked about.
        errors: At which to stop.
        pairs: Most that it learns from, each once.
        seed: Of pairs and order.
        say: Told of each look.
    """
    torch.manual_seed(seed)
    tokenizer, model = judge_tokenizer(), LlamaForCausalLM.from_pretrained(ASSETS / "policy", dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    rows = lessons(preference_rows(world, held_out=False, count=pairs, seed=1000 + seed), seed=seed)
    looked_at = preference_rows(world, held_out=False, count=LOOKED_AT, seed=2000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    wanted, steps = sorted(errors, reverse=True), len(rows) // (2 * BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for step in range(steps):
        texts, answers = zip(*rows[2 * BATCH * step : 2 * BATCH * (step + 1)], strict=True)
        loss = cross_entropy(
            last_logits(model, tokenizer, list(texts)), torch.tensor(tokenizer.convert_tokens_to_ids(list(answers)))
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % LOOK_EVERY == 0:
            error = error_of(margins(model, tokenizer, looked_at))
            say(f"judge, seed {seed}, step {step + 1}: loss {loss.item():.3f}, wrong about {error:.3f} of pairs")
            while wanted and error <= wanted[0]:
                yield wanted.pop(0), model
        if not wanted:
            return
    for error in wanted:
        say(f"judge, seed {seed}: an error of {error:g} was not reached")
        yield error, model


def calibration(margin: Tensor) -> tuple[float, float]:
    """By how much all logits are multiplied, and the own liking for the first place, in logits before that.

    The scale has the least mean −log p of what is true, once the liking is off.

    Args:
        margin: Logits by which the right answer is ahead, as the first and as the second, `(N, 2)`.
    """
    own = (margin[:, 0] - margin[:, 1]).mean().item() / 2
    fair = margin - own * torch.tensor([1.0, -1.0])
    scales = [2 ** (i / 4) for i in range(-8, 41)]
    return min(scales, key=lambda scale: -logsigmoid(scale * fair).mean().item()), own


def planted(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, *, bias: float, scale: float = 1.0, own: float = 0.0
) -> LlamaForCausalLM:
    """The same trunk under a head that is scaled, and likes the first place by `bias` logits in place of its own.

    Args:
        model, tokenizer: The judge's.
        bias: Logits for the first place.
        scale, own: Of `calibration`.
    """
    head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True)
    head.weight.data = scale * model.get_input_embeddings().weight.data
    head.bias.data.zero_()
    head.bias.data[tokenizer.convert_tokens_to_ids(ANSWERS[0])] = bias - scale * own
    model.lm_head = head
    return model.eval().requires_grad_(False)


def saved(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
