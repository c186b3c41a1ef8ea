"""One frozen base, in 16, 8 or 4 bits, and several roles over the same tensors; merging a role for serving."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.shared_base.shared_base import SharedBase as SharedBase

lazy_exports(__name__)
