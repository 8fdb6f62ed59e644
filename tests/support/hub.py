"""A Hugging Face hub on this machine: repositories in memory, with the requests that its client makes for one commit.

Its client reads its settings when it is imported, so it must run in processes with `settings` in their environment.
"""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_test"
HIDDEN = ("HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class HubServer(ThreadingHTTPServer):
    """The repositories: the files of each by name, and their commits."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}
        """Large files by their SHA-256, uploaded but perhaps not committed."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, repository: str) -> str:
        files = self.repositories[repository]
        listed = [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:40]

    def settings(self, cache: Path, token: str = TOKEN) -> dict[str, str]:
        """Return the environment of a process that uses this hub."""
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token}
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(HIDDEN)}
        return kept | own | {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}


class Answers(BaseHTTPRequestHandler):
    """The answers to the client's requests."""

    server: HubServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(content)["files"]
            modes = [("lfs" if file["path"].endswith(".graft") else "regular", file["path"]) for file in files]
            self.send(200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for mode, p in modes]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self.send(200, {"transfer": "basic", "objects": [self.action(o) for o in json.loads(content)["objects"]]})
        elif self.path.endswith("/commit/main"):
            self.commit(self.path.removeprefix("/api/models/").removesuffix("/commit/main"), content)
        else:
            self.send(404, {"error": f"not in this hub: {self.path}"})

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        self.server.private.setdefault(name, bool(asked.get("private")) or asked.get("visibility") == "private")
        self.send(409 if known else 200, {"url": f"{self.server.address}/{name}", "name": name})

    def action(self, file: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.address}/upload/{file['oid']}"
        return file | {"actions": {"upload": {"href": href, "header": {}}}}

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/upload/{hashlib.sha256(content).hexdigest()}"
        self.server.stored[self.path.removeprefix("/upload/")] = content
        self.send(200, {})

    def commit(self, repository: str, content: bytes) -> None:
        files = self.server.repositories[repository]
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        oid = self.server.commit_of(repository)
        self.send(200, {"commitUrl": f"{self.server.address}/{repository}/commit/{oid}", "commitOid": oid})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        repository, _, name = self.path.lstrip("/").partition("/resolve/main/")
        files = self.server.repositories.get(repository)
        if files is None or name not in files:
            code = "RepoNotFound" if files is None else "EntryNotFound"
            self.send(404, {"error": code}, {"X-Error-Code": code})
            return
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        self.send(200, files[name], {"X-Repo-Commit": self.server.commit_of(repository), "ETag": etag})

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def hub() -> Iterator[HubServer]:
    """Serve an empty hub."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
