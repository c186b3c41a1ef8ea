"""Prompt and completion to token ids and back, each once: texts, ids, windows, common prefixes, training rows,
log-probabilities."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.sequences.preference_rows import repeats_prompt as repeats_prompt
    from trl_ext.sequences.preference_rows import without_repeat as without_repeat
    from trl_ext.sequences.prompt_rows import read_prompts as read_prompts
    from trl_ext.sequences.text_shapes import shown as shown
    from trl_ext.sequences.text_shapes import with_text as with_text
    from trl_ext.sequences.texts import last_user_text as last_user_text
    from trl_ext.sequences.texts import text_of as text_of
    from trl_ext.sequences.token_ids import prompt_ids as prompt_ids
    from trl_ext.sequences.token_ids import whole_ids as whole_ids
    from trl_ext.sequences.unread_columns import warn_of_unread as warn_of_unread
    from trl_ext.sequences.windows import model_window as model_window

lazy_exports(__name__)
