"""The best-of-n arm: no training, n answers to each held-out question, of which the proxy chooses. P questions, N samples."""

import math

import numpy as np
from datasets import Dataset

from examples.benchmarks.frontier.passes import SAMPLED_AND_SCORED
from examples.benchmarks.frontier.setting import TOKENS, Setting
from trl_ext.demo import stages
from trl_ext.reward_evaluation import BestOfN, best_of_n
from trl_ext.reward_evaluation.order_statistics import chances_to_be_best, curve_sizes, nominal_kl


def sampled(setting: Setting, prompts: Dataset, *, n: int, gold: bool) -> BestOfN:
    """n answers of the start to each prompt, scored by the proxy."""
    return best_of_n(
        str(setting.start),
        setting.proxy,
        prompts,
        n=n,
        gold=setting.gold if gold else None,
        max_completion_length=TOKENS,
        batch_size=256,
        seed=setting.seed,
    )


def tokens_of(found: BestOfN, setting: Setting) -> int:
    """Prompt and completion of every sample."""
    prompts = setting.tokenizer()(found.samples["prompt"][:])["input_ids"]
    return sum(map(len, prompts)) + sum(map(len, found.samples["completion_ids"][:]))


def best_of_n_run(setting: Setting, budget: float) -> dict:
    """As many samples as the budget allows, a power of 2, and the expected best of 1, 2, 4 … of them."""
    tokens = tokens_of(sampled(setting, setting.held_out, n=2, gold=False), setting) / 2
    n = 2 ** max(1, int(math.log2(budget / (SAMPLED_AND_SCORED * tokens))))
    found = sampled(setting, setting.held_out, n=n, gold=True)
    shape, samples = (-1, n), found.samples
    proxy, gold = (np.array(samples[name][:], dtype=float).reshape(shape) for name in ("proxy", "gold"))
    columns = {name: [setting.held_out[row][name] for row in samples["row"][:]] for name in ("attribute", "answer")}
    right = np.array(stages.closed_right(samples["completion"][:], **columns), dtype=float).reshape(shape)
    texts = np.array(samples["completion"][:], dtype=object).reshape(shape)
    spent = SAMPLED_AND_SCORED * tokens_of(found, setting)
    points = [point(size, proxy, gold, right, texts) | {"cost": spent * size / n} for size in curve_sizes(n)]
    centre = {name: [float(v.mean()), float(v.std())] for name, v in {"proxy": proxy, "gold": gold}.items()}
    return {"points": points, "centre": centre}


def point(n: int, proxy: np.ndarray, gold: np.ndarray, right: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """What the best of n is expected to be, over all subsets of n of the N samples."""
    chances = chances_to_be_best(proxy, n)
    expected = {"proxy": proxy, "gold": gold, "right": right}
    closed = ~np.isnan(right[:, 0])
    values = {name: (chances * v)[closed if name == "right" else ...].sum(1).mean() for name, v in expected.items()}
    shares = [min(kl_of_shares(*row), nominal_kl(n)) for row in zip(chances, texts, strict=True)]
    return {name: float(v) for name, v in values.items()} | {
        "n": n,
        "kl": nominal_kl(n),
        "kl_shares": float(np.mean(shares)),
    }


def kl_of_shares(chances: np.ndarray, texts: np.ndarray) -> float:
    """KL of what is chosen to what was sampled, in nats, by the shares of the different texts.

    Where samples repeat, log n − (n − 1) / n is only a bound: the best of 64 alike is no other than the first.

    >>> kl_of_shares(np.array([0.5, 0.5]), np.array(["a", "a"])), round(kl_of_shares(np.array([1.0, 0.0]), np.array(["a", "b"])), 3)
    (0.0, 0.693)
    """
    kl = 0.0
    for text in dict.fromkeys(texts):
        same = texts == text
        chosen, sampled_share = chances[same].sum(), same.mean()
        kl += chosen * math.log(chosen / sampled_share) if chosen > 0 else 0.0
    return float(kl)
