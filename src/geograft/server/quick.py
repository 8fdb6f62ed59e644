"""Quick maps while nothing is trained yet: a warm process fits a linear classifier after each change of the labels.

Its imports take longer than its work, so it starts with the server (`geograft.commands.quick_maps`). It maps what the
page shows of each image without a map of `geograft go`, and ends when none is left or when the server ends, however it
does: its standard input ends then.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np

from geograft.geo.grid import Grid, Window
from geograft.geo.webmap import Place
from geograft.interrupts import reap_group, signal_group
from geograft.server.jobs import number_or_none
from geograft.server.layers import Subject, lacks_maps, layers_of

State = Literal["off", "starting", "ready", "working", "waiting", "done", "failed"]
COMMAND = (sys.executable, "-P", "-m", "geograft.commands.quick_maps")
MAX_SIDE_PX = 1024
"""Largest side of what is mapped of an image, around the middle of the view."""
MAX_STARTS = 3
MAX_LINE = 2**16
MAX_MESSAGE = 500
CLOSE_S = 5.0
ENDED = "The process of the quick map has ended. Start the server again."
Bounds = tuple[float, float, float, float]
"""West, south, east and north, in degrees."""


@dataclass(frozen=True)
class QuickState:
    """What the quick map is doing, for the page."""

    state: State = "off"
    text: str = ""
    seconds: float | None = None
    """Time that the last map took."""


class QuickMaps:
    """The process that makes a project's quick maps, and the requests to it."""

    def __init__(
        self, subject: Callable[[], Subject], publish: Callable[[str, Mapping[str, Any]], None], folder: Path,
        command: Sequence[str] = COMMAND,
    ) -> None:  # fmt: skip
        """Take what is shown, where to report, and the project's folder; `command` is started with the folder."""
        self._subject, self._publish, self._command = subject, publish, (*command, str(folder))
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._view: Bounds | None = None
        self._starts, self._closed = 0, False
        self._set(QuickState())

    def look_at(self, bounds: Bounds) -> bool:
        """Map what lies within these bounds from the next `refresh` on; return whether they are new."""
        with self._lock:
            changed, self._view = bounds != self._view, bounds
        return changed

    def stop_if_mapped(self) -> None:
        """End the process when a network has mapped all images."""
        with self._lock:
            if self._process is not None and not lacks_maps(self._subject()):
                self._end()

    def refresh(self) -> None:
        """Map the view again, if an image has no map of a trained network yet; start or end the process.

        Raises:
            InputError: when an image cannot be read.
        """
        with self._lock:
            if self._closed or not lacks_maps(self._subject()):
                self._end()
            elif self._process is None:
                self._start()
            else:
                self._ask()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            self._end()

    def _start(self) -> None:
        if self._starts == MAX_STARTS:
            return
        self._starts += 1
        self._set(QuickState("starting"))
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._set(QuickState("failed", f"The quick map cannot be started: {error.strerror}."))
            return
        self._ended = threading.Event()
        arguments = (self._process, self._ended)
        threading.Thread(target=self._follow, args=arguments, name="geograft-quick", daemon=True).start()
        self._ask()

    def _ask(self) -> None:
        """Request a map of the view, if a page has reported one."""
        if self._view is None or self._process is None or self._process.stdin is None:
            return
        views = views_of(self._subject(), self._view)
        if views:
            with suppress(OSError):
                self._process.stdin.write(json.dumps({"views": views}).encode() + b"\n")
                self._process.stdin.flush()

    def _follow(self, process: "subprocess.Popen[bytes]", ended: threading.Event) -> None:
        """Report what a process says until it ends."""
        assert process.stdout is not None
        with process.stdout as stream:
            for line in _lines(stream):
                state = parse_state(line)
                with self._lock:
                    if state is not None and self._process is process:
                        self._set(state)
        reap_group(process)
        _close_input(process)
        ended.set()
        with self._lock:
            if self._process is process:
                self._process = None
                self._set(QuickState("failed", ENDED))

    def _end(self) -> None:
        """End the process: at once by itself, else with its group."""
        process, self._process = self._process, None
        if process is None:
            return
        self._set(QuickState())
        _close_input(process)
        threading.Thread(target=_kill_late, args=(process, self._ended), daemon=True).start()

    def _set(self, state: QuickState) -> None:
        self._publish("quick", asdict(state))


def _close_input(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin:
        with suppress(OSError):
            process.stdin.close()


def _kill_late(process: "subprocess.Popen[bytes]", ended: threading.Event) -> None:
    if not ended.wait(CLOSE_S):
        signal_group(process, kill=True)


def views_of(subject: Subject, bounds: Bounds) -> list[dict[str, Any]]:
    """Return the windows of the images without a map that lie within bounds.

    Raises:
        InputError: when an image cannot be read.
    """
    missing = {name for name, path in subject.maps if not path.is_file()}
    return [
        {"scene": name, "window": [window.row, window.col, window.height, window.width]}
        for name, window in windows_of(subject, bounds, MAX_SIDE_PX).items()
        if name in missing
    ]


def windows_of(subject: Subject, bounds: Bounds, max_px: int) -> dict[str, Window]:
    """Return the windows of the images within bounds, at most `max_px` a side, by name; without those that are empty.

    Raises:
        InputError: when an image cannot be read.
    """
    places = {layer.raster.group: layer.raster.place for layer in layers_of(subject) if layer.kind == "image"}
    windows = {name: window_within(place, bounds, max_px) for name, place in places.items()}
    return {name: window for name, window in windows.items() if window is not None}


def window_within(place: Place, bounds: Bounds, max_px: int) -> Window | None:
    """Return the window of a raster within bounds, at most `max_px` a side around its middle; None if it is empty."""
    # Far away from the raster, its CRS may have no or wrong positions.
    low, high = np.maximum(bounds[:2], place.bounds[:2]), np.minimum(bounds[2:], place.bounds[2:])
    if (low >= high).any():
        return None
    (west, south), (east, north) = low, high
    lonlat = np.array([[x, y] for x in np.linspace(west, east, 9) for y in np.linspace(south, north, 9)])
    pixels = place.to_pixels(lonlat)
    pixels = pixels[np.isfinite(pixels).all(axis=1)]
    if not len(pixels):
        return None
    sides = [_part(values, length, max_px) for values, length in zip(pixels.T, _lengths(place.grid), strict=True)]
    (col, width), (row, height) = sides
    return Window(row, col, height, width) if height > 0 and width > 0 else None


def _lengths(grid: Grid) -> tuple[int, int]:
    return grid.width, grid.height


def _part(values: "np.ndarray", length: int, max_px: int) -> tuple[int, int]:
    """Return start and size of the part of an axis that values span, within its length and around its middle."""
    low, high = max(0, int(np.floor(values.min()))), min(length, int(np.ceil(values.max())))
    size = min(high - low, max_px)
    return low + (high - low - size) // 2, size


def parse_state(line: bytes) -> QuickState | None:
    """Return the state in a line of the process; None if there is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("state") not in get_args(State):
        return None
    text = str(content.get("text", ""))[:MAX_MESSAGE]
    return QuickState(content["state"], text, number_or_none(content.get("seconds")))


def _lines(stream: IO[bytes]) -> Any:
    while line := stream.readline(MAX_LINE):
        yield line
