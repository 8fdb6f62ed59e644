"""Who may ask: the check of every request before anything else sees it, and the headers of every answer.

Any page in the user's browser can send requests to a server on this machine, and by DNS rebinding read the answers too.
Therefore, also on loopback: the header Host must be the server's own address with its port; every request other than
GET needs the header Origin of this server; everything below /api needs the token that only the printed address has. No
other origin is allowed to read (no CORS), and the pages may load nothing from elsewhere (CSP).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API, TOKEN_HEADER = "/api", b"x-geograft-token"
UPLOADS, UPLOADED = "/api/uploads/", "application/octet-stream"
"""Beginning of the paths to which files are sent, and the type of their content."""
SAFE_METHODS = ("GET", "HEAD")
MAX_BODY_BYTES = 2**20
MAX_QUERY_BYTES, MAX_DIGITS = 2000, 18
TOO_LARGE = "A request may have at most {:,} bytes."
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data: blob:{0}; "
    "connect-src 'self'{0}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""With the basemap's origin, which the map fetches, in place of {0}."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Access:
    """What a request must show."""

    token: str
    hosts: tuple[str, ...]
    """Allowed values of the header Host, with port."""
    read_only: bool = False
    """Whether only GET is allowed."""
    max_upload_bytes: int = 0
    """Maximum size of a file that is sent; 0: none may be."""
    basemap_origin: str = ""
    """The one other server that the page may load something from: pictures, if its user asks for it."""

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason for which a request is refused; None if it is not."""
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        hosts, origins = _values(headers, b"host"), _values(headers, b"origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return 421, f"This server answers to {self.hosts[0]} only."
        allowed = [f"http://{host}" for host in self.hosts]
        if any(origin not in allowed for origin in origins):
            return 403, "Requests of other pages are refused."
        if _values(headers, b"sec-fetch-site") not in ([], ["same-origin"], ["none"]):
            return 403, "Requests of other pages are refused."
        # The whole path, as routes see it: neither case nor a second slash opens another door.
        if scope["path"].lower().lstrip("/").startswith(API[1:]) and not self._has_token(headers):
            return 401, "The token is missing or wrong. Open the address that `geograft serve` printed."
        if scope["method"] not in SAFE_METHODS:
            return self._refused_write(headers, origins, scope["path"])
        return (414, "The query is too long.") if len(scope["query_string"]) > MAX_QUERY_BYTES else None

    def _has_token(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == TOKEN_HEADER]
        return len(given) == 1 and compare_digest(given[0], self.token.encode())

    def _refused_write(
        self, headers: list[tuple[bytes, bytes]], origins: list[str], path: str
    ) -> tuple[int, str] | None:
        if len(origins) != 1:
            return 403, "Requests that change something need the header Origin of this server."
        if self.read_only:
            return 403, "This server is read-only."
        return self._refused_body(headers, path)

    def max_body_bytes(self, path: str) -> int:
        """Return the maximum size of the body of a request."""
        return self.max_upload_bytes if path.startswith(UPLOADS) else MAX_BODY_BYTES

    def _refused_body(self, headers: list[tuple[bytes, bytes]], path: str) -> tuple[int, str] | None:
        limit, is_upload = self.max_body_bytes(path), path.startswith(UPLOADS)
        if is_upload and not limit:
            return 403, "Uploads are off. Start the server with --uploads MB, or use `geograft project --import`."
        lengths = _values(headers, b"content-length")
        # A number with more digits than Python converts is no length.
        if any(not length.isdecimal() or len(length) > MAX_DIGITS or int(length) > limit for length in lengths):
            return 413, TOO_LARGE.format(limit)
        kinds = [kind.partition(";")[0].strip().lower() for kind in _values(headers, b"content-type")]
        has_body = lengths not in ([], ["0"]) or _values(headers, b"transfer-encoding")
        if is_upload and kinds != [UPLOADED]:
            return 415, f"A file is sent as {UPLOADED}."
        if not is_upload and kinds != ["application/json"] and (kinds or has_body):
            return 415, "The content of a request must be JSON."
        return None


def _values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == wanted]


class Guard:
    """ASGI middleware around the whole application. Not a middleware of Starlette: those buffer streams."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        other = f" {access.basemap_origin}" if access.basemap_origin else ""
        self._headers = HEADERS | {"content-security-policy": CONTENT_POLICY.format(other)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # There are no web sockets.
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._with_headers(message.get("headers", []), scope["path"])}
            await send(message)

        refusal = self._access.refusal(scope)
        if refusal is None:
            await self._app(scope, _counted(receive, self._access.max_body_bytes(scope["path"])), send_guarded)
        else:
            await _refuse(send_guarded, *refusal)

    def _with_headers(self, headers: Iterable[Any], path: str) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer with those of every answer; the API's are not stored unless they say so."""
        given = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        names = {name for name, _ in given}
        own = self._headers | {"cache-control": "no-store" if path.startswith(API) else "no-cache"}
        return given + [(name.encode(), value.encode()) for name, value in own.items() if name.encode() not in names]


def _counted(receive: Receive, limit: int) -> Receive:
    """Return a receiver that raises HTTPException (413) beyond `limit` bytes, for a body without stated length."""
    total = 0

    async def counting() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise HTTPException(413, TOO_LARGE.format(limit))
        return message

    return counting


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
