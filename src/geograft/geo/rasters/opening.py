"""Opening raster files, local or in the cloud, and the state of what was opened.

A remote GeoTIFF is read by range requests of GDAL, with one thread: with several, GDAL 3.10 gives up at the first
failed request, and may return blank pixels. GDAL repeats failed requests; where it gives up, the file is opened again
after a pause. Only the given address is asked for: no masks, overviews or metadata beside it. A file that changes
while a job reads it is an error: every request has the condition that the file is still the one that was opened, and
its ETag is compared besides, for servers that ignore conditions.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import rasterio
from rasterio.io import DatasetReader

from geograft.errors import InputError, RasterChangedError
from geograft.files import json_digest
from geograft.geo.formats import RASTER_MAGIC, raster_driver, remote_name
from geograft.geo.rasters.gdal import RASTER_ERRORS, error_reason, ignore_not_georeferenced, strict_decoding
from geograft.locations import Location, Place, redact
from geograft.storage import google_settings, s3_settings, storage_of
from geograft.web import StoredObject, environment_headers, pause_s, request_headers

Result = TypeVar("Result")

LENIENT_DRIVERS = ("PNG", "JPEG", "VRT")
"""Formats, or containers of formats, whose truncated files GDAL decodes without an error by default."""
AUX_SUFFIX = ".aux.xml"
"""GDAL's sidecar file: names of classes, and statistics that viewers add; not part of the raster."""
MAGIC_BYTES = 16
REOPENINGS = 3
"""How often a remote file is opened again for one window."""
CHECK_S = 60.0
"""Seconds after which a remote file's ETag is compared again while it is read."""
REMOTE_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    # 0, 200 and 206: the connection was dropped before or in the body. Not 412, by which a changed file is known.
    "GDAL_HTTP_RETRY_CODES": "0,200,206,400,408,429,500,502,503,504",
    "GDAL_HTTP_CONNECTTIMEOUT": "30",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "GDAL_NUM_THREADS": "1",
    "VSI_CACHE": "FALSE",
    # What was read of a file that has been closed may be of an earlier version.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
}
"""GDAL's options for remote files, except for those that the user set in the environment."""
OWN_OPTIONS = ("GDAL_DISABLE_READDIR_ON_OPEN", "GDAL_NUM_THREADS", "VSI_CACHE", "CPL_VSIL_CURL_NON_CACHED")
"""Those that results depend on: the environment does not change them."""
SYSTEMS = {"https": "vsicurl", "http": "vsicurl", "s3": "vsis3", "gs": "vsigs", "az": "vsiaz"}
"""GDAL's virtual file system of each scheme."""


class RasterFile:
    """An open raster file. Not thread-safe; a forked process, which would share its offset, opens the file again."""

    def __init__(self, place: Place, **options: Any) -> None:
        """Open a file with rasterio and its `options`.

        Raises:
            InputError: as `open_raster`.
        """
        self.place, self._options = place, options
        self.state: StoredObject | None = None
        """Size and ETag of a remote file."""
        self._condition: dict[str, str] = {}
        self._checked = time.monotonic()
        self._process = os.getpid()
        self._dataset = self._open()

    @property
    def dataset(self) -> DatasetReader:
        """The open file, for what needs no reading."""
        if os.getpid() != self._process:
            self._dataset, self._process = self._open(), os.getpid()
        return self._dataset

    def read(self, action: Callable[[DatasetReader], Result], what: str) -> Result:
        """Return the result of `action`, which reads from the file; `what` says what, for the error.

        Raises:
            InputError: if it cannot be read, after repetitions if it is remote; if a remote file has changed.
        """
        try:
            if isinstance(self.place, Location):
                return self._read_remote(action)
            return self._read_local(action)
        except (*RASTER_ERRORS, OSError) as error:
            raise self._read_error(what, error) from (None if self.state else error)

    def check_unchanged(self) -> None:
        """Raise InputError if a remote file is another one than when it was opened."""
        if isinstance(self.place, Location):
            self._check(remote_state(self.place))

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def options(self) -> AbstractContextManager[Any]:
        """Set GDAL's options for reading the file in the block."""
        if isinstance(self.place, Location):
            return remote_options(self.place, self._condition)
        return strict_decoding()

    def _read_local(self, action: Callable[[DatasetReader], Result]) -> Result:
        with self.options() if self.dataset.driver in LENIENT_DRIVERS else nullcontext():
            return action(self.dataset)

    def _read_remote(self, action: Callable[[DatasetReader], Result]) -> Result:
        if time.monotonic() - self._checked > CHECK_S:
            self.check_unchanged()
        for attempt in range(REOPENINGS):
            try:
                with self.options():
                    return action(self.dataset)
            except (*RASTER_ERRORS, OSError):
                time.sleep(pause_s(attempt))
                self._dataset.close()
                self._dataset = self._open()
        with self.options():
            return action(self.dataset)

    def _open(self) -> DatasetReader:
        if not isinstance(self.place, Location):
            return open_raster(self.place, **self._options)
        self._check(_geotiff_state(self.place))
        assert self.state is not None
        self._condition = unchanged_condition(self.state)
        try:
            return _open_geotiff(self.place, self._condition, **self._options)
        except InputError:
            # Some servers refuse the condition although the file is the same: the ETag is compared now and then.
            self._condition = {}
            return _open_geotiff(self.place, self._condition, **self._options)

    def _check(self, now: StoredObject) -> None:
        """Raise InputError if the remote file is another one than at first."""
        self._checked = time.monotonic()
        if self.state is not None and (now.etag, now.size) != (self.state.etag, self.state.size):
            raise changed_error(self.place, self.state.etag, now.etag)
        self.state = now

    def _read_error(self, what: str, error: BaseException) -> InputError:
        reason = redact(error_reason(error))
        if self.state is None:
            return InputError(
                f"{self.place}: {what}, cannot be read: {reason}. The file is damaged or truncated; get it again."
            )
        return InputError(
            f"{self.place}: {what}, cannot be read: {reason}; {REOPENINGS + 1} attempts. "
            "Check the connection, or download the file if it is damaged there."
        )


