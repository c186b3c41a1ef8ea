"""Signs, in a sampler's log-probabilities, that it does not sample the policy that is trained."""

import warnings
from dataclasses import dataclass, field

from trl_ext.ppo.sampling_gap import Mean
from trl_ext.trainer_kit.processes import is_main_process
from trl_ext.trainer_kit.resampling import BEYOND_CHANCE

GROWN = 5.0  # times the first rollout's sampling_kl
SMALL = 0.01  # nats per token that are never warned of: weights are 1 to the second digit
SURE = 4.0  # standard errors
HEAVY = 1.05  # mean weight that no sampler's own log-probabilities give
IN_A_ROW = 2  # rollouts that stop a run
FEWEST = 30  # tokens of each of them
STRANGE, FOREIGN = 0.5, 2.0  # nats per token from the policy: warned of; no precision's. 4 bits of a peaked model: 1.1
ZEROS = (
    "gave 0 as the log-probability of every token of {} completions. They are taken as not known, and nothing is corrected "
    "there. Give None, or the logarithm of each token's probability."
)
FAR = "has come away from the policy. See that it is handed the policy's weights each time, at one precision."
APART = (
    "log-probabilities are {:.3g} nats per token from the policy's (sampling_kl {:.3g}). See that it serves the base that the "
    "policy has in memory, with nothing merged that the base's file lacks; that it has the policy's adapter, tokenizer and "
    "temperature; and that it gives the natural logarithm for each token that it drew"
)
UNLIKE = (
    "gives log-probabilities that are not of the distribution which it draws from: over fresh samples the mean of min(π / "
    "π_sampled, cap) is 1 at most. Have them after temperature and truncation (in vLLM "
    "logprobs_mode='processed_logprobs'), or give None."
)


@dataclass
class SamplingWatch:
    """Stops a run whose sampler is not the policy, or has lost its adapter, and warns of one that drifts away.

        foreign = mean |log π_sampled − log π| > 2                                   by 4 standard errors; warned of above 0.5
        lost = mean |log π_sampled − log π_ref| < mean |log π_sampled − log π|      by 4 standard errors,
               and mean |log π − log π_ref| > mean |log π_sampled − log π| of the first rollout,  twice in a row
        far  = |sampling_kl| > 5 · |sampling_kl of the first rollout|               by 2 standard errors of both

    It also warns of log-probabilities that cannot be the sampler's own: E_sampled[min(π / π_sampled, cap)] ≤ 1.

    `foreign` is judged from the first rollout on; |sampling_kl| is never above that mean. Short of it no fixed limit tells:
    with nothing at fault, `sampling_kl` is 0.003 nats per token where the sampler's base is in 8 bits and the policy's is not,
    0.14 in NF4, and 0.7, with a mean distance of 1.1, where a peaked model is in 4 bits. In the first rollout the policy is the reference, so what is seen there is
    precision alone; once the policy has moved further than that, whom the sampler is nearer to is plain. All this is by
    distances rather than by KL, whose estimate from samples of the reference has the wrong sign.

    Attributes:
        first_kl, first_error, first_distance: `sampling_kl` of the first rollout, its standard error, and mean |log π_sampled −
            log π|, nats per token; None before it.
        lost: Rollouts in a row in which it had lost the adapter.
        warned: What was said.
    """

    first_kl: float | None = None
    first_error: float | None = None
    first_distance: float | None = None
    lost: int = 0
    warned: list[str] = field(default_factory=list)

    def update(self, gap: dict[str, Mean], *, placeholders: int, sampler: str, call: str) -> None:
        """Take in one batch of rollouts.

        Args:
            gap: What `PPOMetrics.of_sampling` says of it.
            placeholders: How many rows the sampler gave without log-probabilities, as zeros.
            sampler: Who it is.
            call: Where, for the error.

        Raises:
            RuntimeError: In all processes, where the sampler is not the policy, or has lost the adapter.
        """
        if placeholders:
            self._say("placeholders", f"{sampler} {ZEROS.format(placeholders)}")
        if gap:
            self._check_own(gap, sampler, call)
        if gap and self.first_kl is not None:
            self._compare(gap, sampler, call)
        elif gap:
            self.first_kl, self.first_error = gap["sampling_kl"].value, gap["sampling_kl"].error
            self.first_distance = gap["to_policy"].value

    def _check_own(self, gap: dict[str, Mean], sampler: str, call: str) -> None:
        distance = gap["to_policy"]
        surely, said = distance.value - SURE * distance.error, APART.format(distance.value, gap["sampling_kl"].value)
        if surely > FOREIGN and distance.tokens >= FEWEST:
            raise RuntimeError(
                f"{call}: who samples is not the policy: {sampler}'s {said}. Where another's samples are meant, give None as "
                "their log-probabilities."
            )
        if surely > STRANGE:
            self._say(
                "strange",
                f"{sampler}'s {said}. 4 bits may do that to a policy that is sure of its tokens; little else.",
            )

    def _compare(self, gap: dict[str, Mean], sampler: str, call: str) -> None:
        self.lost = self.lost + 1 if self._nearer_to_reference(gap) else 0
        if self.lost >= IN_A_ROW:
            raise RuntimeError(f"{call}: {sampler} {self._loss_said(gap)}")
        kl, weight = gap["sampling_kl"], gap.get("sampling_weight")
        if self._far(kl):
            said = f"sampling_kl is {kl.value:.3g} nats per token, {self.first_kl:.3g} in the first rollout"
            self._say("far", f"{said}: {sampler} {FAR}")
        if weight is not None and weight.value - SURE * weight.error > HEAVY:
            self._say("heavy", f"sampling_weight is {weight.value:.3g}: {sampler} {UNLIKE}")

    def _say(self, what: str, message: str) -> None:
        """Warn, unless it was said."""
        if what not in self.warned:
            self.warned = [*self.warned, what]
            if is_main_process():
                warnings.warn(f"PPOTrainer: {message} Said once.", stacklevel=2)

    def _nearer_to_reference(self, gap: dict[str, Mean]) -> bool:
        if "moved" not in gap or gap["moved"].tokens < FEWEST:  # no reference; too little to stop a run
            return False
        nearer = gap["nearer_to_reference"]
        return nearer.value > SURE * nearer.error and gap["moved"].value > self.first_distance

    def _far(self, kl: Mean) -> bool:
        usual = max(abs(self.first_kl), BEYOND_CHANCE * self.first_error)
        return abs(kl.value) - BEYOND_CHANCE * kl.error > max(GROWN * usual, SMALL)

    def _loss_said(self, gap: dict[str, Mean]) -> str:
        policy = gap["to_policy"].value
        reference = policy - gap["nearer_to_reference"].value
        return (
            f"samples without the adapter, or with weights of long ago: its log-probabilities are {reference:.3g} nats per "
            f"token from the reference's and {policy:.3g} from the policy's ({self.first_distance:.3g} in the first rollout), "
            f"while the two are {gap['moved'].value:.3g} apart. Nothing is learned from these samples, and checkpoints before "
            "them are kept. See that it is handed the policy's weights for each rollout; where another's samples are "
            "meant, give None as their log-probabilities."
        )
