"""Run every command on damaged, edited and hostile input, and check that it fails cleanly. `make fuzz-inputs` runs it.

    python scripts/fuzz_inputs.py [--seed 0] [--every 1] [--family card] [--case NAME] [--keep FOLDER]

Each case is one command in a folder of its own, in a process forked after all libraries were imported. It fails on

    traceback       a Python traceback, or the process was ended by a signal
    hang            no end within LIMIT_S
    memory          more than LIMIT_BYTES above an idle process
    network         a connection to a server on this machine, whose address is in the input
    partial output  an error, and a file that is new or differs
    several lines   an error that is not exactly one line on stderr, such as warnings of libraries beside it
    accepted        success with input that must be refused
    refused         an error with valid input
    other result    success with another result than with the valid input

The cases are in fuzz_cases.py, fuzz_own_files.py, fuzz_geodata.py, fuzz_jobs.py and fuzz_scenes.py. Exits with 1 if a
case fails; prints the failures, and the totals by family.
"""

import argparse
import hashlib
import json
import mmap
import os
import re
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz_cases import all_cases
from fuzz_files import ACCEPTED, REFUSED, SAME, Case, Command, Place, write_inputs
from fuzz_jobs import write_jobs
from fuzz_scenes import write_scenes

LIMIT_S = 60.0
LIMIT_BYTES = 2 * 10**9
SERVER = "http://127.0.0.1:{port}"
TIMES = re.compile(r"\d[\d.,]* (s|ms|MB|Mpx/s)\b")
ANNOUNCED = re.compile(r"plan: |expected |training on |epoch \d|\d+ of \d+: |trial \d|Note: |Warning: |Stopped")
"""Lines that commands print on stderr before they end."""


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    bytes: int
    """Peak memory."""
    timed_out: bool = False
    connections: int = 0
    written: dict[str, str] = field(default_factory=dict)
    """Files that are new or differ, with a digest of their result."""


