"""Will it fit? The peak of memory of each phase of a run by arithmetic from shapes, said before it begins and compared with
what it took."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.memory_planning.card_sizes import card_bytes as card_bytes
    from trl_ext.memory_planning.plan_advice import Advice as Advice
    from trl_ext.memory_planning.planning import MemoryPlan as MemoryPlan
    from trl_ext.memory_planning.planning import memory_plan as memory_plan

lazy_exports(__name__)
