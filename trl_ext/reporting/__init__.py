"""A page about runs: what was logged, what it took, what was written, and what is wrong with it."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.reporting.page import report as report

lazy_exports(__name__)
