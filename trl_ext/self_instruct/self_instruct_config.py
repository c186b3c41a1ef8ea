"""The options of Self-Instruct; the defaults are the paper's."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trl_ext.generation.protocol import Sampling
from trl_ext.self_instruct.instruction_filter import InstructionFilter
from trl_ext.self_instruct.task_wording import TaskWording
from trl_ext.trainer_kit.config_checks import check_config
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule
from trl_ext.trainer_kit.seeds import check_seed, stable_seed

RULES = {
    "num_instructions": AT_LEAST_1,
    "human_in_context": AT_LEAST_1,
    "made_in_context": Rule(0, expected="0 or more"),
    "batch_size": AT_LEAST_1,
    "patience": AT_LEAST_1,
    "num_examples": Rule(2, expected="at least 2, one of each kind"),
    "max_instances": AT_LEAST_1,
    "temperature": Rule(0, expected="0 or more"),
    "top_p": Rule(above=0, high=1, expected="a share in (0, 1]"),
    "repetition_penalty": Rule(above=0, expected="more than 0"),
    "instance_temperature": Rule(0, expected="0 or more"),
    "max_instruction_tokens": AT_LEAST_1,
    "max_instance_tokens": AT_LEAST_1,
}
QUESTION_TOKENS = 3


@dataclass(frozen=True)
class SelfInstructConfig:
    """How instructions and instances are made.

    Args:
        num_instructions: To make, beside the seeds.
        human_in_context, made_in_context: Seeds and made instructions that each request shows; while there are fewer made ones,
            seeds are in their place.
        batch_size: Requests that see one state of the pool, and are written down together: what a kill can lose.
        patience: Batches in a row without any new instruction, after which no more are asked for.
        num_examples: Seeds that are shown with their kind or with instances; of `question`, half of each kind.
        max_instances: Of a task.
        temperature, top_p: Of instructions.
        repetition_penalty: Of instructions and instances; above 1 in the place of the paper's presence penalty, which generators
            do not share. A small model says one task over and over without.
        instance_temperature: Of instances; 0 takes the likeliest. Whether it is classification is asked at 0.
        max_instruction_tokens, max_instance_tokens: Longest answers, in tokens.
        chat: Whether requests are a user's message; else they are text to go on from, as in the paper.
        seed: Of the choice of what is shown, and of sampling.
        instruction_filter: What an instruction must be.
        wording: What is asked.
    """

    num_instructions: int = 100
    human_in_context: int = 6
    made_in_context: int = 2
    batch_size: int = 5
    patience: int = 20
    num_examples: int = 8
    max_instances: int = 5
    temperature: float = 0.7
    top_p: float = 0.5
    repetition_penalty: float = 1.0
    instance_temperature: float = 0.0
    max_instruction_tokens: int = 1024
    max_instance_tokens: int = 350
    chat: bool = False
    seed: int = 0
    instruction_filter: InstructionFilter = field(default_factory=InstructionFilter)
    wording: TaskWording = field(default_factory=TaskWording)

    def __post_init__(self):
        check_config(self, RULES)
        check_seed(self.seed, call=f"SelfInstructConfig(seed={self.seed!r})")
        for name, kind in (("instruction_filter", InstructionFilter), ("wording", TaskWording)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"SelfInstructConfig({name}={getattr(self, name)!r}): expected {kind.__name__}(…). Give one."
                )

    @property
    def in_context(self) -> int:
        """Instructions that each request shows."""
        return self.human_in_context + self.made_in_context

    def sampling(self, step: str) -> Sampling:
        """How the answers of a step are sampled."""
        length, temperature = {
            "instructions": (self.max_instruction_tokens, self.temperature),
            "kinds": (QUESTION_TOKENS, 0.0),
            "instances": (self.max_instance_tokens, self.instance_temperature),
        }[step]
        more = {"top_p": self.top_p} if step == "instructions" and temperature else {}
        more |= {} if step == "kinds" else {"repetition_penalty": self.repetition_penalty}
        return Sampling(1, length, temperature, **more, seed=stable_seed(self.seed, step))

    def stops(self, step: str) -> tuple[str, ...]:
        """The texts that end an answer of a step."""
        if step == "instructions":
            last = f"\n{2 * self.in_context}"
            return (last,) if self.chat else ("\n\n", last)
        if step == "kinds":
            return () if self.chat else ("\n", self.wording.task)
        return f"{self.wording.example} {self.max_instances + 1}", f"{self.wording.task}:"

    def record(self) -> dict[str, Any]:
        """All of it, as JSON takes it; functions by their names."""
        filtered = asdict(self.instruction_filter)
        named = {name: getattr(of, "__qualname__", str(of)) if callable(of) else of for name, of in filtered.items()}
        return asdict(self) | {"instruction_filter": named}
