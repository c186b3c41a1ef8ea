"""Instructions from nothing but a few: Self-Instruct, from a seed file to data for SFT and prompts for R³."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.self_instruct.instruction_filter import InstructionFilter as InstructionFilter
    from trl_ext.self_instruct.instruction_pool import rouge_l_f1 as rouge_l_f1
    from trl_ext.self_instruct.instruction_pool import rouge_words as rouge_words
    from trl_ext.self_instruct.made_tasks import MadeTasks as MadeTasks
    from trl_ext.self_instruct.seed_tasks import Instance as Instance
    from trl_ext.self_instruct.seed_tasks import Task as Task
    from trl_ext.self_instruct.self_instruct_config import SelfInstructConfig as SelfInstructConfig
    from trl_ext.self_instruct.self_instruct_run import SelfInstruct as SelfInstruct
    from trl_ext.self_instruct.task_wording import TaskWording as TaskWording

lazy_exports(__name__)
