"""What servers of tests that answer JSON with JSON have in common: a thread, an address, how many are busy at a time."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JsonServer(ThreadingHTTPServer):
    """Answers, at a free port of this machine, until it is closed.

    Attributes:
        busy, most_busy: Requests that are being answered, now and at most so far.
        wait: How long each takes at least, in seconds.
    """

    def __init__(self, handler: type["JsonHandler"]):
        super().__init__(("127.0.0.1", 0), handler)
        self.lock, self.busy, self.most_busy, self.wait = threading.Lock(), 0, 0, 0.0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Quiet where a client that waited too long has gone."""

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """While a request is being answered."""
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            time.sleep(self.wait)
            yield
        finally:
            with self.lock:
                self.busy -= 1


class JsonHandler(BaseHTTPRequestHandler):
    def asked(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def say(self, body: dict | str, status: int = 200, *, cut: bool = False, **headers: str) -> None:
        """An answer, as JSON if it is none yet; `cut` in the middle, as by a server that dies."""
        kind = "application/json" if isinstance(body, dict) or body.startswith("{") else "text/html"
        content = (json.dumps(body) if isinstance(body, dict) else body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def log_message(self, *args):
        pass
