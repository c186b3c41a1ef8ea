"""Is a reward being gamed? What it pays for, completion by completion, beside a reward that training does not see, and for
texts that are made to fool it."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.diagnostics.baskets import gaming_texts as gaming_texts
    from trl_ext.diagnostics.diagnosis import Diagnosis as Diagnosis
    from trl_ext.diagnostics.gold_curve import GoldCurve as GoldCurve
    from trl_ext.diagnostics.gold_curve import proxy_against_gold as proxy_against_gold
    from trl_ext.diagnostics.probing import Probe as Probe
    from trl_ext.diagnostics.probing import probe_reward as probe_reward
    from trl_ext.diagnostics.reward_diagnostics import RewardDiagnostics as RewardDiagnostics
    from trl_ext.diagnostics.saved_completions import diagnose as diagnose

lazy_exports(__name__)
