"""A server on this machine that speaks OpenAI's protocol, and gives what was recorded: the endpoint of `from_nothing.py`."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answers = Callable[[str], str | None]


class RecordedEndpoint(ThreadingHTTPServer):
    """Answers each prompt with one text, as it always did; inside a `with` block.

    Args:
        answers: From a prompt to the text, or None where nothing was recorded, which is answered by an error.

    Attributes:
        asked: The requests so far.
    """

    daemon_threads = True

    def __init__(self, answers: Answers):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.asked = answers, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "RecordedEndpoint":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        prompt = request["prompt"] if "prompt" in request else request["messages"][-1]["content"]
        text = self.server.answers(prompt)
        if text is None:
            return self._send(404, {"error": {"message": f"nothing was recorded for {prompt[-80:]!r}"}})
        said = {"text": text} if "prompt" in request else {"message": {"role": "assistant", "content": text}}
        choices = [{"index": 0, "finish_reason": "stop"} | said]
        self._send(200, {"id": "0", "object": "completion", "created": 0, "model": "recorded", "choices": choices})

    def _send(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def recorded(path: Path) -> Answers:
    """The answers of a .jsonl file with `prompt` and `text`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = {row["prompt"]: row["text"] for row in rows}
    return texts.get
