"""Completions from a model behind any server that speaks OpenAI's protocol."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

from trl_ext.generation.endpoint_answers import (
    NoText,
    Secrets,
    Silent,
    address_and_query,
    check_key,
    public_url,
    texts_and_ends,
    tokens_of,
    unsaid_ends,
)
from trl_ext.generation.endpoint_errors import EndpointError, NoCompletion, RefusedRequest, shown_prompt
from trl_ext.generation.extra_fields import checked_extra_body
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.sequences.samples import Sample, as_completion
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import AT_LEAST_1, Rule
from trl_ext.trainer_kit.seeds import stable_seed

REFUSALS = (400, 413, 422)  # of what was asked, and not of who asks, or how often
SAID = Rule(fits=lambda name: bool(name.strip()), expected="the name of a model on the server")
ADDRESS = Rule(expected="an address such as 'http://localhost:8000/v1', or None")
EMPTY_ANSWERS = 3  # in a row, after which a prompt is given up
KEPT = "Where a run writes them down, finished parts are kept: once it answers again, resume the run for the missing ones alone."


class EndpointGenerator:
    """Asks a server for completions: messages as a chat, text as text to go on from.

    Such completions come without token ids, and are not the policy's own: the policy is only trained on them.
    A server that ignores the number of samples asked for, or gives some without text or cut off by an error or
    a filter, is asked again, with another seed, for the rest. What does not say how it ended is taken as cut, aloud. At temperature 0 all samples of a prompt are equal, so it is asked for one.

    Args:
        model: Its name on the server.
        base_url: e.g. "http://localhost:8000/v1"; None: as the environment says, or OpenAI itself. Its query is sent
            along with each request, and neither that nor a password in it is shown or written anywhere.
        api_key: None: OPENAI_API_KEY of the environment; a server of one's own may need none.
        concurrency: Prompts that are asked at a time.
        timeout: Longest wait for one answer, in seconds.
        max_retries: How often a request that failed is sent again, with growing pauses.
        extra_body: Other fields of each request, that the server knows; e.g. of vLLM, for a model that would think first,
            {"chat_template_kwargs": {"enable_thinking": False}}. They are written down with what came: no place for a key.

    Attributes:
        tokens: Read and written for all that was asked so far, as the server counts them.

    Raises:
        EndpointError: From `generate`, a ConnectionError that names the server and what failed.
    """

    samples_policy = False

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 600.0,
        max_retries: int = 3,
        extra_body: Mapping[str, Any] | None = None,
    ):
        call = self._maker
        self.model = checked(call, "model", model, str, SAID)
        self.name = f"endpoint:{model}"
        base_url = checked(call, "base_url", base_url, str | None, ADDRESS)
        self.concurrency = checked(call, "concurrency", concurrency, int, AT_LEAST_1)
        timeout = checked(call, "timeout", timeout, float, Rule(above=0, expected="seconds, more than 0"))
        max_retries = checked(call, "max_retries", max_retries, int, Rule(0, expected="0 or more"))
        self.extra_body = checked_extra_body(extra_body, call=call)
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
        self._client = _client(base_url, api_key, call=call, timeout=timeout, max_retries=max_retries)
        self._secrets = Secrets(base_url or "", api_key)
        self._warned = False
        self.tokens, self._lock = 0, Lock()

    @property
    def base_url(self) -> str:
        """Of the server, without a user, password or key in it."""
        return public_url(str(self._client.base_url))

    def settings(self) -> dict[str, Any]:
        extra = {"extra_body": self.extra_body} if self.extra_body else {}
        return {"generator": "endpoint", "model": self.model, "base_url": self.base_url} | extra

    def generate(
        self, parts: Iterable[Part], sampling: Sampling, policy: Policy
    ) -> Iterator[tuple[Part, list[Sample]]]:
        """Yield each part with its samples; `policy` is not asked."""
        threads = ThreadPoolExecutor(self.concurrency)
        try:
            for part in parts:
                answers = threads.map(partial(self._samples, sampling=sampling), part.rows, part.prompts)
                yield part, [sample for samples in answers for sample in samples]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _samples(self, row: int, prompt: Text, *, sampling: Sampling) -> list[Sample]:
        asked = 1 if sampling.temperature == 0 else sampling.num_generations
        try:
            choices = self._choices(row, prompt, asked, sampling) * (sampling.num_generations // asked)
        except RefusedRequest as error:
            named = error.of(f"prompt {row}, {shown_prompt(prompt)}")
            named.item = prompt
            raise named from None
        return [
            Sample(
                row=row,
                sample=number,
                prompt=prompt,
                completion=as_completion(prompt, text),
                prompt_ids=None,
                completion_ids=None,
                ended=ended,
                generator=self.name,
                seed=seed,
            )
            for number, (text, ended, seed) in enumerate(choices)
        ]

    def _choices(self, row: int, prompt: Text, asked: int, sampling: Sampling) -> list[tuple[str, bool, int]]:
        """As many texts as asked for, each with whether it ended and its seed, however few come at a time."""
        choices: list[tuple[str, bool, int]] = []
        empty = 0  # answers in a row
        while len(choices) < asked:
            seed = stable_seed(sampling.seed, row, *([len(choices)] if choices else []), *["again"] * empty)
            try:
                came = self._ask(prompt, asked - len(choices), seed, sampling)[: asked - len(choices)]
            except NoText as error:
                empty += 1
                if empty == EMPTY_ANSWERS:
                    raise self._error(
                        f"it gave {len(choices)} of the {asked} completions that prompt {row} should get, and then "
                        f"{EMPTY_ANSWERS} answers without any; the last was {self._secrets.excerpt(error.came)}",
                        NoCompletion if isinstance(error, Silent) else EndpointError,
                    ) from None
            else:
                choices += [(text, ended, seed) for text, ended in came]
                empty = 0
        return choices

    def _ask(self, prompt: Text, n: int, seed: int, sampling: Sampling) -> list[tuple[str, bool]]:
        """One request."""
        answer = self._answer(prompt, {"model": self.model, "n": n, "seed": seed, **request_options(sampling)})
        try:
            texts, without = texts_and_ends(answer)
        except json.JSONDecodeError:  # e.g. a web page
            raise self._error(
                f"it could not be asked: it answered something else than JSON ({self._secrets.beginning(answer)!r}); does its base_url end "
                "in /v1?"
            ) from None
        if without:
            first = self._secrets.excerpt(without[0])
            warnings.warn(
                f"{self._call}: {len(without)} of {len(texts) + len(without)} completions of {self._secrets.excerpt(prompt)} "
                f"came without text, or cut off by the server, and are asked for again, e.g. {first}",
                stacklevel=2,
            )
        self._warn_of_unsaid(unsaid_ends(answer))
        return texts

    def _warn_of_unsaid(self, unsaid: list[Any]) -> None:
        if not unsaid or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{self._call}: a completion says finish_reason={unsaid[0].get('finish_reason')!r}, where 'stop' or 'length' says "
            "how it ended; all such are taken as cut (RAFT and ReST leave them out, unless drop_truncated=False). Said once.",
            stacklevel=2,
        )

    def _answer(self, prompt: Text, options: dict[str, Any]) -> str:
        """What it sends back, as it is. Errors are raised without their cause, which may repeat a key."""
        import openai

        if self.extra_body:
            options = options | {"extra_body": options.get("extra_body", {}) | self.extra_body}
        try:
            if isinstance(prompt, str):
                answer = self._client.completions.with_raw_response.create(prompt=prompt, **options)
            else:
                answer = self._client.chat.completions.with_raw_response.create(messages=prompt, **options)
        except openai.APIStatusError as error:
            said = f"it refused ({error.message})"
            if error.status_code in REFUSALS:
                raise RefusedRequest(f"{self._call}: {self._secrets.hidden(said)}.") from None
            raise self._error(said) from None
        except openai.APITimeoutError:
            raise self._error(f"it did not answer within {self._client.timeout} s") from None
        except openai.OpenAIError as error:
            raise self._error(f"it could not be asked ({error.__cause__ or error})") from None
        text = answer.http_response.text
        with self._lock:
            self.tokens += tokens_of(text)
        return text

    @property
    def _maker(self) -> str:
        """Who is named where something is refused."""
        return type(self).__name__

    @property
    def _call(self) -> str:
        return f"{self._maker}({self.model!r}, base_url={self.base_url!r})"

    def _error(self, what: str, kind: type[EndpointError] = EndpointError) -> EndpointError:
        return kind(f"{self._call}: {self._secrets.hidden(what)}. {KEPT}")


def request_options(sampling: Sampling) -> dict[str, Any]:
    """Sampling as a request takes it. What OpenAI does not know is only sent where it is asked for.

    >>> request_options(Sampling(max_completion_length=9, top_k=5))
    {'temperature': 1.0, 'top_p': 1.0, 'max_tokens': 9, 'extra_body': {'top_k': 5}}
    """
    default = Sampling()
    more = ("top_k", "min_p", "repetition_penalty")
    changed = {name: getattr(sampling, name) for name in more if getattr(sampling, name) != getattr(default, name)}
    options = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_completion_length,
    }
    return options | ({"extra_body": changed} if changed else {})


def _client(base_url: str | None, api_key: str | None, *, call: str, timeout: float, max_retries: int):
    try:
        import openai
    except ImportError as error:
        raise ImportError(f'{call} needs the openai client: pip install "trl-ext[endpoint]"') from error
    if api_key is None and base_url is None:
        raise ValueError(
            f"{call}(base_url=None, api_key=None): OpenAI's own server needs a key. Give api_key, set "
            "OPENAI_API_KEY, or give the base_url of another server."
        )
    if api_key is not None:
        check_key(api_key, call=call)
    address, query = (None, None) if base_url is None else address_and_query(base_url, call=call)
    return openai.OpenAI(
        base_url=address, default_query=query, api_key=api_key or "none", timeout=timeout, max_retries=max_retries
    )
