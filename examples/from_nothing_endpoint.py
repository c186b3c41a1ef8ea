"""A server on this machine that speaks OpenAI's protocol: what it says was recorded, or is played.

`from_nothing.py` asks it for instructions, which were recorded, and for the better of two answers about the demo's world, which
nobody could record beforehand: the policy's samples are new. There a judge is played who knows the world, is wrong about one
pair in ten, and likes the first place by a logit.
"""

import json
import re
import threading
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import exp, log
from pathlib import Path

from trl_ext.demo import Entity, answered_right, questions
from trl_ext.trainer_kit import stable_seed

Answers = Callable[[str], str | None]
Judge = Callable[[str], float | None]
PAIR = re.compile(
    r".*Conversation:\n(.*)\n\nResponse 1:\n(.*)\n\nResponse 2:\n(.*)\n\nWhich response is better\?.*", re.S
)
ERROR, FIRST_PLACE, SURENESS = (
    0.1,
    1.0,
    2.0,
)  # share of pairs judged wrong; logits for the first place, and per unit of quality


class RecordedEndpoint(ThreadingHTTPServer):
    """Answers each prompt with one text, as it always did; inside a `with` block.

    Args:
        answers: From a prompt to the text, or None where nothing was recorded, which is answered by an error.
        judge: From a question about a pair to the logit of "1" over "2"; None for what is no such question.

    Attributes:
        asked: The requests so far.
    """

    daemon_threads = True

    def __init__(self, answers: Answers, judge: Judge = lambda prompt: None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.judge, self.asked = answers, judge, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "RecordedEndpoint":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args) -> None:
        self.shutdown()
        self.server_close()

    def choice(self, prompt: str) -> dict | None:
        """As the protocol has it, of text."""
        logit = self.judge(prompt)
        if logit is not None:
            return {"text": " 1" if logit > 0 else " 2", "logprobs": listed(logit)}
        text = self.answers(prompt)
        return None if text is None else {"text": text}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        choice = self.server.choice(request["prompt"])
        if choice is None:
            said = f"nothing was recorded for {request['prompt'][-80:]!r}"
            return self._send(404, {"error": {"message": said}})
        answer = {"id": "0", "object": "text_completion", "created": 0, "model": request["model"]}
        self._send(200, answer | {"choices": [{"index": 0, "finish_reason": "stop"} | choice]})

    def _send(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def listed(logit: float) -> dict:
    """Log-probabilities of " 1" and " 2", which have all the mass between them but a hundredth."""
    probability = 1 / (1 + exp(-logit))
    both = {" 1": log(0.99 * probability), " 2": log(0.99 * (1 - probability))}
    taken = max(both, key=both.get)
    return {"tokens": [taken], "token_logprobs": [both[taken]], "top_logprobs": [both]}


def prompt_key(prompt: str) -> str:
    """Stands for a prompt in a recording, of which it would be most."""
    return sha256(prompt.encode()).hexdigest()[:16]


def recorded(path: Path) -> Answers:
    """The answers of a .jsonl file with `prompt`, its key, and `text`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = {row["prompt"]: row["text"] for row in rows}
    return lambda prompt: texts.get(prompt_key(prompt))


def world_judge(world: list[Entity]) -> Judge:
    """Who knows the demo's world, with the error and the liking of above."""
    rows = {row["prompt"]: row for row in questions(world, held_out=False)}
    entities = {entity.subject: entity for entity in world}

    def judge(prompt: str) -> float | None:
        found = PAIR.fullmatch(prompt)
        if found is None:
            return None
        question, first, second = found.groups()
        row = rows.get(question.strip())
        if row is None:
            return FIRST_PLACE
        better = quality(row, first, entities[row["subject"]]) - quality(row, second, entities[row["subject"]])
        return SURENESS * better * _sign(question, first, second) + FIRST_PLACE

    return judge


def quality(row: dict, answer: str, entity: Entity) -> float:
    """Of an answer: right or not where one fact is asked for; else the facts that it has; less what else it says."""
    sentences = [sentence.strip() for sentence in re.findall(r"[^.]+\.?", answer) if sentence.strip()]
    if row["query_type"] == "closed":
        right = answered_right(answer, attribute=row["attribute"], answer=row["answer"])
        return 2.0 * right - 0.5 * max(len(sentences) - 1, 0)
    true = {
        sentence for name in entity.facts for form in (0, 1) if (sentence := entity.sentence(name, form)) in sentences
    }
    return len(true) - 0.5 * (len(sentences) - len(true))


def _sign(question: str, first: str, second: str) -> int:
    """−1 for the pairs that are judged wrong, in either order."""
    drawn = stable_seed(question, *sorted((first, second))) % 1000
    return -1 if drawn < 1000 * ERROR else 1
