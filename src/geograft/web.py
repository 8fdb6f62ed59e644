"""Files on web servers, read by GET requests, whole or in parts.

Requests are repeated with growing pauses after status 408, 429 or 5xx, a dropped connection, a timeout or a body that
is too short. Credentials come from the address and from the variables by which GDAL has them; no message has them.
"""

import base64
import http.client
import os
import random
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from geograft.errors import InputError, OutputError
from geograft.files import atomic_write
from geograft.locations import Location, redact

Result = TypeVar("Result")

ATTEMPTS = 6
"""How often a request is sent before its error is reported."""
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
"""Pause before the second attempt, doubled before each further one, and the longest."""
TIMEOUT_S = 30.0
RETRIED = (408, 429, 500, 502, 503, 504)
"""Status of a response after which a request is repeated."""
COPY_BYTES = 2**20
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class StoredObject:
    """What a storage knows of one of its files without reading it."""

    key: str
    size: int
    """In bytes."""
    etag: str
    """Changes with the content; empty where a server gives none."""
    modified: datetime | None = None
    """In UTC, by the clock of the storage; None where a server gives none."""


class TransientError(Exception):
    """A request failed in a way that a repetition may mend."""


class Web:
    """Files below a web address, which can only be read."""

    def __init__(self, root: Location) -> None:
        """Use https://HOST/PATH; sends no request."""
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def put_new(self, key: str, content: bytes | Path) -> bool:
        """Raise OutputError: web addresses can only be read."""
        raise self._read_only_error(key)

    def put(self, key: str, content: bytes | Path) -> None:
        """Raise OutputError, as `put_new`."""
        raise self._read_only_error(key)

    def get(self, key: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: if there is none.
            InputError: if it cannot be read.
        """
        return self._retried(key, _read_all)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, exclusive; fewer at the end of the file.

        Raises:
            FileNotFoundError, InputError: as `get`; InputError also if the server does not answer range requests.
        """
        return self._range(key, start, stop)[0]

    def head(self, key: str) -> StoredObject | None:
        """Return size, ETag and time of a file; None if there is none.

        By a request for its first byte: addresses that are signed for reading refuse HEAD.

        Raises:
            InputError: if it cannot be read, or if the server does not answer range requests.
        """
        with suppress(FileNotFoundError):
            return self.begin(key, 1)[1]
        return None

    def begin(self, key: str, count: int) -> tuple[bytes, StoredObject]:
        """Return the first `count` bytes of a file, and its size, ETag and time, by one request.

        Raises:
            FileNotFoundError, InputError: as `get_range`.
        """
        return self._range(key, 0, count)

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Raise InputError: web servers have no listing."""
        raise InputError(f"{self.root} cannot be listed: it is a web address. Give the addresses of its files.")

    def delete(self, key: str) -> None:
        """Raise OutputError, as `put_new`."""
        raise self._read_only_error(key)

    def download(self, key: str, path: Path) -> None:
        """Copy a file to a local path, atomically, in little memory.

        Raises:
            FileNotFoundError, InputError: as `get`.
            OutputError: if `path` cannot be written.
        """

        def save(response: http.client.HTTPResponse) -> None:
            copy_to(response, part)
            expected = response.headers.get("Content-Length", "")
            if expected.isdigit() and part.stat().st_size != int(expected):
                raise TransientError(f"the response ended after {part.stat().st_size:,} of {int(expected):,} bytes")

        with atomic_write(path) as part:
            self._retried(key, save)

    def _range(self, key: str, start: int, stop: int) -> tuple[bytes, StoredObject]:
        def read(response: http.client.HTTPResponse) -> tuple[bytes, StoredObject]:
            found = RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status != 206 or found is None or int(found[1]) != start:
                raise InputError(
                    f"{self.root / key} cannot be read in parts: the server does not answer range requests. "
                    "Download the file, or use another server."
                )
            content = _read_all(response)
            if len(content) != int(found[2]) - start + 1:
                raise TransientError("the response was too short")
            return content[: stop - start], _web_object(key, int(found[3]), response.headers)

        return self._retried(key, read, {"Range": f"bytes={start}-{stop - 1}"})

    def _retried(
        self,
        key: str,
        read: Callable[[http.client.HTTPResponse], Result],
        headers: Mapping[str, str] | None = None,
    ) -> Result:
        location = self.root / key if key else self.root
        try:
            return with_retries(lambda: _request(location, read, headers or {}))
        except TransientError as error:
            raise InputError(
                f"{location} cannot be read: {error}; {ATTEMPTS} attempts. Check the connection, and try again."
            ) from None

    def _read_only_error(self, key: str) -> OutputError:
        return OutputError(
            f"{self.root / key} cannot be written: web addresses can only be read. Give a local path, s3://, gs:// or "
            "az://."
        )


def with_retries(action: Callable[[], Result]) -> Result:
    """Return the result of `action`, repeated with growing random pauses while it raises TransientError.

    Raises:
        TransientError: after ATTEMPTS attempts.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except TransientError:
            time.sleep(pause_s(attempt))
    return action()


def pause_s(attempt: int) -> float:
    """Return a random pause in seconds after attempt number `attempt`, counted from 0."""
    longest: float = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
    return longest * random.uniform(0.5, 1)


def request_headers(location: Location) -> dict[str, str]:
    """Return the headers of requests to a web address that carry credentials: those of the address, and GDAL's.

    GDAL_HTTP_USERPWD, GDAL_HTTP_BEARER and GDAL_HTTP_HEADERS, as GDAL reads them.
    """
    user, headers = location.user or os.environ.get("GDAL_HTTP_USERPWD", ""), environment_headers()
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode('ascii')}"
    elif bearer := os.environ.get("GDAL_HTTP_BEARER"):
        headers["Authorization"] = f"Bearer {bearer}"
    return headers


