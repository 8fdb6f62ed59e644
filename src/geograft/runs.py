"""Runs as users give them: a folder, a bundle (NAME.graft), hf:USER/NAME on the Hugging Face hub, or an address.

A run at https://, s3://, gs:// or az:// is read into the user's cache folder as a bundle, which commands never change.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from geograft.bundle import (
    MANIFEST,
    MAX_BYTES,
    SUFFIX,
    BundleMember,
    Origin,
    matches,
    max_bytes,
    read_manifest,
    write_bundle,
)
from geograft.errors import InputError, OutputError, first_line
from geograft.files import StrPath, file_digest, json_digest
from geograft.locations import Location, to_places
from geograft.progress import announce

HUB = "hf:"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""Name of a repository of the hub: USER/NAME."""
HUB_NAME = re.compile(rf"{HUB}({REPOSITORY.pattern})(?:@([\w./-]+))?")
HUB_FILE = "model.graft"
"""Name of the bundle in a repository of the hub."""
HUB_TIMEOUT_S = 5.0
FETCHED = "runs"
"""Folder of runs that were read from an address, in the user's cache folder."""
CARD, WEIGHTS, FEATURES = "card.json", "model.safetensors", "training_features.safetensors"
"""Members of a run that a web server, which has no listing, is asked for."""
EXPORTED = "exported"
"""Folder of exported graphs and remembered comparisons of backends."""


def local_run(run: Path) -> Path:
    """Return the folder or the bundle of a run. One on the hub is downloaded into the hub's own cache.

    Raises:
        InputError: if it cannot be downloaded.
    """
    return _downloaded(run.as_posix()) if run.as_posix().startswith(HUB) else run


def to_runs(runs: StrPath | Location | Sequence[StrPath | Location]) -> tuple[Path, ...]:
    """Return one run or several as paths; those at an address as bundles in the user's cache folder.

    Raises:
        InputError: if one cannot be read, is not a run or is damaged.
    """
    return tuple(fetch_run(place) if isinstance(place, Location) else place for place in to_places(runs))


def fetch_run(location: Location) -> Path:
    """Return a bundle in the user's cache folder with what a bundle or a run's folder at an address has.

    Read again only if it has changed there. Only members of bundles are read: safetensors, JSON, text and a picture, up
    to their maximum sizes.

    Raises:
        InputError: if it cannot be read, is not a run or is damaged.
    """
    return _fetch_bundle(location) if location.suffix.lower() == SUFFIX else _fetch_folder(location)


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
            raise InputError(
                f"{run} cannot be read from {constants.ENDPOINT}: {first_line(error)}. Check the name and the "
                "connection; for a private one, log in with `hf auth login`."
            ) from error


def _fetch_bundle(location: Location) -> Path:
    from geograft.storage import storage_of  # noqa: PLC0415  (of no use for local runs)

    storage, key = storage_of(location)
    state = storage.head(key)
    if state is None:
        raise InputError(f"{location} does not exist. Check the address.")
    if state.size > sum(MAX_BYTES.values()):
        raise InputError(f"{location} has {state.size:,} bytes, more than a bundle can have. Check the address.")
    path = _fetched_path(location, [state.etag, state.size])
    if not (state.etag and path.exists()):
        announce(f"reading {location}")
        storage.download(key, path)
    _check_fetched(path, location)
    return path


def _fetch_folder(location: Location) -> Path:
    from geograft.storage import Bucket, open_storage  # noqa: PLC0415  (of no use for local runs)

    storage = open_storage(location)
    found = {CARD: _fetch_member(location, CARD)}
    # The card names its weights by their digest. What else there is has ETags in the listing of a bucket.
    listed = {one.key: one.etag for one in storage.list() if _is_member(one.key)} if isinstance(storage, Bucket) else {}
    path = _fetched_path(location, [hashlib.sha256(found[CARD] or b"").hexdigest(), listed])
    if path.exists():
        _check_fetched(path, location)
        return path
    announce(f"reading {location}")
    names = (*listed, WEIGHTS, FEATURES) if not listed else (*listed, WEIGHTS)
    found |= {name: _fetch_member(location, name) for name in dict.fromkeys(names) if name != CARD}
    members = {name: content for name, content in found.items() if content is not None}
    if CARD not in members or WEIGHTS not in members:
        missing = CARD if CARD not in members else WEIGHTS
        raise InputError(
            f"{location} is not a run: it has no {missing}. Give the address of a run's folder or of a bundle (.graft)."
        )
    _check_digest(location, members)
    write_bundle(path, members, Origin("unknown"))
    return path


def _fetch_member(location: Location, name: str) -> bytes | None:
    """Return a file of a run's folder at an address; None if it does not exist."""
    from geograft.storage import open_storage  # noqa: PLC0415

    storage, key = open_storage(location), name
    if location.is_web:
        # Below an address with a query, names come before it.
        storage, key = open_storage(location / name), ""
    state = storage.head(key)
    if state is None:
        return None
    if state.size > max_bytes(name):
        raise InputError(f"{location / name} has {state.size:,} bytes; a run has at most {max_bytes(name):,}.")
    return storage.get(key)


def _check_digest(location: Location, members: dict[str, bytes]) -> None:
    """Raise InputError if the weights are not those that the card names."""
    try:
        named = json.loads(members[CARD]).get("weights_digest", "")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{location / CARD} is not the card of a run: {error}. Copy the run again.") from error
    digest = hashlib.sha256(members[WEIGHTS]).hexdigest()
    if named not in ("", digest):
        raise InputError(
            f"{location / WEIGHTS} does not belong to {CARD}: its SHA-256 begins with {digest[:12]}, not with "
            f"{str(named)[:12]}. It may have been read while it was written; try again, or copy the run again."
        )


def _is_member(name: str) -> bool:
    return any(matches(name, pattern) for pattern in MAX_BYTES if pattern != MANIFEST)


def _fetched_path(location: Location, state: Any) -> Path:
    """Return the path in the cache of what is at an address in this state."""
    name = location.stem if location.suffix.lower() == SUFFIX else location.name or location.host
    folder = user_cache_path("geograft", appauthor=False) / FETCHED / json_digest([str(location), state])[:16]
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}{SUFFIX}"


def _check_fetched(path: Path, location: Location) -> None:
    """Raise InputError, after removing it from the cache, if a bundle is damaged."""
    try:
        read_manifest(path)
    except InputError as error:
        path.unlink(missing_ok=True)
        raise InputError(f"{location} cannot be used: {error}") from error
