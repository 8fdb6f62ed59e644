"""The files of a product as agencies deliver it, a folder or a zip archive, and its metadata as tables.

Names come from listing the folder or the archive, never from its metadata, so that these cannot lead elsewhere. A zip
archive is not extracted: GDAL reads bands in it. Texts are limited in size, and XML has no document type or entities.
"""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

from geograft.errors import InputError
from geograft.files import check_input_file

MAX_TEXT_BYTES = 2**25
"""Size of a metadata file."""
MAX_MEMBER_BYTES = 2**33
"""Size of a band in an archive; one of Sentinel-2 has 2**28 bytes."""
MAX_FILES = 10_000
MAX_DEPTH = 8
UNSAFE_NAME = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^\w:|[\x00-\x1f{}]")
Groups: TypeAlias = dict[str, dict[str, str]]
"""Values of a metadata file by group and key."""


class Folder:
    """The files of a folder, by their names relative to it."""

    container: Path | None = None

    def __init__(self, root: Path) -> None:
        self.place = root

    def names(self) -> list[str]:
        """Return the names of all files, sorted, with slashes.

        Raises:
            InputError: if the folder cannot be read, or has too many files.
        """
        try:
            names = sorted(islice(self._walk(), MAX_FILES + 1))
        except OSError as error:
            raise InputError(f"{self.place} cannot be read: {error.strerror}. Check the path.") from error
        if len(names) > MAX_FILES:
            raise InputError(f"{self.place} has more than {MAX_FILES:,} files. Pass the folder of one product.")
        return names

    def read(self, name: str) -> bytes:
        """Return the content of a metadata file.

        Raises:
            InputError: if it cannot be read or is too large.
        """
        path = self.place / name
        if check_input_file(path).st_size > MAX_TEXT_BYTES:
            raise InputError(f"{path} is too large for a metadata file. Get it again.")
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error

    def path(self, name: str) -> Path:
        """Return the path of a band."""
        return self.place / name

    def _walk(self) -> Iterator[str]:
        def fail(error: OSError) -> None:
            raise error

        for folder, folders, names in os.walk(self.place, onerror=fail):
            relative = Path(folder).relative_to(self.place)
            if len(relative.parts) >= MAX_DEPTH:
                folders.clear()
            yield from ((relative / name).as_posix() for name in names)


class Archive:
    """The files of a zip archive, by their names in it."""

    def __init__(self, path: Path) -> None:
        check_input_file(path)
        self.place = self.container = path

    def names(self) -> list[str]:
        """Return the names of all files, sorted.

        Raises:
            InputError: if the archive cannot be read, has too many files, or names that lead out of it.
        """
        with self._open() as archive:
            entries = archive.infolist()
        if len(entries) > MAX_FILES:
            raise InputError(f"{self.place} has more than {MAX_FILES:,} files. Unpack it.")
        unsafe = next((entry.filename for entry in entries if UNSAFE_NAME.search(entry.filename)), None)
        if unsafe is not None:
            raise InputError(f"{self.place} has a file called {unsafe!r}, which is not read. Get the archive again.")
        return sorted(entry.filename for entry in entries if not entry.is_dir())

    def read(self, name: str) -> bytes:
        """Return the content of a metadata file.

        Raises:
            InputError: if it cannot be read or is too large, whatever size the archive states.
        """
        try:
            with self._open() as archive, archive.open(name) as member:
                content = member.read(MAX_TEXT_BYTES + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            NotImplementedError,
            RuntimeError,
            EOFError,
            ValueError,
        ) as error:
            raise InputError(f"{self.place}: {name} cannot be read: {error}. Get the archive again.") from error
        if len(content) > MAX_TEXT_BYTES:
            raise InputError(f"{self.place}: {name} is too large for a metadata file. Get the archive again.")
        return content

    def path(self, name: str) -> Path:
        """Return GDAL's name of a band.

        Raises:
            InputError: if it is larger than any band, or the path of the archive has braces.
        """
        with self._open() as archive:
            size = archive.getinfo(name).file_size
        if size > MAX_MEMBER_BYTES:
            raise InputError(f"{self.place}: {name} has {size:,} bytes unpacked; a band has less. Check the archive.")
        if set("{}") & set(str(self.place.absolute())):
            raise InputError(f"{self.place} has braces in its path, and cannot be read in place. Unpack it.")
        return Path(f"/vsizip/{{{self.place.absolute()}}}/{name}")

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.place)
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError) as error:
            raise InputError(f"{self.place} cannot be read as a zip file: {error}. Check or replace it.") from error


ProductFiles: TypeAlias = Folder | Archive


def parse_xml(content: bytes, name: str) -> ElementTree.Element:
    """Return the root of an XML document in UTF-8 without document type and entities; namespaces are dropped.

    Raises:
        InputError: if it is anything else; `name` is used in the message.
    """
    try:
        text = content.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(f"{name} has a document type or entities, which are not read. Get it again.")
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{name} is not well-formed XML: {error}. Get it again.") from error
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    return root


def parse_groups(content: bytes, name: str) -> Groups:
    """Return the groups of a Landsat metadata file (MTL) in one of its three forms: XML, JSON or text.

    Raises:
        InputError: if it is none of them; `name` is used in the message.
    """
    suffix = Path(name).suffix.lower()
    if suffix == ".xml":
        return {
            group.tag: {item.tag: (item.text or "").strip() for item in group} for group in parse_xml(content, name)
        }
    if suffix == ".json":
        tables = read_json(content, name)
        found = next((value for value in tables.values() if isinstance(value, dict)), {})
        pairs = ((group, values) for group, values in found.items() if isinstance(values, dict))
        return {group: {key: str(value) for key, value in values.items()} for group, values in pairs}
    return _parse_odl(content.decode("utf-8", "replace"))


def _parse_odl(text: str) -> Groups:
    """Return the groups of `GROUP = NAME`, `KEY = VALUE` and `END_GROUP = NAME` lines."""
    groups: Groups = {}
    open_groups: list[str] = []
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            open_groups.append(value)
        elif key == "END_GROUP" and open_groups:
            open_groups.pop()
        elif value and open_groups:
            groups.setdefault(open_groups[-1], {})[key] = value.strip('"')
    return groups


def read_json(content: bytes, name: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        InputError: if it is not one; `name` is used in the message.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {error}. Get it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{name} is not a JSON object. Get it again.")
    return found