def changed_error(place: Place, before: str, now: str) -> RasterChangedError:
    """Return the error for a remote file that has another ETag than before."""
    return RasterChangedError(
        f"{place} changed while it was read: its ETag was {before or 'missing'}, and is {now or 'missing'}. "
        "Repeat the command once it no longer changes."
    )


def open_raster(place: Place, **options: Any) -> DatasetReader:
    """Open a raster file with rasterio, with the one driver that `geograft.geo.formats` finds for it.

    Raises:
        InputError: when the file is missing or not a raster, or refers to files that are not local; when a remote one
            is not a GeoTIFF.
    """
    if isinstance(place, Location):
        _geotiff_state(place)
        return _open_geotiff(place, {}, **options)
    # Absolute: in the working directory, GDAL would take names of parts of a file, such as /vsicurl/..., as is.
    name, driver = remote_name(place) or str(place.absolute()), raster_driver(place)
    with _open_errors(place), _own_files_only(place):
        raster = rasterio.open(name, driver=driver, **options)
    return _checked(raster, place)


@contextmanager
def open_whole(place: Place) -> Iterator[DatasetReader]:
    """Open a raster file with rasterio, to be read as a whole in the block under the options of its place.

    Raises:
        InputError: as `open_raster`; if a remote file has changed by the end of the block.
    """
    file = RasterFile(place)
    try:
        with closing(file), file.options():
            yield file.dataset
    finally:
        file.check_unchanged()


def _geotiff_state(location: Location) -> StoredObject:
    """Return size and ETag of a remote GeoTIFF.

    Raises:
        InputError: when the file is missing, cannot be read or is not a GeoTIFF.
    """
    magic, state = _first_bytes(location)
    if not any(magic.startswith(first) for first, driver in RASTER_MAGIC if driver == "GTiff"):
        raise InputError(
            f"{location} is not a GeoTIFF, and other formats are not read from the web or the cloud. Download it, or "
            "convert it to a Cloud-Optimised GeoTIFF."
        )
    return state


def _open_geotiff(location: Location, condition: Mapping[str, str], **options: Any) -> DatasetReader:
    """Open a remote GeoTIFF; `condition` is sent with each request.

    Raises:
        InputError: when it cannot be opened.
    """
    with _open_errors(location), remote_options(location, condition):
        raster = rasterio.open(gdal_name(location), driver="GTiff", **options)
    return _checked(raster, location)


def unchanged_condition(state: StoredObject) -> dict[str, str]:
    """Return the header by which a server refuses requests for a file that has changed; none if it tells too little.

    By RFC 9110, a weak ETag never fulfils the condition.

    >>> unchanged_condition(StoredObject("a.tif", 10, '"1b2c"')), unchanged_condition(StoredObject("a.tif", 10, ""))
    ({'If-Match': '"1b2c"'}, {})
    """
    if re.fullmatch(r'"[!-~]*"', state.etag):
        return {"If-Match": state.etag}
    if state.modified is not None:
        return {"If-Unmodified-Since": format_datetime(state.modified.astimezone(UTC), usegmt=True)}
    return {}


@contextmanager
def _open_errors(place: Place) -> Iterator[None]:
    # GDAL's PNG driver needs the strict option both here and when pixels are read.
    try:
        with ignore_not_georeferenced(), strict_decoding():
            yield
    except (*RASTER_ERRORS, OSError) as error:
        # The library's message may have a signature.
        cause = None if isinstance(place, Location) else error
        raise InputError(
            f"{place} cannot be opened as an image: {redact(error_reason(error))}. Check or replace it."
        ) from cause


