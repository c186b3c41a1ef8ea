"""A chat template of Jinja as Ollama's Go template, read off what it writes.

What a template writes around a message is found by rendering a conversation of marks; the result is kept only if it
writes further conversations letter for letter as the template does.
"""

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
SYSTEM, TURNS = "⟪system⟫", [f"⟪turn {i}⟫" for i in range(5)]
DATE = "strftime_now"  # in a template: what it writes would stay that of today


@dataclass(frozen=True)
class Affixes:
    """What is written around each message.

    Args:
        no_system: At the beginning, where there is no system message.
        system, user, assistant: Before and behind a message of that role. Behind a user's comes the header of the
            assistant's turn.
        joins: Whether a system message opens the turn of the user's that follows, which has nothing before it then.
    """

    no_system: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    joins: bool = False

    def written(self, messages: Messages) -> str:
        """A conversation that ends with a user's message, as Ollama would write it."""
        has_system = messages[0]["role"] == "system"
        text = "" if has_system else self.no_system
        for i, message in enumerate(messages):
            before, behind = getattr(self, message["role"])
            text += ("" if self.joins and has_system and i == 1 else before) + message["content"] + behind
        return text

    def go(self) -> str:
        """As a Go template over Ollama's `.Messages`."""
        roles = ("system", "user", "assistant") if self.system else ("user", "assistant")
        branches = ""
        for i, role in enumerate(roles):
            before, behind = getattr(self, role)
            test = f'{{{{ {"else if" if i else "if"} eq .Role "{role}" }}}}'
            before = _text(before)
            if self.joins and role == "user":
                before = f"{{{{ if not (and $.System (eq $i 1)) }}}}{before}{{{{ end }}}}"
            branches += f"{test}{before}{{{{ .Content }}}}{_text(behind)}"
        begin = f"{{{{ if not .System }}}}{_text(self.no_system)}{{{{ end }}}}" if self.no_system else ""
        loop = "range $i, $_ := .Messages" if self.joins else "range .Messages"
        return f"{begin}{{{{ {loop} }}}}{branches}{{{{ end }}}}{{{{ end }}}}"


def go_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template as a Go template; None where there is none, or it does more than to write around messages.

    More is e.g. to write today's date, or earlier answers without their thoughts.
    What it trims off a message's ends is not asked: Ollama writes contents as they are.
    """
    if not tokenizer.chat_template or DATE in str(tokenizer.chat_template):
        return None
    try:
        affixes = _affixes(tokenizer)
        same = affixes is not None and all(
            affixes.written(messages) == _rendered(tokenizer, messages)
            for messages in conversations(with_system=affixes.system is not None)
        )
    except (ValueError, TypeError, TemplateError):
        return None
    return affixes.go() if same else None


def conversations(*, with_system: bool) -> list[Messages]:
    """What the two must write alike."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"Is it {i}?\n No."} for i in range(5)]
    thought = {"role": "assistant", "content": "<think>a</think>b"}
    plain = [turns[:1], turns[:3], turns, [turns[0], thought, turns[2]]]
    system = [{"role": "system", "content": "Be kind."}]
    return plain + [system + turns for turns in plain] if with_system else plain


def _affixes(tokenizer: PreTrainedTokenizerBase) -> Affixes | None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": mark} for i, mark in enumerate(TURNS)]
    between = _between(_rendered(tokenizer, turns), TURNS)
    if between is None:
        return None
    begin, to_assistant, to_user = between[0], between[-1], between[2]
    before_user = _common_end(begin, to_user)
    user = (before_user, to_assistant)
    assistant = ("", to_user.removesuffix(before_user))
    no_system = begin.removesuffix(before_user)
    try:
        with_system = _rendered(tokenizer, [{"role": "system", "content": SYSTEM}, *turns])
    except (ValueError, TemplateError):
        return Affixes(no_system, None, user, assistant)  # it takes none
    around = _between(with_system, [SYSTEM, *TURNS])
    if around is None:
        return None
    if not around[1].endswith(before_user):
        return Affixes(no_system, (around[0], around[1]), user, assistant, joins=True)
    return Affixes(no_system, (around[0], around[1].removesuffix(before_user)), user, assistant)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """Without the token that begins a text, which Ollama writes by itself."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token or "")


def _between(text: str, marks: list[str]) -> list[str] | None:
    """What stands before, between and behind the marks; None where one is missing, or out of order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _common_end(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), None)
    length = min(len(one), len(other)) if length is None else length
    return one[len(one) - length :]


def _text(text: str) -> str:
    """As it stands in a Go template: braces in it are none of the template's."""
    return text.replace("{{", '{{ "{{" }}')
