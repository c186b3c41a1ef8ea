"""A server in OpenAI's format, in a thread, whose answers and log-probabilities are those of a model; and its faults."""

import json
import threading
from collections.abc import Callable

import torch
from json_server import JsonHandler, JsonServer
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LogProbServer(JsonServer):
    """Greedy answers of a model, with the log-probabilities of its likeliest tokens, on both routes.

    Attributes:
        requests: Path, body and key of each.
        faults: What becomes of the next requests, in turn: a status, "cut", "slow", or a function of the answer.
        always: The same of each.
        limit: Longest request in characters, above which it is refused; None: there is none.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.requests: list[tuple[str, dict, str | None]] = []
        self.faults: list[int | str | Callable] = []
        self.always: int | str | Callable | None = None
        self.slow = threading.Event()
        self.limit: int | None = None
        super().__init__(Handler)

    def close(self) -> None:
        self.slow.set()
        super().close()

    def ids(self, request: dict) -> list[int]:
        if "prompt" in request:
            return self.tokenizer(request["prompt"])["input_ids"]
        return self.tokenizer.apply_chat_template(
            request["messages"], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]

    @torch.no_grad()
    def answer(self, request: dict) -> dict:
        ids, places = self.ids(request), []
        read, listed = len(ids), request.get("top_logprobs") or request.get("logprobs") or 1
        for _ in range(request["max_tokens"]):
            log_probs = self.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            top = log_probs.topk(listed)
            places.append(
                [(self.tokenizer.decode([i]), p) for p, i in zip(*map(torch.Tensor.tolist, top), strict=True)]
            )
            ids.append(int(top.indices[0]))
        text = "".join(place[0][0] for place in places)
        choice = {"index": 0, "finish_reason": "length"}
        if "prompt" in request:
            told = {
                "tokens": [place[0][0] for place in places],
                "token_logprobs": [place[0][1] for place in places],
                "top_logprobs": [dict(place) for place in places],
            }
            choice |= {"text": text, "logprobs": told if request.get("logprobs") else None}
        else:
            shown = [[{"token": token, "logprob": p, "bytes": None} for token, p in place] for place in places]
            told = {"content": [place[0] | {"top_logprobs": place} for place in shown]}
            choice |= {
                "message": {"role": "assistant", "content": text},
                "logprobs": told if request.get("logprobs") else None,
            }
        usage = {"prompt_tokens": read, "completion_tokens": len(ids) - read, "total_tokens": len(ids)}
        return {"id": "0", "object": "x", "created": 0, "model": request["model"], "choices": [choice], "usage": usage}


class Handler(JsonHandler):
    def do_POST(self):
        request, server = self.asked(), self.server
        with server.lock:
            server.requests.append((self.path, request, self.headers["Authorization"]))
            fault = server.faults.pop(0) if server.faults else server.always
        with server.one_more():
            pass
        self.answer(request, fault)

    def answer(self, request: dict, fault: int | str | Callable | None) -> None:
        if fault == "slow":
            self.server.slow.wait(5)
        if self.server.limit is not None and len(json.dumps(request)) > self.server.limit:
            return self.say({"error": {"message": "This model's maximum context length is exceeded."}}, 400)
        if isinstance(fault, int):
            again = {"Retry-After": "0.01"} if fault == 429 else {}
            return self.say({"error": {"message": "not now"}}, fault, **again)
        answer = self.server.answer(request)
        self.say(fault(answer) if callable(fault) else answer, cut=fault == "cut")


def without_log_probs(answer: dict) -> dict:
    answer["choices"][0]["logprobs"] = None
    return answer


def half(answer: dict) -> str:
    text = json.dumps(answer)
    return text[: len(text) // 2]
