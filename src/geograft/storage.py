"""Files in folders, object stores (S3, Google Cloud Storage, Azure) and on the web, by the same few methods.

    storage = open_storage("s3://bucket/maps")     # or a local folder, gs://, az://; https:// only to read
    storage.put_new("a/job.json", b"{}")           # put if absent: False, and nothing changed, if it exists
    storage.get("a/job.json"), storage.head("a/job.json"), storage.list("a/"), storage.delete("a/job.json")

Requests are repeated with growing pauses after status 408, 429 or 5xx, a dropped connection, a timeout or a body that
is too short. Credentials come from the environment, as GDAL and the AWS tools have them, and are in no message.
"""

import configparser
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.files import StrPath, atomic_write, translate_write_errors
from geograft.locations import Location, redact, to_place
from geograft.web import (
    ATTEMPTS,
    COPY_BYTES,
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    TIMEOUT_S,
    StoredObject,
    TransientError,
    Web,
    copy_to,
    with_retries,
)

Result = TypeVar("Result")

TEMPORARY = ".tmp"
"""Suffix of a file that is being written, whose name begins with a point."""
STATUS, CODE = re.compile(r"\b(?:status code: |status: )(\d{3})( [A-Z][\w ]+)?"), re.compile(r"<Code>(\w+)</Code>")
YES = ("yes", "true", "on", "1")


