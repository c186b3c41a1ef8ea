"""A server in OpenAI's format, in a thread, whose answers and log-probabilities are those of a model; and its faults."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LogProbServer(ThreadingHTTPServer):
    """Greedy answers of a model, with the log-probabilities of its likeliest tokens, on both routes.

    Attributes:
        requests: Path, body and key of each.
        faults: What becomes of the next requests, in turn: a status, "cut", "slow", or a function of the answer.
        always: The same of each.
        limit: Longest request in characters, above which it is refused; None: there is none.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer, self.lock = model, tokenizer, threading.Lock()
        self.requests: list[tuple[str, dict, str | None]] = []
        self.faults: list[int | str | Callable] = []
        self.always: int | str | Callable | None = None
        self.busy = self.most_busy = 0
        self.wait = 0.0
        self.slow = threading.Event()
        self.limit: int | None = None
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.slow.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Quiet where a client that waited too long has gone."""

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


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path, request, self.headers["Authorization"]))
            fault = server.faults.pop(0) if server.faults else server.always
            server.busy += 1
            server.most_busy = max(server.busy, server.most_busy)
        time.sleep(server.wait)
        with server.lock:
            server.busy -= 1
        self.say(request, fault)

    def say(self, request: dict, fault: int | str | Callable | None) -> None:
        if fault == "slow":
            self.server.slow.wait(5)
        status = fault if isinstance(fault, int) else 200
        said = "not now"
        if self.server.limit is not None and len(json.dumps(request)) > self.server.limit:
            status = fault = 400
            said = "This model's maximum context length is exceeded."
        answer = {"error": {"message": said}} if isinstance(fault, int) else self.server.answer(request)
        body = fault(answer) if callable(fault) else answer
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, *args):
        pass


def without_log_probs(answer: dict) -> dict:
    answer["choices"][0]["logprobs"] = None
    return answer


def half(answer: dict) -> str:
    text = json.dumps(answer)
    return text[: len(text) // 2]