def run_command(arguments: Sequence[str], folder: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Run `geograft ARGUMENTS` in a forked process with `folder` as working directory."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _run_in_child(arguments, folder, out.fileno(), err.fileno())
        code, usage, timed_out = _wait(child, started + limit_s)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Outcome(code, *texts, time.monotonic() - started, 1024 * usage.ru_maxrss, timed_out)


def _run_in_child(arguments: Sequence[str], folder: Path, out: int, err: int) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((null, out, err)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace", closefd=False) for number in (1, 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # An allocation beyond this fails before the machine runs out of memory.
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * LIMIT_BYTES,) * 2)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        code = _exit_code(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(arguments: Sequence[str]) -> int:
    """Return the exit code of the command line, as Python would."""
    from geograft.cli import main

    try:
        main(arguments)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _wait(child: int, deadline: float) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a child and return its exit code (negative: signal), its use of resources, and whether it was killed."""
    descriptor, timed_out = os.pidfd_open(child), False
    try:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.killpg(child, signal.SIGKILL)
            timed_out = True
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage, timed_out


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of modification of everything below a folder, by relative path; 0 for folders."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        is_folder = path.is_dir() and not path.is_symlink()
        found[str(path.relative_to(folder))] = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
    return found


def digest_result(path: Path) -> str:
    """Return a digest of what a file says: pixels, weights, scores; empty where it also holds times or paths."""
    if path.suffix == ".tif":
        import rasterio

        with rasterio.open(path) as raster:
            return hashlib.sha256(raster.read().tobytes()).hexdigest()
    if path.name == "tileset.json":
        return str(json.loads(path.read_text())["fingerprint"])
    if path.suffix in (".safetensors", ".geojson") or path.name.startswith("scores-"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""


def result_of(outcome: Outcome) -> tuple[str, dict[str, str]]:
    """Return what a successful command printed and wrote, without times and notes."""
    lines = [line for line in outcome.stdout.splitlines() if not line.lower().startswith("note")]
    return TIMES.sub("", "\n".join(lines)), {name: digest for name, digest in outcome.written.items() if digest}


def failures_of(case: Case, outcome: Outcome, valid: Outcome | None, idle_bytes: int) -> list[str]:
    """Return what is wrong with an outcome, by the names in the module's docstring."""
    refused, lines = outcome.code == 1, outcome.stderr.splitlines()
    if outcome.timed_out:
        return ["hang"]
    faults = {
        "traceback": "Traceback (most recent call last)" in outcome.stderr or outcome.code not in (0, 1),
        "memory": outcome.bytes - idle_bytes > LIMIT_BYTES,
        "network": outcome.connections > 0,
        "partial output": refused and bool(outcome.written),
        "several lines": _is_noisy(lines, refused),
        "accepted": case.expected == REFUSED and outcome.code == 0,
        "refused": case.expected == ACCEPTED and refused,
        "other result": case.expected == SAME
        and outcome.code == 0
        and valid is not None
        and result_of(outcome) != result_of(valid),
    }
    # A traceback has several lines, and may leave anything.
    return [name for name, found in faults.items() if found][: 1 if faults["traceback"] else None]


def _is_noisy(lines: Sequence[str], refused: bool) -> bool:
    own = [line for line in lines if line.startswith("geograft: ")]
    rest = [line for line in lines if not line.startswith("geograft: ") and not ANNOUNCED.match(line)]
    return bool(rest) or len(own) != int(refused) or (refused and lines[-1] != own[0])


@contextmanager
def counting_server() -> Iterator[tuple[str, Callable[[], int]]]:
    """Run a server in another process that closes each connection; yield its address and the number of connections."""
    counter = mmap.mmap(-1, 8)
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if child == 0:
            while True:
                server.accept()[0].close()
                counter[:] = struct.pack("q", struct.unpack("q", counter[:])[0] + 1)
        try:
            yield SERVER.format(port=server.getsockname()[1]), lambda: int(struct.unpack("q", counter[:])[0])
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class Harness:
    """The valid inputs, and the outcome of each valid command."""

    def __init__(self, folder: Path, server: str, connections: Callable[[], int], seed: int) -> None:
        self._inputs, self._cases = folder / "inputs", folder / "cases"
        self._server, self._connections, self._seed = server, connections, seed
        self._valid: dict[Command, Outcome] = {}
        self.idle_bytes = run_command(["--version"], folder).bytes

    def outcome(self, case: Case) -> Outcome:
        """Copy the inputs of a case, edit them, and run its command."""
        folder = self._cases / re.sub(r"[^A-Za-z0-9]+", "-", f"{case.family} {case.name}")[:100]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in case.command.inputs:
            source, target = self._inputs / name, folder / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
        case.edit(Place(folder, Random(f"{self._seed} {case.family} {case.name}"), self._server))
        files, connections = list_files(folder), self._connections()
        outcome = run_command((*case.command.arguments, *case.options), folder)
        outcome.connections = self._connections() - connections
        after = list_files(folder)
        changed = [name for name, state in after.items() if files.get(name) != state] + sorted(files.keys() - after)
        if case.family in ("ledger", "job"):
            # A job that cannot be resumed stays as it is, or is removed.
            changed = [name for name in changed if not any(part.endswith(".part") for part in name.split("/"))]
        if case.family == "job":
            # What was computed is kept, and why the rest failed.
            changed = [name for name in changed if not {"state", "units"} & set(name.split("/"))]
        succeeded = outcome.code == 0
        outcome.written = {name: digest_result(folder / name) if succeeded else "" for name in changed}
        return outcome

    def failures(self, case: Case) -> tuple[list[str], Outcome]:
        """Return what is wrong with a case, and its outcome."""
        outcome, valid = self.outcome(case), None
        if case.expected == SAME and outcome.code == 0:
            valid = self._valid_outcome(case.command)
        return failures_of(case, outcome, valid, self.idle_bytes), outcome

    def _valid_outcome(self, command: Command) -> Outcome:
        if command not in self._valid:
            outcome = self.outcome(Case("valid", command.arguments[0], command))
            if outcome.code:
                raise RuntimeError(f"geograft {' '.join(command.arguments)} fails with valid input: {outcome.stderr}")
            self._valid[command] = outcome
        return self._valid[command]

    def remove(self) -> None:
        """Remove the folders of the cases."""
        shutil.rmtree(self._cases, ignore_errors=True)


def import_everything() -> None:
    """Import what commands import when they run, so that forked processes need not."""
    import importlib
    import pkgutil

    import geograft
    from geograft.cli import set_gdal_options

    set_gdal_options()
    for module in pkgutil.walk_packages(geograft.__path__, "geograft."):
        # The plugin runs in QGIS only.
        if not module.name.endswith("__main__") and "qgis_plugin" not in module.name:
            importlib.import_module(module.name)
    for name in ("sklearn.cluster", "onnxruntime", "openvino", "matplotlib.backends.backend_agg", "timm.models"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue


def report(case: Case, faults: Sequence[str], outcome: Outcome) -> None:
    """Print a failure."""
    last = (outcome.stderr.strip().splitlines() or outcome.stdout.strip().splitlines() or [""])[-1]
    line = f"FAILED {case.family}: {case.name}: {', '.join(faults)}"
    print(f"{line}\n  geograft {' '.join((*case.command.arguments, *case.options))}"[:400])
    written = f"; written: {', '.join(outcome.written)}" if outcome.code and outcome.written else ""
    size = outcome.bytes / 1e9
    print(f"  exit code {outcome.code}, {outcome.seconds:.1f} s, {size:.1f} GB{written}: {last[:300]}", flush=True)


def main() -> None:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="random seed of the damage")
    parser.add_argument("--every", type=int, default=1, help="run every n-th case of each family only")
    parser.add_argument("--family", help="run one family only")
    parser.add_argument(
        "--case", default="", help="run the cases whose name contains this text, and print their output"
    )
    parser.add_argument("--keep", type=Path, help="keep inputs and folders of the cases here")
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.dont_write_bytecode = True
    import_everything()

    folder = (chosen.keep or Path(tempfile.mkdtemp(prefix="fuzz-inputs-"))).resolve()
    try:
        with counting_server() as (server, connections):
            shutil.rmtree(folder / "inputs", ignore_errors=True)
            write_inputs(folder / "inputs", run_command)
            write_scenes(folder / "inputs")
            write_jobs(folder / "inputs", run_command)
            cases = [
                case
                for case in all_cases(folder / "inputs")
                if chosen.family in (None, case.family) and chosen.case in case.name
            ]
            failed = _run(Harness(folder, server, connections, chosen.seed), cases, chosen.every, bool(chosen.case))
    finally:
        if not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(int(failed > 0))


def _run(harness: Harness, cases: Sequence[Case], every: int, verbose: bool) -> int:
    """Run every `every`-th case of each family and return the number of failures."""
    counts: Counter[str] = Counter()
    run, refused, failed = Counter(), Counter(), Counter()
    started = time.monotonic()
    for case in cases:
        counts[case.family] += 1
        if (counts[case.family] - 1) % every:
            continue
        faults, outcome = harness.failures(case)
        run[case.family] += 1
        refused[case.family] += outcome.code == 1
        failed[case.family] += bool(faults)
        if faults:
            report(case, faults, outcome)
        if verbose:
            print(f"{case.family}: {case.name}\n{outcome.stdout}{outcome.stderr}", end="")
    print(f"{'family':<12}{'cases':>7}{'refused':>9}{'failed':>8}")
    for family in [*run, "all"]:
        figures = [sum(each.values()) if family == "all" else each[family] for each in (run, refused, failed)]
        print(f"{family:<12}{figures[0]:>7}{figures[1]:>9}{figures[2]:>8}")
    print(f"{time.monotonic() - started:.0f} s")
    return sum(failed.values())


if __name__ == "__main__":
    main()
