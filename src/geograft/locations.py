"""Locations of objects on the web and in object stores, beside paths: https://, s3://, gs:// and az://."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from geograft.errors import InputError
from geograft.files import StrPath

ADDRESS = re.compile(r"(https?|s3|gs|az|file):/{1,2}(.*)", re.IGNORECASE | re.DOTALL)
WEB = ("http", "https")
EMBEDDED = re.compile(r"(?:\b\w+://|/vsi\w+/)[^\s\"'<>]*")
"""An address in a message of a library."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, order=True, repr=False)
class Location:
    """An object, or a folder of objects, that is not a local file. Text of it never has credentials.

    It has those properties of a Path that name outputs and messages, and none that opens a file.
    """

    scheme: str
    """https, http, s3, gs or az."""
    host: str
    """Host and port, or the bucket or container."""
    key: str
    """Path in it, without a first slash; as written in the address, so that of a web address may have escapes."""
    query: str = ""
    """Query of a web address, which may be a signature."""
    user: str = ""
    """User and password of a web address."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}/{self.key}{'?...' if self.query else ''}"

    __repr__ = __str__

    @property
    def url(self) -> str:
        """The whole address, which may contain credentials: for requests, never for messages."""
        user, query = f"{self.user}@" if self.user else "", f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{user}{self.host}/{self.key}{query}"

    @property
    def is_web(self) -> bool:
        """Whether this is a web address, which can only be read."""
        return self.scheme in WEB

    @property
    def name(self) -> str:
        """The last part of the path."""
        last = PurePosixPath(self.key).name
        return unquote(last) if self.is_web else last

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, such as `.tif`."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Location":
        """The folder."""
        return Location(self.scheme, self.host, self.key.rstrip("/").rpartition("/")[0], self.query, self.user)

    def with_name(self, name: str) -> "Location":
        """Return the location with another last part of the path; the query, which may be a signature, stays."""
        return self.parent / name

    def __truediv__(self, name: str) -> "Location":
        return Location(self.scheme, self.host, f"{self.key.rstrip('/')}/{name}".lstrip("/"), self.query, self.user)

    def as_posix(self) -> str:
        """Return the text without credentials, as a Path does."""
        return str(self)


Place: TypeAlias = Path | Location
"""Where a file is."""


def to_place(text: StrPath | Location) -> Place:
    """Return where a file is: a Location for an address, otherwise a Path. `file:` addresses are local paths.

    A Path made of an address has lost one of its slashes, which is added again.

    Raises:
        InputError: if the address has no host or bucket, or control characters.

    >>> to_place("s3://maps/a/b.tif"), to_place("https://example.com/a%20b.tif?token=1").name
    (s3://maps/a/b.tif, 'a b.tif')
    """
    if isinstance(text, Location):
        return text
    match = ADDRESS.fullmatch(os.fspath(text).removeprefix("/vsicurl/"))
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return Path("/" + unquote(rest).lstrip("/"))
    if CONTROL.search(rest):
        raise InputError(f"The address {redact(f'{scheme}://{rest}')!r} has control characters. Correct it.")
    if scheme in WEB:
        return _web_location(scheme, rest)
    host, _, key = rest.partition("/")
    return _checked(Location(scheme, host, key))


def to_places(places: StrPath | Location | Sequence[StrPath | Location]) -> tuple[Place, ...]:
    """Return one place or several, as `to_place`."""
    if isinstance(places, (str, os.PathLike, Location)):
        return (to_place(places),)
    return tuple(map(to_place, places))


def redact(text: str) -> str:
    """Return a text in which addresses have lost what may be credentials: user, password, query and fragment.

    >>> redact("GET https://me:word@host/a.tif?sig=abc failed")
    'GET https://host/a.tif?... failed'
    """
    return EMBEDDED.sub(lambda match: _redacted(match[0]), text)


def _redacted(address: str) -> str:
    plain, mark, _ = address.partition("?") if "?" in address else address.partition("#")
    start, separator, rest = plain.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{start}{separator}{host.rpartition('@')[2]}{slash}{path}{f'{mark}...' if mark else ''}"


def _web_location(scheme: str, rest: str) -> Location:
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        _ = parts.port  # raises ValueError
    except ValueError as error:
        raise InputError(f"{redact(f'{scheme}://{rest}')} is not a valid address: {error}. Correct it.") from error
    user, _, host = parts.netloc.rpartition("@")
    return _checked(Location(scheme, host, parts.path.lstrip("/").replace(" ", "%20"), parts.query, user))


def _checked(location: Location) -> Location:
    what = "host" if location.is_web else "bucket"
    if not location.host or location.host.startswith((".", ":")) or "\\" in location.host:
        raise InputError(f"{location} has no {what}. Give {location.scheme}://{what.upper()}/NAME.")
    if ".." in location.key.split("/"):
        raise InputError(f"{location} has '..' in its path. Give the path that is meant.")
    return location
