"""The whole chain on a CPU, offline: a small world, its tiny models, and the stages that `trl-ext demo` runs."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.demo.answers import EVASIVE as EVASIVE
    from trl_ext.demo.answers import other_fact as other_fact
    from trl_ext.demo.answers import preference_rows as preference_rows
    from trl_ext.demo.answers import sample_questions as sample_questions
    from trl_ext.demo.answers import sft_rows as sft_rows
    from trl_ext.demo.answers import short as short
    from trl_ext.demo.answers import wrong_value as wrong_value
    from trl_ext.demo.attributes import ATTRIBUTES as ATTRIBUTES
    from trl_ext.demo.attributes import OPEN_QUESTIONS as OPEN_QUESTIONS
    from trl_ext.demo.stages import COMPLETION_LENGTH as COMPLETION_LENGTH
    from trl_ext.demo.stages import closed_right as closed_right
    from trl_ext.demo.stages import r3 as r3
    from trl_ext.demo.world import ASSETS as ASSETS
    from trl_ext.demo.world import OPEN as OPEN
    from trl_ext.demo.world import Entity as Entity
    from trl_ext.demo.world import answered_right as answered_right
    from trl_ext.demo.world import load_world as load_world
    from trl_ext.demo.world import questions as questions

lazy_exports(__name__)
