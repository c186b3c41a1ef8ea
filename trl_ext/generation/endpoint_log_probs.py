"""How likely a model behind a server that speaks OpenAI's protocol answers with one of a few words."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from trl_ext.generation.endpoint_generator import EndpointGenerator
from trl_ext.generation.listed_tokens import NoLogProbs, Place, option_bounds, places_of
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import Rule

PLACES = 2  # tokens that are asked for: some tokenizers write a blank of its own before the answer
LISTED = {True: 20, False: 5}  # of a chat, of text: the most that OpenAI gives


class EndpointLogProbs(EndpointGenerator):
    """Asks a server for the log-probabilities of the likeliest next tokens, `logprobs`, and finds the options among them.

    An option that is not listed is given the most that it can have: what the least likely listed token has, or what all
    listed ones leave. The key comes from the environment, `OPENAI_API_KEY`, and is not shown or written anywhere.

    Args:
        model: Its name on the server.
        base_url: e.g. "http://localhost:8000/v1"; None: as the environment says, or OpenAI itself.
        chat: Whether it is asked as a chat; False: for text to go on from, as base models are.
        listed: How many tokens the server lists at a place; None: 20 of a chat, 5 of text, OpenAI's most.
        concurrency: How much is asked at a time.
        timeout: Longest wait for one answer, in seconds.
        max_retries: How often a request that failed, or an answer that cannot be read, is asked for again.
        extra_body: Other fields of each request, that the server knows; e.g. of vLLM, for a model that would think first,
            {"chat_template_kwargs": {"enable_thinking": False}}. They are written down with what came: no place for a key.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        chat: bool = True,
        listed: int | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_retries: int = 3,
        extra_body: Mapping[str, Any] | None = None,
    ):
        call = "EndpointLogProbs"
        if not (base_url or os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
            raise ValueError(
                f"{call}(base_url=None): OpenAI's own server needs a key, which is read from the environment alone. Set "
                "OPENAI_API_KEY there, or give the base_url of another server."
            )
        self.chat = checked(call, "chat", chat, bool)
        listed = checked(call, "listed", listed, int | None, Rule(2, expected="2 or more tokens, or None"))
        self.listed = LISTED[chat] if listed is None else listed
        super().__init__(
            model,
            base_url,
            concurrency=concurrency,
            timeout=timeout,
            max_retries=max_retries,
            extra_body=extra_body,
        )

    def option_log_probs(self, context: Text, options: Sequence[str]) -> list[float]:
        """log p that the answer to a context begins with each option, which are words of a token, whatever blank is before.

        Raises:
            EndpointError: For a server that is down, refuses, or gives no log-probabilities.
        """
        request = {"model": self.model, "max_tokens": PLACES, "temperature": 0.0, "seed": 0}
        logprobs = {"logprobs": self.listed} if isinstance(context, str) else {"logprobs": True}
        top = {} if isinstance(context, str) else {"top_logprobs": self.listed}
        return option_bounds(self._places(context, request | logprobs | top), options)

    def _places(self, context: Text, request: dict[str, Any]) -> list[Place]:
        reason = ""
        for _ in range(self._client.max_retries + 1):
            answer = self._answer(context, request)
            try:
                return places_of(content := json.loads(answer))
            except NoLogProbs:
                raise self._error(
                    f"it gives no log-probabilities, of which labels are made; to {'logprobs, top_logprobs' if self.chat else 'logprobs'} "
                    f"it answered {self._secrets.excerpt(content)}. Ask a model and server that give them, e.g. of vLLM or llama.cpp, or a "
                    "model of your own, in the process"
                ) from None
            except (
                ValueError,
                TypeError,
                LookupError,
                AttributeError,
            ):  # a web page, half an answer, a proxy's message
                reason = self._secrets.beginning(answer)
        raise self._error(
            f"its answer cannot be read, {self._client.max_retries + 1} times in a row, the last one was {reason!r}; does its "
            "base_url end in /v1?"
        )
