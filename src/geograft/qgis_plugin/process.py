"""Run `geograft` as a process, report its progress, and cancel it. Needs Python's standard library only.

The command is in the file command.json beside this one, which `geograft qgis install` writes.
"""

import json
import os
import queue
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

COMMAND = Path(__file__).with_name("command.json")
POLL_S = 0.2
PATIENCE_S = 15.0
"""Seconds that a cancelled process has to save what is finished, before it is terminated, and again before a kill."""
OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA", "LD_PRELOAD")
"""Environment variables that QGIS sets for its own libraries; geograft has others."""
MAX_LINES = 20
"""Number of the last lines that are shown of a process that ended without a message."""


class ProcessError(Exception):
    """The process cannot be started, failed, or was cancelled; the message is for the user."""


def run(arguments, feedback):
    """Run geograft with `arguments` and return the text of its result.

    `feedback` has the methods of QgsProcessingFeedback: isCanceled, setProgress, setProgressText and pushInfo.

    Raises:
        ProcessError: when it cannot be started, fails or is cancelled, with geograft's own message.
    """
    report, lines = _Report(feedback), queue.Queue()
    with _start([*read_command(), *arguments, "--progress", "json"]) as process:
        reader = threading.Thread(target=_read_lines, args=(process.stderr, lines), daemon=True)
        reader.start()
        try:
            _follow(process, lines, report, feedback)
        finally:
            # A process that still runs was cancelled, or an exception in QGIS ended the loop.
            end(process)
            # A worker process that outlives a killed one would keep the pipe open.
            reader.join(PATIENCE_S)
            while not lines.empty():
                report.add(lines.get())
    if process.returncode or report.text is None:
        raise ProcessError(report.error(process.returncode))
    return report.text


def read_command():
    """Return the command that starts geograft, as a list.

    Raises:
        ProcessError: when the file is missing or damaged.
    """
    try:
        command = json.loads(COMMAND.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProcessError(f"{COMMAND} cannot be read: {error}. Run `geograft qgis install` again.") from error
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise ProcessError(f"{COMMAND} is not a list of words. Run `geograft qgis install` again.")
    return command


def end(process):
    """End a process: close its input, which lets it save what is finished; then terminate it, then kill it."""
    for stop in (process.stdin.close, process.terminate, process.kill):
        if process.poll() is not None:
            return
        with suppress(OSError):
            stop()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)


def _start(command):
    environment = {name: value for name, value in os.environ.items() if name not in OF_QGIS}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    hidden = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {}
    try:
        return subprocess.Popen(
            command, env=environment, text=True, encoding="utf-8", errors="replace", **pipes, **hidden
        )
    except OSError as error:
        raise ProcessError(
            f"geograft cannot be started ({command[0]}: {error.strerror}). Run `geograft qgis install` again."
        ) from error


def _read_lines(stream, lines):
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _follow(process, lines, report, feedback):
    """Report lines until the process ends or closes its output, or the user cancels."""
    while not feedback.isCanceled():
        try:
            line = lines.get(timeout=POLL_S)
        except queue.Empty:
            line = "" if process.poll() is None else None
        if line is None:
            return
        report.add(line)


class _Report:
    """What a process says: progress and messages go to `feedback`, the result and the error are kept."""

    def __init__(self, feedback):
        self._feedback, self._step, self._last_lines = feedback, "", []
        self.text = None
        self._error = ""

    def add(self, line):
        """Report a line of the process: a JSON object, or the text of a library."""
        event = _parse(line)
        kind = event.get("event")
        if kind == "progress":
            self._show_progress(event)
        elif kind == "message":
            self._feedback.pushInfo(event["text"])
        elif kind == "result":
            self.text = event["text"]
            self._feedback.pushInfo(event["text"])
        elif kind in ("error", "interrupted"):
            self._error = event["text"]
        elif kind is None and line:
            self._last_lines = [*self._last_lines, line][-MAX_LINES:]

    def error(self, code):
        """Return why the process failed with exit code `code`."""
        if self._error:
            return self._error
        return "\n".join([f"geograft ended with exit code {code} and without a result.", *self._last_lines])

    def _show_progress(self, event):
        if event["step"] != self._step:
            self._step = event["step"]
            self._feedback.setProgressText(self._step)
        if event["total"]:
            self._feedback.setProgress(100 * event["done"] / event["total"])


def _parse(line):
    """Return the event of a line; empty for the output of a library, None for the end."""
    with suppress(TypeError, ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
            return event
    return {}
