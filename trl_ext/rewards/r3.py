import warnings
from dataclasses import dataclass, field, replace

from trl_ext.rewards.length_incentive import TOKENS_PER_POINT, LengthIncentive
from trl_ext.rewards.relevance import RelevanceReward
from trl_ext.rewards.repetition_penalty import RepetitionPenalty
from trl_ext.rewards.routed_product import Factor, LogMetric, Route, RoutedProduct
from trl_ext.rewards.within_prompts import explained_share
from trl_ext.sequences.texts import Tokenize, last_user_text, wordpunct
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import Rule

PAPER_LENGTH = 512


def closed_scale(*, max_completion_length: int, top_relevance: float) -> float:
    """The factor of F, which lets the best closed answer earn what an open one of full length can.

        F(v) = v · (L / 100) / 3.5

    Args:
        max_completion_length: L, in tokens.
        top_relevance: The relevance that counts as best, 3.5 in the paper. Relevance above it earns more still.
    """
    return max_completion_length / TOKENS_PER_POINT / top_relevance


@dataclass(frozen=True, kw_only=True)
class R3Reward(RoutedProduct):
    """Regularised relevance reward, R³ (Kim and Seo, 2024, arXiv:2402.03469): a reward without a reward model.

        R³ = r_x · LI · RP    where the column `query_type` is 'open': be relevant, say much, do not repeat yourself
        R³ = F(r_y) · RP      where it is 'closed': be near the column `reference`, however short
        F(v) = v · (L / 100) / 3.5

    Needs the columns `prompt`, `query_type` and, in closed rows, `reference`. The mean of each factor over its rows is
    logged as `r3/relevance_prompt` (r_x), `r3/relevance_reference` (r_y), `r3/length_incentive` (LI) and
    `r3/repetition_penalty` (RP); where a prompt has several completions, `r3/length_share` is the share of the variance
    of r_x · LI among them that LI explains: near 1, the reward ranks them by length. For other products, see
    `RoutedProduct`.

        PPOTrainer(..., reward_funcs=R3Reward(), args=PPOConfig(max_completion_length=256))    # L is the trainer's
        GRPOTrainer(..., reward_funcs=R3Reward(max_completion_length=256), args=GRPOConfig(max_completion_length=256))
        calibrate_relevance("facebook/mcontriever", dataset).reward(tokenize=characters)       # another encoder's constants

    Args:
        max_completion_length: L, the trainer's limit on a completion, in tokens. None: that of the trainer of trl_ext
            which it is given to, and 512, as in the paper, elsewhere; what it is shows as `L`. A score means something
            beside one of the same L only: outside the trainer, score with `trainer.reward_funcs[i]`, or give it here.
        relevance: Encoder and similarity of both relevances; `to` is the route's choice, a contrast the open one's.
        top_relevance: The relevance that is worth a completion of full length. `calibrate_relevance` measures it for an
            encoder other than Contriever; for vectors of length 1, as of most sentence-transformers models, it is at most 1.
        tokenize: What LI and RP count, as in `LengthIncentive`.
        length_cap: Of LI, in its tokens: LI = min(tokens, length_cap) / 100, and F takes no larger L, so that the best closed
            answer still earns what an open one can. What is enough for an answer, such as the references' median, keeps
            filler and endless lists from being paid. None: the paper's form, which they fool.
    """

    routes: tuple[Route, ...] = field(init=False, repr=False)
    max_completion_length: int | None = None
    relevance: RelevanceReward = field(default_factory=RelevanceReward)
    top_relevance: float = 3.5
    tokenize: Tokenize = wordpunct
    length_cap: int | None = None
    L: int = field(init=False)

    def __post_init__(self):
        self._check()
        length = LengthIncentive(tokenize=self.tokenize, cap=self.length_cap)
        repetition = RepetitionPenalty(tokenize=self.tokenize)
        length_limit = self.max_completion_length or PAPER_LENGTH
        paid = min(length_limit, self.length_cap or length_limit)  # tokens that can earn anything
        scale = closed_scale(max_completion_length=paid, top_relevance=self.top_relevance)
        closed_relevance = replace(self.relevance, to="reference", contrast=False, top_relevance=self.top_relevance)
        routes = (
            Route("open", (replace(self.relevance, to="prompt"), length, repetition)),
            Route("closed", (closed_relevance, repetition), scale=scale),
        )
        object.__setattr__(self, "L", length_limit)
        object.__setattr__(self, "routes", routes)

    def __call__(self, **columns) -> list[float]:
        if self.max_completion_length is None and "closed" in (columns.get("query_type") or ()):
            warnings.warn(
                f"R3Reward(max_completion_length=None) outside a trainer of trl_ext: F takes L = {self.L}, the paper's. To "
                "score as in training, give it that trainer's max_completion_length, or call `trainer.reward_funcs[i]`.",
                stacklevel=2,
            )
        return super().__call__(**columns)

    def _log(self, log_metric: LogMetric, values: dict[Factor, dict[int, float]], columns: dict) -> None:
        super()._log(log_metric, values, columns)
        relevance, length, _ = (values.get(factor, {}) for factor in self.routes[0].factors)
        share = explained_share(
            [length[i] for i in relevance],
            [length[i] * relevance[i] for i in relevance],
            groups=[last_user_text(columns["prompts"][i]) for i in relevance],
        )
        if share is not None:
            log_metric("r3/length_share", share)

    def _check(self) -> None:
        kinds = {"max_completion_length": int | None, "top_relevance": float, "length_cap": int | None}
        for option, kind in kinds.items():
            value = checked(
                "R3Reward", option, getattr(self, option), kind, Rule(above=0, expected="a positive number")
            )
            object.__setattr__(self, option, value)
        if self.relevance.similarity == "cosine" and self.top_relevance > 1:
            raise ValueError(
                f"R3Reward(top_relevance={self.top_relevance}) with cosine relevance: a cosine is at most 1, so closed "
                "answers would earn less than the paper means. Give top_relevance=1.0, or what "
                "trl_ext.calibrate_relevance(encoder, dataset) proposes."
            )
