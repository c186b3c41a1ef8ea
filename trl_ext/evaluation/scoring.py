"""Scores of texts that one has already, by anything that trainers take as rewards."""

from collections.abc import Sequence

from trl_ext.rewards.reward_callables import Rewards, reward_functions
from trl_ext.rewards.reward_columns import check_all_columns, check_lists
from trl_ext.rewards.weighted_rewards import call_all
from trl_ext.sequences.prompt_rows import check_completions, check_prompts
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import AT_LEAST_1
from trl_ext.trainer_kit.seeds import check_seed, seeded


def score(
    rewards: Rewards,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    max_completion_length: int | None = None,
    seed: int = 0,
    **columns: Sequence,
) -> dict[str, list[float | None]]:
    """What rewards make of texts that one has already: by a reward's name one score each, None where it does not apply.

    >>> from trl_ext import LengthIncentive
    >>> score(LengthIncentive(), ["Where is it?"], ["Paris is the capital of France."])
    {'LengthIncentive': [0.07]}

    Args:
        rewards: Functions in TRL's protocol, sync or async, reward models, their paths; one or a list of them.
        prompts, completions: Text or messages; a text begins with the space that parts it from its prompt.
        max_completion_length: The trainer's, which an `R3Reward` without one takes as its L.
        seed: Of rewards that draw random numbers.
        columns: What else rewards read, one value each; without `completion_ended` all completions came to their end.
    """
    if rewards is None:
        raise ValueError("score(rewards=None): expected a reward, or a list of them. Give one.")
    max_completion_length = checked("score", "max_completion_length", max_completion_length, int | None, AT_LEAST_1)
    check_seed(seed, call=f"score(seed={seed!r})")
    functions = reward_functions(rewards, max_completion_length=max_completion_length, call="score")
    given = {"prompts": prompts, "completions": completions, **columns}
    check_lists(given, call="score")
    check_prompts(prompts, call="score(…)", column="prompts", may_be_empty=True)
    check_completions(prompts, completions, call="score(…)", column="completions")
    check_all_columns(functions, columns, range(len(completions)), call="score(…)")
    unheard = {"trainer_state": None, "log_metric": lambda *_: None, "log_extra": lambda *_: None}
    with seeded(seed):
        scores = call_all(functions, {name: list(values) for name, values in given.items()} | unheard)
    return {function.__name__: values for function, values in zip(functions, scores, strict=True)}
