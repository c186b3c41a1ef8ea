"""What the best of n by a proxy is worth, for n = 1, 2, 4 … N, from one set of N samples. P prompts, N samples of each."""

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from trl_ext.reward_evaluation.best_picture import draw_curves
from trl_ext.reward_evaluation.order_statistics import nominal_kl
from trl_ext.reward_evaluation.overoptimization import FEWEST, Overoptimization, fit_best_of_n

FEWEST_PROMPTS = 30  # below which errors and intervals over prompts are rough


class Centre(NamedTuple):
    """Mean and deviation of a reward over the start's samples."""

    mean: float
    deviation: float

    def applied(self, scores: np.ndarray) -> np.ndarray:
        return (scores - self.mean) / self.deviation


@dataclass(frozen=True, eq=False)
class BestOfNCurve:
    """Proxy and gold of the best of n by the proxy.

    Both are centred to mean 0 and deviation 1 over all samples, which are the start's.

    Args:
        sizes: n, `(K,)`.
        proxy_by_prompt, gold_by_prompt: Expected value of the best of n, `(P, K)`; no gold: None. Equal prompts are one.
        proxy_centre, gold_centre: What brings scores of other samples, e.g. of a trained policy, to these units.
        repeated: Share of samples that repeat another one of their prompt.
        tied: Share of samples whose proxy another sample of their prompt has too.
        left_out: Prompts to which gold does not apply.
    """

    sizes: list[int]
    proxy_by_prompt: np.ndarray
    gold_by_prompt: np.ndarray | None
    proxy_centre: Centre
    gold_centre: Centre | None
    repeated: float | None
    tied: float
    left_out: int = 0

    @property
    def kl(self) -> list[float]:
        """KL of the best of n to the start, in nats: log n − (n − 1)/n, an upper bound where samples repeat."""
        return [nominal_kl(n) for n in self.sizes]

    @property
    def proxy(self) -> np.ndarray:
        """Mean over prompts, `(K,)`."""
        return self.proxy_by_prompt.mean(0)

    @property
    def gold(self) -> np.ndarray | None:
        """Mean over prompts, `(K,)`."""
        return None if self.gold_by_prompt is None else self.gold_by_prompt.mean(0)

    @property
    def proxy_errors(self) -> np.ndarray:
        """Standard errors of the gain over n = 1, whose mean is 0 by the centring: over prompts, `(K,)`; NaN with one prompt."""
        return _errors(self.proxy_by_prompt)

    @property
    def gold_errors(self) -> np.ndarray | None:
        return None if self.gold_by_prompt is None else _errors(self.gold_by_prompt)

    @cached_property
    def fit(self) -> Overoptimization | None:
        """Gao's R = d(α − β d) of gold, d = √KL; None without gold, and with fewer than 8 samples of a prompt."""
        if self.gold_by_prompt is None or sum(n > 1 for n in self.sizes) < FEWEST:
            return None
        return fit_best_of_n(self.kl, _gains(self.gold_by_prompt))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {
            "n": self.sizes,
            "kl": self.kl,
            "proxy": self.proxy.tolist(),
            "proxy_error": _listed(self.proxy_errors),
            "gold": None if self.gold is None else self.gold.tolist(),
            "gold_error": None if self.gold_errors is None else _listed(self.gold_errors),
            "prompts": len(self.proxy_by_prompt),
            "left_out": self.left_out,
            "repeated": self.repeated,
            "tied": self.tied,
            "proxy_centre": self.proxy_centre._asdict(),
            "gold_centre": self.gold_centre and self.gold_centre._asdict(),
            "fit": self.fit and self.fit.as_dict(),
        }

    def __str__(self) -> str:
        has_gold = self.gold is not None and self.gold_errors is not None
        lines = [f"{'n':>5}{'KL ≤':>7}{'proxy':>17}" + (f"{'gold':>17}" if has_gold else "")]
        for i, n in enumerate(self.sizes):
            cells = [(self.proxy, self.proxy_errors)] + ([(self.gold, self.gold_errors)] if has_gold else [])
            shown = [f"{f'{values[i]:z.3f} ± {errors[i]:.3f}':>17}" for values, errors in cells]
            lines.append(f"{n:>5}{self.kl[i]:>7.2f}{''.join(shown)}")
        return "\n".join(lines + self._said())

    def _said(self) -> list[str]:
        said = f"{len(self.proxy_by_prompt)} prompts; {100 * self.tied:.1f} % of samples tie by the proxy"
        said += (
            ""
            if self.repeated is None
            else f"; {100 * self.repeated:.1f} % repeat another: KL is at most that of the table"
        )
        said += f"; gold does not apply to {self.left_out} further prompts" if self.left_out else ""
        few = len(self.proxy_by_prompt) < FEWEST_PROMPTS
        said += f"; fewer than {FEWEST_PROMPTS}: errors ± and intervals are rough" if few else ""
        return [said] + ([] if self.fit is None else [str(self.fit)])

    def save_png(self, path: str | PathLike) -> None:
        """Proxy, and gold with its fit, against √KL, as a picture; an ImportError without matplotlib."""
        draw_curves(path, {"": self})


def _gains(values: np.ndarray) -> np.ndarray:
    """Over a random choice, `(P, K)`."""
    return values - values[:, :1]


def _errors(values: np.ndarray) -> np.ndarray:
    count = len(values)
    return np.full(values.shape[1], np.nan) if count < 2 else _gains(values).std(0, ddof=1) / count**0.5


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
