"""Several reward models as one reward. M members, N completions."""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from trl_ext.rewards.checked_reward import checked_reward, distinct_names, reward_name
from trl_ext.rewards.ensemble_checks import check_same_ends, checked_members, checked_weight, read_ensemble
from trl_ext.rewards.ensemble_standard import VARIANCE, Combine, Standard, combined_scores, standard_of
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.rewards.reward_callables import Reward
from trl_ext.rewards.reward_columns import Columns, check_columns, check_counts, check_lists
from trl_ext.rewards.reward_fingerprints import check_distinct, reward_settings
from trl_ext.rewards.routed_product import LogMetric
from trl_ext.rewards.weighted_rewards import call_all
from trl_ext.sequences.prompt_rows import check_completions, check_prompts
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.whole_files import written_whole

ALIKE = 0.999  # a correlation from which on two members are as good as one


@dataclass(frozen=True, eq=False)
class EnsembleReward:
    """One score of several reward models, which hardly are wrong about the same answers (Coste et al., 2023, arXiv:2310.02743).

        z_m = (score_m − mean_m) / deviation_m                      on a reference set, e.g. the start's samples
        mean: z̄ = Σ_m z_m / M      min: min_m z_m      mean_minus_variance: z̄ − λ · Σ_m (z_m − z̄)² / M

        ensemble = EnsembleReward(["rm-0", "rm-1", "rm-2", "rm-3"], combine="min").standardised_on(prompts, completions)
        print(ensemble.standard)                    # means, deviations, correlations of the members
        PPOTrainer(policy, ensemble, …)             # or any other trainer, of TRL too

    Taking the worst, or charging for disagreement, pays less where members disagree, which is where one of them is being
    got around. Logs each member's mean as `ensemble/<name>`, in deviations, and `ensemble/disagreement`, the mean over
    completions of the members' deviation. Where any member gives None, the ensemble does.

    Members may have different tokenizers: each reads the text anew. But whether a completion ended must be known: where
    only `completion_ids` tell, as in TRL's trainers, members that take other tokens for the end are refused.

    Args:
        members: At least two paths, reward models, `LearnedReward`s (also of one `SharedBase`) or reward functions.
        combine: One of the above.
        variance_weight: λ, in units in which each member's deviation is 1; None: 0.5, for `mean_minus_variance` only.
        standard: Of `standardised_on`, which makes it.
    """

    members: Sequence[Reward]
    combine: Combine = "mean"
    variance_weight: float | None = None
    standard: Standard | None = None

    def __post_init__(self):
        members = checked_members(self.members)
        check_distinct(members, call="EnsembleReward(members=…)")
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "variance_weight", checked_weight(self.combine, self.variance_weight))
        if not isinstance(self.standard, Standard | None) or (self.standard and self.standard.names != self.names):
            raise ValueError(
                f"EnsembleReward(standard=…): expected that of its members {list(self.names)}, got "
                f"{getattr(self.standard, 'names', self.standard)}. Leave it out, and call standardised_on."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The members', told apart by their places where some are alike."""
        return tuple(distinct_names([reward_name(member) for member in self.members]))

    @property
    def column_readers(self) -> Sequence[Callable]:
        return self.members

    def standardised_on(self, prompts: Sequence[Text], completions: Sequence[Text], **columns) -> "EnsembleReward":
        """The same ensemble, which measures each member in its deviations over these completions, from its mean there.

        Args:
            prompts, completions: Of the reference set: the policy's own samples before training, some hundred of them.
            columns: What else the members read, one value each; without `completion_ended` all came to their end.
        """
        call = "EnsembleReward.standardised_on(…)"
        given = {"prompts": prompts, "completions": completions, **columns}
        check_lists(given, call=call)
        check_prompts(prompts, call=call, column="prompts", may_be_empty=True)
        check_completions(prompts, completions, call=call, column="completions")
        for member in self.members:
            check_columns(member, columns, range(len(completions)))
        standard = standard_of(self._member_scores({name: list(values) for name, values in given.items()}))
        same = np.argwhere(np.triu(np.array(standard.correlations), k=1) > ALIKE)
        if len(same):
            one, other = (standard.names[i] for i in same[0])
            warnings.warn(
                f"EnsembleReward: its members {one!r} and {other!r} agree about everything (correlation above {ALIKE}), and are "
                "as good as one. Train them with other seeds, orders and samples of the pairs.",
                stacklevel=2,
            )
        return replace(self, standard=standard)

    def __call__(self, *, log_metric: LogMetric | None = None, **columns) -> list[float | None]:
        self._refuse_unstandardised()
        check_counts(columns, call="EnsembleReward")
        found = self._member_scores(columns | ({} if log_metric is None else {"log_metric": log_metric}))
        scores = np.array(list(found.values()), dtype=float).T  # (N, M)
        applies = ~np.isnan(scores).any(1)
        z = self.standard.applied(scores[applies])
        if log_metric is not None and len(z):
            for name, mean in zip(self.names, z.mean(0).tolist(), strict=True):
                log_metric(f"ensemble/{name}", mean)
            log_metric("ensemble/disagreement", float(z.std(1).mean()))
        combined = iter(combined_scores(z, self.combine, variance_weight=self.variance_weight or 0.0).tolist())
        return [next(combined) if own else None for own in applies]

    def check_columns(self, columns: Columns, rows: Sequence[int]) -> None:
        """Raise a ValueError for a column that a member lacks, and for an ensemble that is not standardised."""
        self._refuse_unstandardised()
        for member in self.members:
            check_columns(member, columns, rows)

    def save(self, path: str | os.PathLike) -> None:
        """Write how the members are combined and measured as JSON; they themselves stay where they are."""
        made_of = reward_settings(self._functions())
        kept = {name: getattr(self, name) for name in ("combine", "variance_weight")}
        kept |= {
            "members": [member.path if isinstance(member, LearnedReward) else None for member in self.members],
            "made_of": list(made_of.values()),
        }
        kept |= {"standard": self.standard and asdict(self.standard)}
        with written_whole(Path(path)) as partial:
            partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike, members: Sequence[Reward] | None = None) -> "EnsembleReward":
        """The ensemble that `save` wrote.

        Args:
            path: The file.
            members: In the order of `save`; None: where they were loaded from, if all were paths.

        Raises:
            ValueError: For members other than those that were measured.
        """
        kept = read_ensemble(path)
        if members is None and None in kept["members"]:
            raise ValueError(
                f"EnsembleReward.load({os.fspath(path)!r}): member {kept['members'].index(None)} was no path, so nobody knows where it "
                "is. Give members=[…], in the same order."
            )
        members = kept["members"] if members is None else members
        ensemble = cls(members, kept["combine"], kept["variance_weight"] if kept["combine"] == VARIANCE else None)
        made_of = json.loads(json.dumps(list(reward_settings(ensemble._functions()).values())))
        other = [i for i, (now, then) in enumerate(zip(made_of, kept["made_of"], strict=False)) if now != then]
        if other or len(made_of) != len(kept["made_of"]):
            what = (
                f"member {other[0]} has other settings or weights" if other else f"there were {len(kept['made_of'])}"
            )
            raise ValueError(
                f"EnsembleReward.load({os.fspath(path)!r}): {what}, so its mean and deviation are not known. Give the members "
                "that were saved, or make a new ensemble and call standardised_on."
            )
        if kept["standard"] is None:
            return ensemble
        return replace(ensemble, standard=Standard.from_dict(kept["standard"] | {"names": ensemble.names}))

    def _functions(self) -> list[Callable]:
        return [checked_reward(member, name=name) for member, name in zip(self.members, self.names, strict=True)]

    def _member_scores(self, columns: dict) -> dict[str, list[float | None]]:
        check_same_ends(self.members, columns.get("completion_ids"), columns.get("completion_ended"))
        return dict(zip(self.names, call_all(self._functions(), columns), strict=True))

    def _refuse_unstandardised(self) -> None:
        if self.standard is None:
            raise ValueError(
                f"EnsembleReward(combine={self.combine!r}): its members are not standardised, and the one of the largest scale "
                "would decide. Call ensemble = ensemble.standardised_on(prompts, completions) with the start's samples."
            )
