"""Prompt and completion to token ids and back, each once: texts, ids, windows, common prefixes, training rows,
log-probabilities."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.sequences.texts import last_user_text as last_user_text
    from trl_ext.sequences.texts import text_of as text_of

lazy_exports(__name__)
