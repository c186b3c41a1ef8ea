"""Look at a policy: sample held-out prompts, score, KL to a reference, length, ends, variety; compare two such looks."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.evaluation.comparison import Evaluation as Evaluation
    from trl_ext.evaluation.evaluating import evaluate as evaluate
    from trl_ext.evaluation.scoring import score as score

lazy_exports(__name__)
