"""A web server on loopback for tests: range requests, ETags, counted bytes, and failures where a test wants them."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["", "status", "drop", "short", "no range"]
"""What happens to a response: nothing, status 500, no response, half of the body, all of the file."""
Conditions = Literal["kept", "ignored", "refused"]
"""How the condition If-Match is treated: as RFC 9110 says, not at all, and by refusing every request that has one."""


@dataclass(frozen=True)
class Served:
    """One request as it was answered."""

    method: str
    path: str
    """Without query."""
    first: int | None
    """First byte that was asked for; None without a range."""
    sent: int
    """Bytes of the body that were sent."""
    headers: dict[str, str]


@dataclass
class WebServer:
    """Files by path, and what was asked for."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    """By path; without one, a digest of the content."""
    fault: Callable[[int], Fault] = lambda _: ""
    """The fault of each GET request, by its number."""
    redirects: dict[str, str] = field(default_factory=dict)
    """Addresses that paths lead to, with status 307."""
    conditions: Conditions = "kept"
    answer: Callable[[str, str, bytes], tuple[int, bytes] | None] = lambda *_: None
    """Status and JSON for method, path with query, and body; None: as the files say."""
    requests: list[Served] = field(default_factory=list)
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, name: str, content: bytes) -> str:
        """Serve a file, and return its address."""
        self.files[f"/{name}"] = content
        return f"{self.url}/{name}"

    def sent(self, path: str) -> int:
        """Return the number of bytes of the bodies that were sent of a file."""
        return sum(one.sent for one in self.requests if one.path == path and one.method == "GET")


@contextmanager
def serve_web() -> Iterator[WebServer]:
    """Serve on a free port of loopback until the end of the block."""
    state = WebServer()

    class Handler(_Handler):
        web = state

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that has left

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: WebServer

    def do_GET(self) -> None:
        with self.web.lock:
            fault = self.web.fault(self.web.count)
            self.web.count += 1
        self._serve(fault)

    def do_HEAD(self) -> None:
        self._serve("")

    def do_POST(self) -> None:
        self._serve("")

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self, fault: Fault) -> None:
        path = self.path.partition("?")[0]
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "drop":
            self._log(path, None, 0)
            self.close_connection = True
            self.connection.close()
        elif fault == "status":
            self._send(500, b"", {}, path, None)
        elif path in self.web.redirects:
            self._send(307, b"", {"Location": self.web.redirects[path]}, path, None)
        elif answered := self.web.answer(self.command, self.path, sent):
            self._send(answered[0], answered[1], {"Content-Type": "application/json"}, path, None)
        elif path not in self.web.files:
            self._send(404, b"", {}, path, None)
        else:
            self._send_file(path, fault)

    def _send_file(self, path: str, fault: Fault) -> None:
        content = self.web.files[path]
        etag = self.web.etags.get(path, f'"{hashlib.md5(content).hexdigest()}"')
        headers = {"ETag": etag, "Last-Modified": formatdate(0, usegmt=True), "Accept-Ranges": "bytes"}
        wanted, conditions = self.headers.get("If-Match"), self.web.conditions
        if wanted is not None and (conditions == "refused" or (conditions == "kept" and wanted != etag)):
            self._send(412, b"", headers, path, None)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or fault == "no range":
            self._send(200, content, headers, path, None, fault == "short")
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            self._send(416, b"", headers, path, first)
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers, path, first, fault == "short")

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], path: str, first: int | None, short: bool = False
    ) -> None:
        sent = b"" if self.command == "HEAD" else body[: len(body) // 2] if short else body
        self._log(path, first, len(sent))
        try:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
        except OSError:
            pass  # the client has left
        if short:
            self.close_connection = True

    def _log(self, path: str, first: int | None, sent: int) -> None:
        with self.web.lock:
            self.web.requests.append(Served(self.command, path, first, sent, dict(self.headers)))