def _checked(raster: DatasetReader, place: Place) -> DatasetReader:
    if any(name.casefold() == "overview_file" for name in raster.tags(ns="OVERVIEWS")):
        raster.close()
        raise InputError(
            f"{place} refers to another file (OVERVIEW_FILE), which is not read. Remove this metadata item."
        )
    return raster


def _own_files_only(path: Path) -> AbstractContextManager[Any]:
    """Keep GDAL from reading masks and metadata next to a file in an archive, whose content is not checked."""
    return rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR") if remote_name(path) else nullcontext()


def gdal_name(location: Location) -> str:
    """Return GDAL's name of a remote file. Its query may be a signature: not for messages.

    >>> gdal_name(Location("s3", "bucket", "a.tif"))
    '/vsis3/bucket/a.tif'
    """
    plain = Location(location.scheme, location.host, location.key, location.query)
    return f"/{SYSTEMS[location.scheme]}/{plain.url if location.is_web else f'{location.host}/{location.key}'}"


def remote_options(
    location: Location, condition: Mapping[str, str] = MappingProxyType({})
) -> AbstractContextManager[Any]:
    """Set GDAL's options for a remote file in the block; `condition` has further headers of requests."""
    options = {k: v for k, v in REMOTE_OPTIONS.items() if k in OWN_OPTIONS or k not in os.environ}
    if location.query:
        # Addresses that are signed for reading refuse HEAD.
        options["CPL_VSIL_CURL_USE_HEAD"] = "NO"
    # Requests to buckets are signed by GDAL.
    own = request_headers(location) if location.is_web else environment_headers()
    if headers := own | dict(condition):
        # The end of a line at the end: otherwise GDAL would take quotation marks and commas as its own.
        options["GDAL_HTTP_HEADERS"] = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if location.scheme == "s3" and (endpoint := s3_settings().get("endpoint")):
        scheme, _, host = endpoint.rpartition("://")
        options |= {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": "NO" if scheme == "http" else "YES"}
        options |= {} if "AWS_VIRTUAL_HOSTING" in os.environ else {"AWS_VIRTUAL_HOSTING": "FALSE"}
    if location.scheme == "gs" and (url := google_settings().get("base_url")):
        # GDAL appends the bucket to it.
        options["CPL_GS_ENDPOINT"] = f"{url}/"
    settings: AbstractContextManager[Any] = rasterio.Env(**options)
    return settings


def remote_state(location: Location) -> StoredObject:
    """Return size and ETag of a remote file, by one small request.

    Raises:
        InputError: if it is missing or cannot be read.
    """
    return _first_bytes(location)[1]


def _first_bytes(location: Location) -> tuple[bytes, StoredObject]:
    try:
        storage, key = storage_of(location)
        return storage.begin(key, MAGIC_BYTES)
    except FileNotFoundError as error:
        raise InputError(str(error)) from None


def raster_state(place: Place) -> dict[str, Any]:
    """Return path, size and modification time of a raster and its sidecar files: masks, world files, a VRT's sources.

    Of a remote raster: address, size and ETag. Reads no pixels.

    Raises:
        InputError: when the file is missing or not a raster.
    """
    if isinstance(place, Location):
        state = remote_state(place)
        return {"path": str(place), "bytes": state.size, "etag": state.etag}
    if remote_name(place):
        raise InputError(f"{place} is in an archive, so its changes would go unnoticed. Unpack it first.")
    with open_raster(place) as raster:
        files = sorted({Path(name) for name in raster.files if not name.endswith(AUX_SUFFIX)} | {place.absolute()})
    states = [(file.name, state.st_size, state.st_mtime_ns) for file in files for state in [file.stat()]]
    several = {"files": len(files), "state": json_digest(states)[:16]} if len(files) > 1 else {}
    size, modified = sum(size for _, size, _ in states), max(time for *_, time in states)
    return {"path": str(place.resolve()), "bytes": size, "modified": _utc(modified), **several}


def check_complete(path: Path) -> None:
    """Raise InputError if a GeoTIFF cannot be opened or is shorter than its blocks need. Decodes none of them."""
    with open_raster(path) as raster:
        high, wide = raster.block_shapes[0]
        tags = (
            [raster.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")]
            for band in raster.indexes
            for row in range(-(-raster.height // high))
            for col in range(-(-raster.width // wide))
        )
        needed = max((int(offset) + int(size) for offset, size in tags if offset and size), default=0)
    size = path.stat().st_size
    if needed > size:
        raise InputError(f"{path} is truncated: it has {size:,} bytes, but its blocks need {needed:,}. Get it again.")


def _utc(ns: int) -> str:
    """Format a time in UTC to the nanosecond."""
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M:%S}.{ns % 10**9:09d}"