class LocalFolder:
    """Files of a local folder, or of one on a network file system with hard links (NFS, Lustre, GPFS)."""

    def __init__(self, root: Path) -> None:
        """Use a folder, which need not exist."""
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def put_new(self, key: str, content: bytes | Path) -> bool:
        """Write a file, complete or not at all, unless there is one; return whether it was written.

        The file is synced to disk under a temporary name and then linked, which is exclusive on NFS too.

        Raises:
            OutputError: on any other failure, such as a file system without hard links.
        """
        with self._written(key, content) as (part, path):
            try:
                os.link(part, path)
            except FileExistsError:
                return False
            return True

    def put(self, key: str, content: bytes | Path) -> None:
        """Write or replace a file, complete or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        with self._written(key, content) as (part, path):
            part.replace(path)

    def get(self, key: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: if there is none.
            InputError: if it cannot be read.
        """
        with _translated_read(self._path(key)):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, exclusive; fewer at the end of the file.

        Raises:
            FileNotFoundError, InputError: as `get`.
        """
        with _translated_read(self._path(key)), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def head(self, key: str) -> StoredObject | None:
        """Return size, ETag and time of a file; None if there is none.

        Raises:
            InputError: if it cannot be read.
        """
        with suppress(FileNotFoundError), _translated_read(self._path(key)):
            status = self._path(key).stat()
            modified = datetime.fromtimestamp(status.st_mtime, UTC)
            return StoredObject(key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}", modified)
        return None

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Return the files whose keys begin with `prefix`, by key. Files that are being written are not among them.

        Raises:
            InputError: if the folder cannot be read.
        """
        with _translated_read(self.root):
            paths = self.root.rglob("*") if self.root.is_dir() else ()
            keys = [p.relative_to(self.root).as_posix() for p in paths if not _is_temporary(p.name) and p.is_file()]
        found = (self.head(key) for key in sorted(keys) if key.startswith(prefix))
        return [one for one in found if one is not None]

    def delete(self, key: str) -> None:
        """Remove a file, if there is one.

        Raises:
            OutputError: if it cannot be removed.
        """
        with translate_write_errors(self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def download(self, key: str, path: Path) -> None:
        """Copy a file to a local path, atomically.

        Raises:
            FileNotFoundError, InputError: as `get`.
            OutputError: if `path` cannot be written.
        """
        with _translated_read(self._path(key)), self._path(key).open("rb") as file, atomic_write(path) as part:
            copy_to(file, part)

    def _path(self, key: str) -> Path:
        return self.root / _checked_key(key)

    @contextmanager
    def _written(self, key: str, content: bytes | Path) -> Iterator[tuple[Path, Path]]:
        """Yield a file with the content under a temporary name, and its path."""
        path = self._path(key)
        part = path.with_name(f".{path.name}.{uuid4().hex}{TEMPORARY}")
        with translate_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                if isinstance(content, Path):
                    shutil.copyfile(content, part)
                else:
                    part.write_bytes(content)
                _sync(part)
                yield part, path
            finally:
                part.unlink(missing_ok=True)


class Bucket:
    """Objects of a bucket or container below a prefix. Needs the extra `cloud` (obstore)."""

    def __init__(self, root: Location) -> None:
        """Connect to s3://, gs:// or az://; sends no request.

        Raises:
            SettingError: if obstore is not installed, or the credentials in the environment are incomplete.
        """
        self.root, self._library, self._store = root, _import_obstore(root), _bucket_store(root)

    def __str__(self) -> str:
        return str(self.root)

    def put_new(self, key: str, content: bytes | Path) -> bool:
        """Put an object unless there is one; return whether it was put. All of it is in memory meanwhile.

        Where a response was lost, a repetition may find the object that the first attempt has put, and return False:
        compare contents where that matters.

        Raises:
            OutputError: if it cannot be put.
        """
        with self._errors(key, OutputError):
            try:
                self._library.put(self._store, _checked_key(key), content, mode="create", use_multipart=False)
            except self._library.exceptions.AlreadyExistsError:
                return False
            return True

    def put(self, key: str, content: bytes | Path) -> None:
        """Put or replace an object; large files in parts.

        Raises:
            OutputError: if it cannot be put.
        """
        with self._errors(key, OutputError):
            self._library.put(self._store, _checked_key(key), content)

    def get(self, key: str) -> bytes:
        """Return the content of an object.

        Raises:
            FileNotFoundError: if there is none.
            InputError: if it cannot be read.
        """
        with self._errors(key, InputError):
            read = partial(self._library.get, self._store, _checked_key(key))
            return with_retries(self._transient(lambda: bytes(read().bytes())))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, exclusive; fewer at the end of the object.

        Raises:
            FileNotFoundError, InputError: as `get`.
        """
        with self._errors(key, InputError):
            read = partial(self._library.get_range, self._store, _checked_key(key), start=start, end=stop)
            return with_retries(self._transient(lambda: bytes(read())))

    def head(self, key: str) -> StoredObject | None:
        """Return size, ETag and time of an object; None if there is none.

        Raises:
            InputError: if the bucket cannot be read.
        """
        with suppress(FileNotFoundError), self._errors(key, InputError):
            return _stored(self._library.head(self._store, _checked_key(key)))
        return None

    def begin(self, key: str, count: int) -> tuple[bytes, StoredObject]:
        """Return the first `count` bytes of an object, and its size, ETag and time, by one request.

        Raises:
            FileNotFoundError, InputError: as `get`.
        """

        def attempt() -> tuple[bytes, StoredObject]:
            found = self._library.get(self._store, _checked_key(key), options={"range": (0, count)})
            return bytes(found.bytes()), _stored(found.meta)

        with self._errors(key, InputError):
            return with_retries(self._transient(attempt))

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Return the objects whose keys begin with `prefix`, by key.

        Raises:
            InputError: if the bucket cannot be read.
        """
        # Object stores list by whole parts of keys.
        folder = prefix.rpartition("/")[0] or None
        with self._errors(prefix, InputError):
            found = [_stored(one) for batch in self._library.list(self._store, folder) for one in batch]
        return sorted((one for one in found if one.key.startswith(prefix)), key=lambda one: one.key)

    def delete(self, key: str) -> None:
        """Remove an object, if there is one.

        Raises:
            OutputError: if it cannot be removed.
        """
        with self._errors(key, OutputError), suppress(FileNotFoundError):
            self._library.delete(self._store, _checked_key(key))

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local path, atomically, in little memory.

        Raises:
            FileNotFoundError, InputError: as `get`.
            OutputError: if `path` cannot be written.
        """

        def attempt() -> None:
            found = self._library.get(self._store, _checked_key(key))
            with part.open("wb") as file:
                for chunk in found.stream(min_chunk_size=COPY_BYTES):
                    file.write(chunk)
            if part.stat().st_size != found.meta["size"]:
                raise TransientError("the response was too short")

        with atomic_write(path) as part, self._errors(key, InputError):
            with_retries(self._transient(attempt))

    def _transient(self, action: Callable[[], Result]) -> Callable[[], Result]:
        """Return an action that raises TransientError for a body that was cut; obstore repeats only requests."""

        def run() -> Result:
            try:
                return action()
            except self._library.exceptions.GenericError as error:
                if STATUS.search(str(error)) or "after " in str(error):
                    raise
                raise TransientError(_store_reason(error)) from error

        return run

    @contextmanager
    def _errors(self, key: str, kind: type[GeograftError]) -> Iterator[None]:
        """Raise `kind` in place of the library's errors, whose messages may have credentials."""
        what, reason = (self.root / key if key else self.root), ""
        try:
            yield
        except FileNotFoundError:
            if kind is InputError:
                raise FileNotFoundError(f"{what} does not exist. Check the name.") from None
            reason = "there is no such bucket"
        except (self._library.exceptions.BaseError, TransientError, OSError) as error:
            reason = _store_reason(error)
        if reason:
            done = "read" if kind is InputError else "written"
            raise kind(
                f"{what} cannot be {done}: {reason}. Check the name, the credentials in the environment and the "
                "connection."
            )


Storage: TypeAlias = LocalFolder | Bucket | Web
"""A folder of files, with the same methods whatever it is on."""


def open_storage(root: StrPath | Location) -> Storage:
    """Return the storage of a folder, a bucket with a prefix or a web address. Sends no request.

    Raises:
        InputError: if it is not a valid address.
        SettingError: if obstore is needed but not installed, or the credentials in the environment are incomplete.
    """
    place = to_place(root)
    if isinstance(place, Path):
        return LocalFolder(place)
    return Web(place) if place.is_web else Bucket(place)


def storage_of(location: Location) -> tuple[Web | Bucket, str]:
    """Return the storage of one object and the object's key in it; "" for a web address.

    Raises:
        InputError: if it has no name.
        SettingError: as `open_storage`.
    """
    if location.is_web:
        return Web(location), ""
    if not location.name or location.key.endswith("/"):
        raise InputError(f"{location} is a bucket or a folder in one. Give the address of a file.")
    folder, _, name = location.key.rpartition("/")
    return Bucket(Location(location.scheme, location.host, folder)), name


def s3_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return how S3 is reached, from the environment and the files of the AWS tools, by obstore's names.

    Endpoint (AWS_S3_ENDPOINT with AWS_HTTPS, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL), AWS_NO_SIGN_REQUEST,
    AWS_REQUEST_PAYER, and the profile (AWS_PROFILE) of AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE. Keys in the
    environment are read by obstore itself.
    """
    found = {} if "AWS_ACCESS_KEY_ID" in environment else _aws_profile(environment)
    if host := environment.get("AWS_S3_ENDPOINT"):
        secure = environment.get("AWS_HTTPS", "YES").lower() in YES
        found["endpoint"] = host if "://" in host else f"{'https' if secure else 'http'}://{host}"
    elif url := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"):
        found["endpoint"] = url
    if region := environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
        found["region"] = region
    if environment.get("AWS_NO_SIGN_REQUEST", "").lower() in YES:
        found = {name: value for name, value in found.items() if name in ("endpoint", "region")}
        found["skip_signature"] = "true"
    if environment.get("AWS_REQUEST_PAYER"):
        found["request_payer"] = "true"
    return found


def _aws_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the keys and the region of the profile in the files of the AWS tools."""
    profile = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or "default"
    files = configparser.RawConfigParser()
    home = Path(environment.get("HOME") or Path.home()) / ".aws"
    names = (environment.get("AWS_CONFIG_FILE", home / "config"), environment.get("AWS_SHARED_CREDENTIALS_FILE"))
    try:
        files.read([names[0], names[1] or home / "credentials"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        # The message of configparser quotes the line.
        raise SettingError(
            f"The files of the AWS tools ({names[0]}) cannot be read: {type(error).__name__}. Correct them."
        ) from None
    wanted = {"access_key_id": "aws_access_key_id", "secret_access_key": "aws_secret_access_key",
              "session_token": "aws_session_token", "region": "region"}  # fmt: skip
    sections = [name for name in (profile, f"profile {profile}") if files.has_section(name)]
    return {
        name: files.get(section, option)
        for section in sections
        for name, option in wanted.items()
        if files.has_option(section, option)
    }


def google_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return how Google Cloud Storage is reached, from the environment as GDAL reads it, by obstore's names.

    GOOGLE_APPLICATION_CREDENTIALS is read by both.
    """
    unsigned = environment.get("GS_NO_SIGN_REQUEST", "").lower() in YES
    endpoint = environment.get("CPL_GS_ENDPOINT", "").rstrip("/")
    return ({"base_url": endpoint} if endpoint else {}) | ({"skip_signature": "true"} if unsigned else {})


def _azure_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return how Azure is reached, from the names that GDAL reads in the environment, by obstore's names."""
    text = environment.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = dict(part.partition("=")[::2] for part in text.split(";") if part)
    names = {
        "account_name": environment.get("AZURE_STORAGE_ACCOUNT") or parts.get("AccountName"),
        "account_key": environment.get("AZURE_STORAGE_ACCESS_KEY") or parts.get("AccountKey"),
        "sas_key": environment.get("AZURE_STORAGE_SAS_TOKEN") or parts.get("SharedAccessSignature"),
        "endpoint": parts.get("BlobEndpoint"),
        "skip_signature": "true" if environment.get("AZURE_NO_SIGN_REQUEST", "").lower() in YES else None,
    }
    return {name: value for name, value in names.items() if value}


def _import_obstore(root: Location) -> Any:
    try:
        import obstore  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise SettingError(f"{root} needs obstore: pip install 'geograft[cloud]'.") from error
    return obstore


def _bucket_store(root: Location) -> Any:
    from obstore.exceptions import BaseError  # noqa: PLC0415  (an extra)
    from obstore.store import AzureStore, GCSStore, S3Store  # noqa: PLC0415

    pauses = {"init_backoff": timedelta(seconds=FIRST_PAUSE_S), "max_backoff": timedelta(seconds=MAX_PAUSE_S)}
    common: dict[str, Any] = {
        "prefix": root.key.strip("/") or None,
        "retry_config": {"max_retries": ATTEMPTS - 1, "backoff": pauses},
        "client_options": {"timeout": timedelta(minutes=10), "connect_timeout": timedelta(seconds=TIMEOUT_S)},
    }
    config: Any = {"s3": s3_settings, "az": _azure_settings, "gs": google_settings}[root.scheme]()
    endpoint = str(config.get("endpoint") or config.get("base_url"))
    common["client_options"]["allow_http"] = endpoint.startswith("http://")
    kinds: dict[str, Any] = {"s3": S3Store, "az": AzureStore, "gs": GCSStore}
    try:
        return kinds[root.scheme](root.host, config=config, **common)
    except BaseError as error:
        raise SettingError(
            f"{root} cannot be reached: {_store_reason(error)}. Set the credentials in the environment (docs/cloud.md)."
        ) from None


def _stored(meta: Any) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["e_tag"] or meta["version"] or "", meta["last_modified"])


def _store_reason(error: BaseException) -> str:
    """Return why an object store failed: status and code. The whole text may quote signed requests."""
    text = str(error)
    status, code = STATUS.search(text), CODE.search(text)
    if status:
        said = f"the server answered {status[1]}{(status[2] or '').rstrip()}"
        return f"{said} ({code[1]})" if code else said
    first = text.splitlines()[0] if text else type(error).__name__
    return redact(first)[:200].rstrip(". ")


@contextmanager
def _translated_read(path: Path) -> Iterator[None]:
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(f"{path} does not exist.") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error


def _checked_key(key: str) -> str:
    """Return a key; a name with "..", or an empty one, is a mistake of the program."""
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key")
    return key


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
