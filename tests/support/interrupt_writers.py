"""Every command that writes, while another process writes its output, and with a signal. Run by test_writers.py.

    python -m tests.support.interrupt_writers FOLDER

Prints a line of JSON per command, see `Found`. The signal comes just before a file is moved into place.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geograft.locks import lock_output

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import fuzz_files as f
from fuzz_inputs import import_everything, list_files, run_command

AREA = f.Command((*f.AREA.arguments, "--out", "area.json"), f.AREA.inputs)
JACCARD = f.Command((*f.JACCARD.arguments, "--out", "jaccard.json"), f.JACCARD.inputs)
AUDIT = f.Command((*f.AUDIT.arguments, "--figure", "audit.png"), f.AUDIT.inputs)
CURVE = f.command("curve tiles --out c --percent 100 --seeds 0 --epochs 1", "tiles", options=f.TRAINING)
FIND = f.command("find tiles --out c --trials 1 --epochs 1", "tiles", options=f.TRAINING)
WRITERS: tuple[tuple[f.Command, str, int], ...] = (
    (f.EVALUATE, "run/scores-tiles-test.json", 1),
    (f.CALIBRATE, "run", 1),
    (f.CALIBRATE, "run", 2),
    (f.REVIEW, "r", 2),
    (f.SUGGEST, "s.gpkg", 1),
    (f.REPORT, "run/report.html", 1),
    (f.SAMPLE, "s.gpkg", 1),
    (AREA, "area.json", 1),
    (JACCARD, "jaccard.json", 1),
    (AUDIT, "audit.png", 1),
    (f.COMPARE, "c", 8),
    (CURVE, "c", 0),
    (FIND, "c", 0),
    (f.PREDICT, "m.tif", 0),
    (f.POLYGONS, "p.geojson", 0),
    (f.PREPARE, "q", 0),
    (f.TRAIN, "new", 0),
)
"""Command, its output, and the rename before which it gets a signal; 0: none, because other tests do that."""
PARTIAL = re.compile(r"\.part(/|$)|geograft-(lock|update)")


@dataclass(frozen=True)
class Found:
    """What came of a command while this process held its lock, after a signal, and when it was run again."""

    command: str
    process: int
    """The process that held the lock."""
    codes: list[int]
    last: list[str]
    """Last lines on stderr."""
    changed: list[list[str]]
    """Files that are new or differ."""
    partial: list[list[str]]
    """Temporary files and locks."""
    tracebacks: bool


@contextmanager
def signal_before_rename(number: int) -> Iterator[None]:
    """Send SIGTERM to the process of a command before its rename `number`."""
    replace, calls = Path.replace, iter(range(1, 10**6))

    def replaced(path: Path, target: Any) -> Path:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return replace(path, target)

    Path.replace = replaced  # type: ignore[method-assign]
    try:
        yield
    finally:
        Path.replace = replace  # type: ignore[method-assign]


def place(command: f.Command, inputs: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in command.inputs:
        (shutil.copytree if (inputs / name).is_dir() else shutil.copy2)(inputs / name, folder / name)


def try_command(command: f.Command, out: str, number: int, folder: Path) -> Found:
    before, outcomes, changed, partial = list_files(folder), [], [], []

    def run() -> None:
        outcomes.append(run_command(command.arguments, folder))
        files = list_files(folder)
        names = (name for name, state in files.items() if before.get(name) != state)
        changed.append([name for name in names if not name.endswith(".geograft-lock")])
        partial.append([name for name in files if PARTIAL.search(name)])

    with lock_output(folder / out):
        run()
    if number:
        with signal_before_rename(number):
            run()
        run()
    texts = [outcome.stderr for outcome in outcomes]
    last = [(text.splitlines() or [""])[-1] for text in texts]
    codes = [outcome.code for outcome in outcomes]
    return Found(command.arguments[0], os.getpid(), codes, last, changed, partial, "Traceback" in "".join(texts))


def main(folder: Path) -> None:
    import_everything()
    inputs, work = folder / "inputs", folder / "work"
    f.write_inputs(inputs, run_command)
    for command, out, number in WRITERS:
        place(command, inputs, work)
        sys.stdout.write(json.dumps(asdict(try_command(command, out, number, work))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
