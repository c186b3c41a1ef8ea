"""What of the seeds a request shows."""

import random

from trl_ext.self_instruct.seed_tasks import Task
from trl_ext.self_instruct.self_instruct_config import SelfInstructConfig
from trl_ext.trainer_kit.seeds import stable_seed


class ShownSeeds:
    """The seeds, and those that stand before each question and each request for instances: chosen once, so that all requests
    of a step begin alike.

    Args:
        seeds: All of them.
        config: Says how many are shown, and the seed.

    Attributes:
        instructions: Of all seeds.
        kinds: With their kind, half of each in any order; none where the seeds have not both.
        classifications, others: With instances.
    """

    def __init__(self, seeds: list[Task], config: SelfInstructConfig):
        self.instructions = [seed.instruction for seed in seeds]
        self._human, self._made = config.human_in_context, config.made_in_context
        self._check_number(config.in_context)
        rng, most = random.Random(stable_seed(config.seed, "examples")), config.num_examples
        yes, no = ([seed for seed in seeds if seed.is_classification is kind] for kind in (True, False))
        both = [*_some(yes, most // 2, rng), *_some(no, most - most // 2, rng)]
        self.kinds = rng.sample(both, len(both)) if yes and no else []
        self.classifications = _some([seed for seed in yes if seed.instances], most, rng)
        self.others = _some([seed for seed in seeds if seed.instances and not seed.is_classification], most, rng)
        if not self.others:
            raise ValueError(
                "SelfInstruct.run: none of the seeds but classifications has an instance, and a request for instances shows "
                f"{most} such tasks. Give some seeds `instances`, or `input` and `output`."
            )

    def context(self, made: list[str], rng: random.Random) -> list[str]:
        """The instructions that one request shows, in any order: made ones, and seeds in the place of those that lack."""
        some = rng.sample(made, min(self._made, len(made)))
        some += rng.sample(self.instructions, self._human + self._made - len(some))
        return rng.sample(some, len(some))

    def _check_number(self, needed: int) -> None:
        lack = needed - len(self.instructions)
        if lack > 0:
            raise ValueError(
                f"SelfInstruct.run: the seeds are {len(self.instructions)} tasks, and each request shows {needed} instructions "
                f"(human_in_context={self._human} and made_in_context={self._made}, which are seeds while none are made). Add "
                f"{lack}, or lower these."
            )


def _some(tasks: list[Task], most: int, rng: random.Random) -> list[Task]:
    return rng.sample(tasks, min(most, len(tasks)))
