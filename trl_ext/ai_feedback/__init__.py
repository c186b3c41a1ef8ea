"""Feedback from a model in the place of people: which of two completions is the better, by log-probabilities in both orders."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.ai_feedback.drawn_pairs import sample_pairs as sample_pairs
    from trl_ext.ai_feedback.judging import Judgement as Judgement
    from trl_ext.ai_feedback.preambles import PREAMBLES as PREAMBLES
    from trl_ext.ai_feedback.preambles import Preamble as Preamble
    from trl_ext.ai_feedback.preference_labeler import PreferenceLabeler as PreferenceLabeler
    from trl_ext.ai_feedback.preference_questions import Example as Example
    from trl_ext.ai_feedback.preference_report import PreferenceReport as PreferenceReport

lazy_exports(__name__)
