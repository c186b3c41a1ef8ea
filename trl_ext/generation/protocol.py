"""What a generator is: given prompts, a policy and sampling settings, it yields finished parts of samples.

Transformers, vLLM, an endpoint and a file all stand behind one method:

    generate(parts, sampling, policy) -> iterator of (part, samples)

A part is a few prompts with all their samples. The caller writes each to disk before it asks for the next, so a run
that dies has lost at most the part it was at.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.sequences.continuations import continuation_texts
from trl_ext.sequences.samples import Sample, as_completion
from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import prompt_ids
from trl_ext.sequences.turn_end import announced_turn_end, end_ids
from trl_ext.trainer_kit.config_checks import check_config
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule, nonzero
from trl_ext.trainer_kit.seeds import check_seed

RULES = {
    "num_generations": AT_LEAST_1,
    "max_completion_length": AT_LEAST_1,
    "temperature": Rule(0, expected="0 or more"),
    "top_p": Rule(above=0, high=1, expected="a share in (0, 1]", needs=nonzero("temperature")),
    "top_k": Rule(0, expected="0 (all tokens) or more", needs=nonzero("temperature")),
    "min_p": Rule(0, 1, expected="None or a share in [0, 1]", needs=nonzero("temperature")),
    "repetition_penalty": Rule(above=0, expected="more than 0"),
}
UNSET = {"min_p": (0.0,)}  # by the options' names, what is as good as the default


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled; the names and meanings are TRL's.

    Args:
        num_generations: K, samples per prompt, at least 1.
        max_completion_length: Longest completion in tokens; a longer one is cut, and has then not ended.
        temperature: λ; 0 always takes the likeliest token.
        top_p, top_k, min_p, repetition_penalty: As in transformers; 1, 0, None and 1 leave all tokens as they are.
        seed: Of this Grow.
    """

    num_generations: int = 8
    max_completion_length: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_config(self, RULES, unset=UNSET)
        if self.min_p == 0:
            object.__setattr__(self, "min_p", None)  # which leaves all tokens too, and is the same run
        check_seed(self.seed, call=f"Sampling(seed={self.seed!r})")

    def settings(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Part:
    """Prompts that are sampled together, and whose samples reach the disk together.

    Args:
        index: Number of the part in its Grow.
        rows: Numbers of its prompts in the Grow.
        prompts: The prompts, all text or all messages.
    """

    index: int
    rows: tuple[int, ...]
    prompts: tuple[Text, ...]


def read_again(parts: Iterable[Part]) -> Sequence[Part]:
    """Parts that can be read more than once: a run's as they are, which read their prompts when they are asked for."""
    return parts if isinstance(parts, Sequence) else list(parts)


@dataclass
class Policy:
    """The model that is asked, with what is needed to ask it.

    Args:
        model: A causal LM, or one with an adapter. None where only an endpoint or a file is asked.
        tokenizer: Its tokenizer.
        chat_template_kwargs: Passed on to the chat template.
        ends: The tokens that end a completion, where a trainer says which; None: as `end_token_ids` finds them.
    """

    model: PreTrainedModel | PeftModel | None
    tokenizer: PreTrainedTokenizerBase
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    ends: frozenset[int] | None = None

    def prompt_ids(self, prompt: Text) -> list[int]:
        """The tokens after which a completion begins: text as its tokenizer reads it, messages through the template."""
        return prompt_ids(prompt, self.tokenizer, self.chat_template_kwargs)

    def end_token_ids(self, prompts: Iterable[Text] = ()) -> frozenset[int]:
        """The tokens that end a completion: the tokenizer's, and those of the model's generation config.

        Args:
            prompts: Where they are messages, so does the token with which the chat template closes an assistant's turn.
        """
        if self.ends is not None:
            return self.ends
        ids = end_ids(self.tokenizer, self.model)
        if all(isinstance(prompt, str) for prompt in prompts):
            return frozenset(ids)
        end = announced_turn_end(self.tokenizer, ids, call="Policy.end_token_ids", **self.chat_template_kwargs)
        return frozenset(ids if end is None else [*ids, end])

    def completion_texts(self, prompts: list[Text], completion_ids: list[list[int]]) -> list[Text]:
        """What was sampled, as it continues its prompts: with the space that it begins with; messages for messages."""
        texts = continuation_texts(completion_ids, self.tokenizer)
        return [as_completion(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


@runtime_checkable
class Generator(Protocol):
    """Anything that completes prompts. `name` is what a sample records of it."""

    name: str

    def generate(
        self, parts: Iterable[Part], sampling: Sampling, policy: Policy
    ) -> Iterator[tuple[Part, list[Sample]]]:
        """Yield each part with its samples, in order of row and sample, as soon as it is finished.

        A prompt may get fewer than K samples (a file may hold fewer), and parts may come in any order.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """What decides its samples besides `Sampling`, as JSON takes it: a resumed run must have the same."""
        ...


@runtime_checkable
class ChecksPolicy(Protocol):
    """A generator that can say, before anything is sampled, which policies it cannot serve."""

    def check_policy(self, policy: Policy, sampling: Sampling) -> None:
        """Raise a ValueError for a policy that it cannot sample, with what to do."""
        ...


@runtime_checkable
class ExpectsLength(Protocol):
    """A generator that had better know, before anything is sampled, how long it may become."""

    def expect(self, tokens: int) -> None:
        """Take note of the longest prompt with its completion, in tokens, of those that are known to come."""
        ...


@runtime_checkable
class SaysLogProbs(Protocol):
    """A generator that says, before anything is sampled, whether its samples have `log_probs`."""

    gives_log_probs: bool


@runtime_checkable
class SaysWhom(Protocol):
    """A generator that says whether it is the policy that it samples; of one that does not say so it is taken to be."""

    samples_policy: bool


def passes_policy(generator: Generator) -> bool:
    """Whether a generator needs the policy's weights, and not its tokenizer alone."""
    return not isinstance(generator, SaysWhom) or generator.samples_policy


OWN_GENERATORS = ("transformers", "vllm")  # those that sample the policy, and so cost forward passes of it
