"""One process per output: who gets the lock, who is refused, and what is left of it."""

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from geograft import locks
from geograft.errors import OutputError
from geograft.files import atomic_write
from geograft.locks import lock_output, locks_output
from tests.support.processes import run_in_child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")

PATHS = ("q", "q/", "map.tif", "new/folder/map.tif", "new/../q", "ä b.gpkg")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def lock_in_child(path: Path) -> int:
    """Start a process that holds the lock of `path` until it is killed, and return its id once it does."""
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_output(path):
            os.write(write, b"1")
            time.sleep(600)
        os._exit(0)
    os.close(write)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    return child


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_of_a_lock(tmp_path: Path, name: str, fails: bool) -> None:
    try:
        with lock_output(tmp_path / name):
            assert list(tmp_path.rglob("*.geograft-lock"))
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert not names(tmp_path)


@pytest.mark.parametrize("name", PATHS)
def test_the_second_process_is_refused_with_the_output_and_the_holder(tmp_path: Path, name: str) -> None:
    holder = lock_in_child(tmp_path / name)
    try:
        with (
            pytest.raises(OutputError, match=rf"{re.escape(Path(name).name)} .*process {holder};") as caught,
            lock_output(tmp_path / name),
        ):
            pytest.fail("locked twice")
        assert "\n" not in str(caught.value)
    finally:
        kill(holder)
    # The lock ended with its process, whose file stops nobody and goes.
    assert list(tmp_path.rglob("*.geograft-lock"))
    with lock_output(tmp_path / name):
        pass
    assert not list(tmp_path.rglob("*.geograft-lock"))


def test_other_names_of_a_path_have_the_same_lock_and_other_paths_another(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "q")
    with lock_output(tmp_path / "q"):
        for same in ("link", "q/../q", "."):
            path = tmp_path / same if same != "." else tmp_path / "q" / "."
            with pytest.raises(OutputError, match=f"process {os.getpid()};"), lock_output(path):
                pytest.fail("locked twice")
        with lock_output(tmp_path / "q" / "inner"), lock_output(tmp_path / "q2"), lock_output(tmp_path / "q.tif"):
            pass
        assert ".q.geograft-lock" in names(tmp_path)


def test_a_child_neither_keeps_nor_removes_the_lock_of_its_parent(tmp_path: Path) -> None:
    def parent() -> None:
        with lock_output(tmp_path / "q"):
            grandchild = os.fork()
            if grandchild == 0:
                time.sleep(600)
            (tmp_path / "grandchild").write_text(str(grandchild))
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(parent) == signal.SIGKILL
    # The grandchild sleeps on, and has no lock.
    grandchild = int((tmp_path / "grandchild").read_text())
    os.kill(grandchild, 0)
    with lock_output(tmp_path / "q"):
        child = os.fork()
        if child == 0:
            try:
                raise SystemExit(0)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert ".q.geograft-lock" in names(tmp_path)
    os.kill(grandchild, signal.SIGKILL)


def test_a_child_that_leaves_the_block_of_its_parent_leaves_its_lock(tmp_path: Path) -> None:
    block = lock_output(tmp_path / "q")
    block.__enter__()
    assert run_in_child(lambda: block.__exit__(None, None, None)) == 0
    assert names(tmp_path) == {".q.geograft-lock"}
    with pytest.raises(OutputError), lock_output(tmp_path / "q"):
        pytest.fail("locked twice")
    block.__exit__(None, None, None)
    assert not names(tmp_path)


def file_of_others(path: Path) -> None:
    path.write_text("mine")


def link(path: Path) -> None:
    path.symlink_to("target")


@pytest.mark.parametrize("make", [file_of_others, link, Path.mkdir])
def test_what_is_no_lock_is_left_unchanged(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / ".q.geograft-lock"
    make(path)
    before = path.lstat()
    with pytest.raises(OutputError, match=r"q"), lock_output(tmp_path / "q"):
        pytest.fail("locked")
    assert names(tmp_path) == {path.name} and path.lstat() == before


@pytest.mark.parametrize("number", [*locks.NO_LOCK, *locks.NO_FILE])
def test_where_there_is_no_lock_the_job_runs_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    owner, name = (locks.fcntl, "flock") if number in locks.NO_LOCK else (os, "open")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with lock_output(tmp_path / "q"):
            assert not names(tmp_path)
    assert not names(tmp_path)
    monkeypatch.setattr(locks, "fcntl", None)
    with lock_output(tmp_path / "q"), lock_output(tmp_path / "q"):
        assert not names(tmp_path)


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space left"), lock_output(tmp_path / "q"):
        pytest.fail("locked")
    assert not names(tmp_path)


def test_a_wrapped_command_locks_its_argument_out(tmp_path: Path) -> None:
    @locks_output
    def command(run: Path, out: Path | None = tmp_path / "default") -> set[str]:
        return names(tmp_path)

    assert command(tmp_path) == {".default.geograft-lock"}
    assert command(tmp_path, tmp_path / "q") == command(tmp_path, out=tmp_path / "q") == {".q.geograft-lock"}
    assert command(tmp_path, None) == set() == names(tmp_path)


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(OutputError), lock_output(tmp_path / "out"), atomic_write(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system of processes here")
def test_where_no_file_can_be_the_output_is_refused_for_that_reason() -> None:
    with pytest.raises(OutputError, match=r"/proc/x\.gpkg cannot be written"), lock_output(Path("/proc/x.gpkg")):
        raise AssertionError


def test_shared_locks_exclude_exclusive_ones_and_the_other_way_round(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with lock_output(out, shared=True):
        with lock_output(out, shared=True), pytest.raises(OutputError), lock_output(out):
            pass
        # The first one still holds it.
        with pytest.raises(OutputError), lock_output(out):
            pass
        assert names(tmp_path) == {".out.geograft-lock"}
    assert not names(tmp_path)
    with lock_output(out), pytest.raises(OutputError), lock_output(out, shared=True):
        pass
    assert not names(tmp_path)
