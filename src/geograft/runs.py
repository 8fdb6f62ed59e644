"""Runs as users give them: a folder, a bundle (NAME.graft), or hf:USER/NAME, a bundle on the Hugging Face hub."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from geograft.bundle import MANIFEST, MAX_BYTES, BundleMember, matches, read_manifest
from geograft.errors import InputError, OutputError
from geograft.files import file_digest
from geograft.progress import announce

HUB = "hf:"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""Name of a repository of the hub: USER/NAME."""
HUB_NAME = re.compile(rf"{HUB}({REPOSITORY.pattern})(?:@([\w./-]+))?")
HUB_FILE = "model.graft"
"""Name of the bundle in a repository of the hub."""
HUB_TIMEOUT_S = 5.0
EXPORTED = "exported"
"""Folder of exported graphs and remembered comparisons of backends."""


def local_run(run: Path) -> Path:
    """Return the folder or the bundle of a run. One on the hub is downloaded into the hub's own cache.

    Raises:
        InputError: if it cannot be downloaded.
    """
    return _downloaded(run.as_posix()) if run.as_posix().startswith(HUB) else run


def is_bundle(run: Path) -> bool:
    """Return whether a run is a file, not a folder. Commands read it, but never write into it or beside it."""
    return _is_file(local_run(run))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def run_file(run: Path, name: str) -> Path | BundleMember:
    """Return a file of a run, which need not exist: read it by `read_bytes` or `read_text`.

    Raises:
        InputError: if the run is on the hub and cannot be downloaded.
    """
    place = local_run(run)
    return BundleMember(place, name) if _is_file(place) else place / name


def run_files(run: Path, pattern: str) -> Sequence[Path | BundleMember]:
    """Return the files of a run whose names match a pattern such as `scores-*.json`, by name.

    Raises:
        InputError: if the run is a damaged bundle, or is on the hub and cannot be downloaded.
    """
    place = local_run(run)
    if _is_file(place):
        names = sorted(read_manifest(place).members)
        return [BundleMember(place, name) for name in names if matches(name, pattern)]
    return sorted(place.glob(pattern))


def read_members(run: Path) -> dict[str, bytes]:
    """Return the content of those files of a run that a bundle has, by name.

    Raises:
        InputError: if the run is a damaged bundle, or is on the hub and cannot be downloaded.
    """
    files = (file for pattern in MAX_BYTES if pattern != MANIFEST for file in run_files(run, pattern))
    return {
        file.relative_to(run).as_posix() if isinstance(file, Path) else file.name: file.read_bytes() for file in files
    }


def run_file_digest(run: Path, name: str) -> str:
    """Return the SHA-256 of a file of a run. Reads the whole file.

    Raises:
        FileNotFoundError: if the run does not have it.
        InputError: if the run is a damaged bundle, or is on the hub and cannot be downloaded.
    """
    file = run_file(run, name)
    return file_digest(file) if isinstance(file, Path) else hashlib.sha256(file.read_bytes()).hexdigest()


def run_location(run: Path) -> str:
    """Return where a run is: an absolute path, or its name on the hub."""
    return run.as_posix() if run.as_posix().startswith(HUB) else str(run.resolve())


def export_cache(run: Path) -> Path:
    """Return the folder for the exported graphs of a run: in its folder, or for a bundle in the user's cache folder.

    The names in it are digests of everything that a graph depends on, so bundles share the cache.
    """
    return user_cache_path("geograft", appauthor=False) / EXPORTED if is_bundle(run) else run / EXPORTED


def unchanged_bundle_error(run: Path, what: str, option: str) -> OutputError:
    """Return the error for `what` that would be written into a bundle; `option` says where it can be written."""
    return OutputError(f"{run} is a bundle, which is not changed: {what} cannot be written into it. Give {option}.")


@contextmanager
def silent_hub() -> Iterator[None]:
    """Hide the progress bars of the hub's client in the block: they would be written between lines of JSON."""
    utils: Any = import_module("huggingface_hub.utils")
    hidden = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            utils.enable_progress_bars()


@cache
def _downloaded(run: str) -> Path:
    """Return the path of a bundle of the hub in the hub's own cache. The newest, if the hub responds."""
    found = HUB_NAME.fullmatch(run)
    if found is None:
        raise InputError(f"{run} is not a name on the hub. Give hf:USER/NAME or hf:USER/NAME@REVISION.")
    from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError  # noqa: PLC0415

    repository, revision = found.groups()
    try:
        # One request with a short timeout first: the hub's client retries for most of a minute. Any status will do.
        get_session().head(hf_hub_url(repository, HUB_FILE, revision=revision), timeout=HUB_TIMEOUT_S)
        announce(f"reading {run} from {constants.ENDPOINT}")
        with silent_hub():
            return Path(hf_hub_download(repository, HUB_FILE, revision=revision, etag_timeout=HUB_TIMEOUT_S))
    except RemoteEntryNotFoundError as error:
        raise InputError(f"{run} has no {HUB_FILE}. Give a run that `geograft push` wrote.") from error
    except Exception as error:  # the client's errors depend on its version and backend (requests, httpx)
        try:
            return Path(hf_hub_download(repository, HUB_FILE, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
            raise InputError(
                f"{run} cannot be read from {constants.ENDPOINT}: {reason}. Check the name and the connection; for a "
                "private one, log in with `hf auth login`."
            ) from error
