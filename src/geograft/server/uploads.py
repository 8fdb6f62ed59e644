"""Files that a client sends: labels and masks of other programs, one at a time, if the server was started with uploads.

The server itself looks at the first bytes only, by which it names the file; a process with limits of memory, time and
disk and with few drivers of GDAL does the rest (`geograft.commands.import_upload`). Neither a name nor a path comes
from the client. What is not imported as a whole leaves nothing behind.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Query, Request
from starlette.requests import ClientDisconnect

from geograft.config.recipes import MAX_CLASS_NAME
from geograft.errors import GeograftError
from geograft.files import scratch_folder
from geograft.geo.formats import VRT_SOURCES, raster_driver
from geograft.geo.rasters.gdal import raster_drivers
from geograft.geo.vectors.reader import vector_drivers
from geograft.interrupts import reap_group, signal_group
from geograft.locks import lock_output
from geograft.server.guard import UPLOADED
from geograft.server.layers import Subject
from geograft.server.service import PROBLEMS

MEMORY_BYTES, PROCESSOR_S, WALL_S = 4 * 2**30, 120, 300.0
"""Limits of the process that imports a file."""
EXTRA_BYTES = 2**30
"""What that process may write beyond the size of the file, and what the disk must have free after it."""
IDLE_S = 30.0
"""Time without data after which an upload is given up."""
HEAD_BYTES, MAX_ANSWER_BYTES = 4096, 2**16
APPLICATION_ID = slice(68, 72)
MAGIC = {b"II*\0": ".tif", b"MM\0*": ".tif", b"II+\0": ".tif", b"MM\0+": ".tif", b"\x89PNG\r\n\x1a\n": ".png"}
DRIVERS = {"GTiff", "PNG", "GPKG", "GeoJSON", "MEM", "Memory"}
PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "PROJ_DATA", "PROJ_LIB", "GDAL_DATA",
)  # fmt: skip
"""Variables of the environment that the process gets: no keys of storage services, no options of GDAL."""
NO_REQUESTS = {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none", "PROJ_NETWORK": "OFF", "GDAL_HTTP_TIMEOUT": "1"}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GDAL_NUM_THREADS"), "1")
BODY = {"requestBody": {"required": True, "content": {UPLOADED: {"schema": {"type": "string", "format": "binary"}}}}}


def file_suffix(head: bytes) -> str:
    r"""Return the suffix for a file with these first bytes; empty if it is of no format that is imported.

    >>> file_suffix(b"II*\0"), file_suffix(b' {"type": "FeatureCollection"'), file_suffix(b"<VRTDataset>")
    ('.tif', '.geojson', '')
    """
    if head.startswith(b"SQLite format 3\0"):
        return ".gpkg" if head[APPLICATION_ID] in (b"GPKG", b"GP10", b"GP11") else ""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return ".geojson"
    return next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), "")


class Uploads:
    """Takes one file at a time and imports it into the labels of a project."""

    def __init__(self, subject: Subject, folder: Path, max_bytes: int, command: tuple[str, ...] = ()) -> None:
        """Take what is shown, the folder of its project and the maximum size of a file; `command` is the import."""
        self._subject, self._folder, self._max_bytes = subject, folder.absolute(), max_bytes
        self._command = command or (sys.executable, "-P", "-m", "geograft.commands.import_upload")
        self._busy = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def receive(self, chunks: AsyncGenerator[bytes, None], class_name: str, origin: str) -> dict[str, Any]:
        """Store the content of a request, import it, and return what was added.

        Raises:
            HTTPException: 409 while another file is imported or if the project's folder cannot be written, 413 if the
                disk is full, 415 for another format, 422 if it cannot be imported.
        """
        if class_name and class_name not in [each.name for each in self._subject.classes]:
            raise HTTPException(422, f"{class_name[:60]!r} is not a class of the project.")
        place = self._folder / "upload"
        try:
            with self._alone(), lock_output(place), scratch_folder(place) as scratch:
                self._refuse_links()
                path = await self._store(chunks, scratch)
                return await to_thread.run_sync(self._import, path, class_name, origin)
        except GeograftError as error:
            raise HTTPException(409, _shown(str(error), self._folder)) from error
        except OSError as error:
            raise HTTPException(
                409, f"The file cannot be stored: {error.strerror}. Check the project's disk."
            ) from error

    def close(self) -> None:
        """End the import that is running; nothing of it is kept."""
        self._closed = True
        if self._process:
            signal_group(self._process, kill=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise HTTPException(409, "Another file is being imported. Wait until that has finished.")
        try:
            yield
        finally:
            self._busy.release()

    def _refuse_links(self) -> None:
        """Raise HTTPException if the label file is a symbolic link: the import would write elsewhere."""
        path = self._subject.label_file
        if path is not None and path.is_symlink():
            raise HTTPException(
                422, f"{path.name} is a symbolic link, through which no upload is written. Copy the file."
            )

    async def _store(self, chunks: AsyncGenerator[bytes, None], scratch: Path) -> Path:
        """Write the content of a request to a file that is named by its format, and return its path."""
        head = bytearray()
        while len(head) < HEAD_BYTES and (chunk := await _next(chunks)):
            head += chunk
        suffix = file_suffix(bytes(head))
        if not suffix:
            raise HTTPException(
                415,
                "The file is neither a GeoTIFF, PNG, GeoPackage nor GeoJSON by its content. Export it as one of these.",
            )
        path = scratch / f"upload{suffix}"
        with path.open("xb") as file:
            self._write(file, head)
            while chunk := await _next(chunks):
                self._write(file, chunk)
        return path

    def _write(self, file: BinaryIO, chunk: bytes | bytearray) -> None:
        if shutil.disk_usage(self._folder).free < len(chunk) + EXTRA_BYTES:
            raise HTTPException(413, f"The disk has less than {EXTRA_BYTES / 1e9:.1f} GB left. Free some space.")
        file.write(chunk)

    def _import(self, path: Path, class_name: str, origin: str) -> dict[str, Any]:
        request = {
            "folder": str(self._folder), "file": path.name, "class_name": class_name, "origin": origin,
            "memory_bytes": MEMORY_BYTES, "processor_s": PROCESSOR_S, "file_bytes": self._max_bytes + EXTRA_BYTES,
        }  # fmt: skip
        answer_path = path.with_name("answer")
        with answer_path.open("xb") as answer:
            code = self._run([*self._command, json.dumps(request)], path.parent, answer)
        with answer_path.open("rb") as file:
            content = _parse(file.read(MAX_ANSWER_BYTES))
        if code == 0 and content is not None:
            return content
        fault = str(content["error"]) if code == 1 and content and "error" in content else None
        raise HTTPException(422, _shown(fault, path.parent) if fault else self._limit_fault(code))

    def _run(self, command: list[str], folder: Path, answer: BinaryIO) -> int | None:
        """Run a command and return its exit code; None if it had to be ended."""
        process = subprocess.Popen(
            command, cwd=folder, env=self._environment(), stdin=subprocess.DEVNULL, stdout=answer,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._process = process
        reaper = threading.Thread(target=reap_group, args=(process,), daemon=True)
        reaper.start()
        reaper.join(0.0 if self._closed else WALL_S)
        in_time = not reaper.is_alive()
        if not in_time:
            signal_group(process, kill=True)
            reaper.join()
        self._process = None
        return process.returncode if in_time else None

    def _environment(self) -> dict[str, str]:
        """Return the environment of the import: GDAL has the drivers of uploads and of the project's images only."""
        kept = DRIVERS | {raster_driver(path) for _, path in self._subject.images}
        kept |= VRT_SOURCES if "VRT" in kept else set()
        skipped = ",".join(sorted((raster_drivers() | vector_drivers()) - kept))
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        return passed | NO_REQUESTS | ONE_THREAD | {"GDAL_SKIP": skipped, "OGR_SKIP": skipped}

    def _limit_fault(self, code: int | None) -> str:
        if self._closed:
            return "The server ended before the file was imported."
        ended = f"it was ended after {WALL_S:.0f} s" if code is None else f"exit code {code}"
        return (
            f"The file cannot be imported within {PROCESSOR_S} s of processor time and {MEMORY_BYTES / 2**30:.0f} GB "
            f"of memory, or it is damaged ({ended}). Use `geograft project --import`."
        )


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes:
    """Return the next bytes of a request; empty at its end.

    Raises:
        HTTPException: 408 if none come, 400 if the client has gone.
    """
    try:
        async with asyncio.timeout(IDLE_S):
            async for chunk in chunks:
                if chunk:
                    return chunk
        return b""
    except TimeoutError as error:
        raise HTTPException(408, f"No more of the file came within {IDLE_S:.0f} s. Send it again.") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "The file was not sent to its end.") from error


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return the last line of an answer, if it is a JSON object."""
    try:
        found = json.loads(content.decode().strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _shown(fault: str, folder: Path) -> str:
    """Return an error of the import in one line without the folder's path."""
    return " ".join(fault.replace(f"{folder}{os.sep}", "").split())[:1000]


router = APIRouter(prefix="/api/uploads", responses=PROBLEMS)


@router.post("/labels", openapi_extra=BODY)
async def post_labels(
    request: Request,
    class_name: Annotated[str, Query(alias="class", max_length=MAX_CLASS_NAME)] = "",
    origin: Literal["suggested", "drawn"] = "suggested",
) -> dict[str, Any]:
    """Import polygons (GeoPackage, GeoJSON) or a mask (GeoTIFF, PNG), the body of the request, into the labels."""
    uploads: Uploads | None = request.app.state.uploads
    if uploads is None:
        raise HTTPException(403, "Uploads are off.")
    return await uploads.receive(request.stream(), class_name, origin)