def environment_headers() -> dict[str, str]:
    """Return the headers in GDAL_HTTP_HEADERS."""
    lines = re.split(r"\r?\n|,(?=\s*[\w-]+:)", os.environ.get("GDAL_HTTP_HEADERS", ""))
    return {name.strip(): value.strip() for name, mark, value in (line.partition(":") for line in lines) if mark}


def _request(
    location: Location, read: Callable[[http.client.HTTPResponse], Result], headers: Mapping[str, str]
) -> Result:
    """Return what `read` makes of the response to a GET request.

    Raises:
        FileNotFoundError: on status 404 or 410.
        InputError: on any other status that a repetition does not mend.
        TransientError: on any other failure.
    """
    plain = Location(location.scheme, location.host, location.key, location.query)
    request = urllib.request.Request(plain.url, headers={"User-Agent": "geograft", "Accept-Encoding": "identity"})
    for name, value in (*headers.items(), *request_headers(location).items()):
        # Credentials are not sent on to where a redirection leads; a range is.
        (request.add_header if name == "Range" else request.add_unredirected_header)(name, value)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return read(response)
    except urllib.error.HTTPError as error:
        error.close()
        raise _status_error(location, error.code, str(error.reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _connection_error(location, error) from None


def _status_error(location: Location, status: int, reason: str) -> Exception:
    if status in RETRIED:
        return TransientError(f"the server answered {status} {reason}")
    if status in (404, 410):
        return FileNotFoundError(f"{location} does not exist: the server answered {status}. Check the address.")
    if status == 416:
        return InputError(f"{location} is empty, or shorter than was asked for. Check the file.")
    advice = "Check the credentials" if status in (401, 403) else "Check the address"
    return InputError(f"{location} cannot be read: the server answered {status} {redact(reason)}. {advice}.")


def _connection_error(location: Location, error: Exception) -> Exception:
    """Return the error for a request without a response; such as a wrong name or certificate are not transient."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    text = redact(" ".join(str(getattr(cause, "strerror", None) or cause or type(cause).__name__).split()))
    unknown = isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN
    lasting = isinstance(cause, ssl.SSLCertVerificationError) or unknown
    if lasting or (isinstance(cause, ValueError) and not isinstance(cause, OSError)):
        return InputError(f"{location} cannot be read: {text}. Check the address.")
    return TransientError(text or "the connection was dropped")


def _read_all(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read()
    except http.client.IncompleteRead as error:
        raise TransientError(f"the response ended after {len(error.partial):,} bytes") from error


def _web_object(key: str, size: int, headers: Any) -> StoredObject:
    modified = None
    with suppress(ValueError, TypeError):
        modified = parsedate_to_datetime(headers.get("Last-Modified"))
    # Without an ETag, the time tells of changes.
    return StoredObject(key, size, headers.get("ETag") or headers.get("Last-Modified") or "", modified)


def copy_to(source: Any, path: Path) -> None:
    """Write what a binary file or a response has left to `path`."""
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, COPY_BYTES)
