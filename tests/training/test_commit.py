"""The end of an epoch: all of its files, or those of the epoch before, whatever fails or kills the process."""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Adam

from geograft.card import CARD, FEATURES_FILE, WEIGHTS, ModelCard, read_card, unfinished_notes
from geograft.config import ModelConfig
from geograft.errors import InputError, OutputError
from geograft.files import UPDATE, atomic_update, complete_update, scratch_path
from geograft.training.checkpoint import (
    LAST,
    STATE,
    EpochTotals,
    RunFolder,
    Stateful,
    TrainingProgress,
    load_state,
    load_weights,
)
from geograft.training.history import COLUMNS, HISTORY, Epoch, History, read_history
from tests.support.processes import Fuse, run_in_child
from tests.support.runs import TREES
from tests.support.training import TinyNetwork

CARD_OF_RUN = ModelCard(
    "run", ModelConfig(architecture="unet"), "random", TREES, ("a", "b", "c"), "uint8", (1.0,) * 3, (1.0,) * 3, 32, 0.1,
    0.5, 1,
)  # fmt: skip
ROW = Epoch(epoch=1, **dict.fromkeys(COLUMNS[1:], 0.5))
FILES = {WEIGHTS, LAST, STATE, HISTORY, CARD, "recipe.toml"}


def write_epoch(folder: Path, epoch: int) -> None:
    """Write epoch 1 or 2 of a run; each is better than the one before."""
    torch.manual_seed(epoch)
    network = TinyNetwork(seed=epoch)
    parts: dict[str, Stateful] = {"network": network, "optimizer": Adam(network.parameters())}
    rows = tuple(replace(ROW, epoch=number, val_loss=1 / number) for number in range(1, epoch + 1))
    progress = TrainingProgress(EpochTotals(np.zeros((2, 2), np.int64)), epoch, history=History(rows))
    run = RunFolder(folder, CARD_OF_RUN, {"recipe.toml": f"epoch {epoch}"})
    run.write_epoch(network, parts, progress, {"seed": 0})


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a run; what is temporary has no meaning."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a run after its first epoch, with features, and after its second."""
    folder = tmp_path_factory.mktemp("whole")
    first = begin(folder)
    write_epoch(folder, 2)
    return first, content(folder)


def begin(folder: Path) -> dict[str, bytes]:
    write_epoch(folder, 1)
    (folder / FEATURES_FILE).write_bytes(b"features of epoch 1")
    return content(folder)


OPERATIONS: list[tuple[Any, str]] = [
    (Path, name) for name in ("replace", "unlink", "rmdir", "mkdir", "write_bytes", "write_text", "touch")
]
OPERATIONS = [*OPERATIONS, (os, "fsync")]


@contextmanager
def before_each_operation(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before every operation on files in the block."""

    def wrapped(function: Any) -> Any:
        def acting(*args: Any, **options: Any) -> Any:
            act()
            return function(*args, **options)

        return acting

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in OPERATIONS:
            patch.setattr(owner, name, wrapped(getattr(owner, name)))
        yield


def count_operations(folder: Path) -> int:
    begin(folder)
    calls: list[None] = []
    with before_each_operation(lambda: calls.append(None)):
        write_epoch(folder, 2)
    return len(calls)


class FailingCall:
    """Raises "no space left" at its call `number`."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_epoch_changes_all_files_together(epochs: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    first, second = epochs
    assert (set(first), set(second)) == (FILES | {FEATURES_FILE}, FILES)
    assert all(first[name] != second[name] for name in FILES)


def test_a_failure_at_any_operation_leaves_one_epoch_or_the_other(
    tmp_path: Path, epochs: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    count = count_operations(tmp_path / "count")
    seen: set[int] = set()
    assert count > 30
    begin(tmp_path / "first")
    for number in range(1, count + 1):
        folder = shutil.copytree(tmp_path / "first", tmp_path / str(number))
        with before_each_operation(FailingCall(number)), pytest.raises(OutputError, match=str(folder)):
            write_epoch(folder, 2)
        check_one_epoch(folder, epochs, seen, again=number % 10 == 0)
    assert seen == {1, 2}


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_kill_at_any_operation_leaves_one_epoch_or_the_other(
    tmp_path: Path, epochs: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    count = count_operations(tmp_path / "count")
    seen: set[int] = set()
    begin(tmp_path / "first")
    for number in range(1, count + 1):
        folder = shutil.copytree(tmp_path / "first", tmp_path / str(number))

        def doomed(number: int = number, folder: Path = folder) -> None:
            with before_each_operation(Fuse(number).burn):
                write_epoch(folder, 2)

        assert run_in_child(doomed) == 9
        check_one_epoch(folder, epochs, seen, again=number % 10 == 0)
    assert seen == {1, 2}


def check_one_epoch(
    folder: Path, epochs: tuple[dict[str, bytes], dict[str, bytes]], seen: set[int], again: bool
) -> None:
    """Assert that a folder, once it is read, has the files of one epoch, and that the second can be written `again`."""
    card = read_card(folder)
    assert content(folder) == epochs[card.epochs - 1]
    assert len(read_history(folder).epochs) == card.epochs
    assert not (folder / UPDATE).exists()
    seen.add(card.epochs)
    if again:
        network = TinyNetwork()
        assert load_state(folder, {"network": network}, {"seed": 0}, 9).epoch == card.epochs
        load_weights(folder / WEIGHTS, network)
        write_epoch(folder, 2)
        assert content(folder) == epochs[1]
        assert {path.name for path in folder.iterdir()} == FILES


def test_an_update_is_completed_by_any_reader(
    tmp_path: Path, epochs: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    readers: list[Callable[[Path], Any]] = [
        read_card,
        read_history,
        complete_update,
        lambda folder: load_state(folder, {}, {"seed": 0}, 9),
    ]
    for number, read in enumerate(readers):
        folder = tmp_path / str(number)
        begin(folder)
        whole = tmp_path / f"whole{number}"
        write_epoch(whole, 1)
        write_epoch(whole, 2)
        (folder / UPDATE).mkdir()
        for name, bytes_ in content(whole).items():
            (folder / UPDATE / name).write_bytes(bytes_)
        (folder / UPDATE / FEATURES_FILE).touch()
        read(folder)
        assert content(folder) == epochs[1]


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_an_update_that_another_process_completes_meanwhile_is_complete(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when all processes of a training start again. The other one acts after so many looks at the folder."""
    update, looks, iterdir = tmp_path / UPDATE, 0, Path.iterdir
    update.mkdir()
    (update / "file").write_text("new")

    def after(look: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def looking(path: Path) -> Any:
            nonlocal looks
            seen = look(path)
            looks += path == update
            if path == update and looks == moment:
                (update / "file").replace(tmp_path / "file")
                update.rmdir()
            return seen

        return looking

    monkeypatch.setattr("os.path.lexists", after(os.path.lexists))
    monkeypatch.setattr(Path, "lstat", after(Path.lstat))
    monkeypatch.setattr(Path, "iterdir", after(lambda path: list(iterdir(path))))
    complete_update(tmp_path)
    assert looks == moment
    assert {path.name: path.read_text() for path in iterdir(tmp_path)} == {"file": "new"}


def test_a_foreign_file_with_the_name_of_an_update_is_refused_and_kept(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / UPDATE).write_text("mine")
    with pytest.raises(InputError, match=UPDATE):
        read_card(tmp_path)
    with pytest.raises(OutputError, match=UPDATE):
        write_epoch(tmp_path, 2)
    assert (tmp_path / UPDATE).read_text() == "mine"
    (tmp_path / UPDATE).unlink()
    (tmp_path / UPDATE / "folder").mkdir(parents=True)
    with pytest.raises(OutputError, match=UPDATE):
        complete_update(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights")
def test_an_update_is_not_followed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / UPDATE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=UPDATE):
        complete_update(tmp_path / "run")
    assert (tmp_path / "elsewhere" / "file").exists()


def test_an_update_that_raises_changes_nothing(tmp_path: Path) -> None:
    begin(tmp_path)
    before = content(tmp_path)

    def failing() -> None:
        with atomic_update(tmp_path) as part:
            (part / CARD).write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert content(tmp_path) == before
    assert not scratch_path(tmp_path / UPDATE).exists()


def test_a_calibration_made_between_two_epochs_is_kept_for_the_same_weights_alone(tmp_path: Path) -> None:
    write_epoch(tmp_path, 1)
    calibrated = replace(read_card(tmp_path), threshold=0.3, temperature=2.0, calibrated="val")
    calibrated.write(tmp_path)
    run, history = RunFolder(tmp_path), read_history(tmp_path)
    worse = history.append(replace(ROW, epoch=2, val_loss=2.0))
    assert run.card_of(CARD_OF_RUN, worse) == replace(calibrated, epochs=2)
    better = history.append(replace(ROW, epoch=2, val_loss=0.1))
    assert run.card_of(CARD_OF_RUN, better).calibrated == ""


def test_a_card_says_whether_its_run_is_finished(tmp_path: Path) -> None:
    write_epoch(tmp_path, 2)
    card = read_card(tmp_path)
    assert (card.finished, card.epoch, card.epochs) == (False, 2, 2)
    (note,) = unfinished_notes([card, CARD_OF_RUN])
    assert "epoch 2" in note
    assert unfinished_notes([CARD_OF_RUN]) == ()
    with pytest.raises(ValueError, match="epochs is 1"):
        replace(card, epochs=1)


def test_a_history_cut_at_the_end_of_a_line_is_refused(tmp_path: Path) -> None:
    write_epoch(tmp_path, 2)
    path = tmp_path / HISTORY
    lines = path.read_text().splitlines(keepends=True)
    for kept in (1, 2):
        path.write_text("".join(lines[:kept]))
        with pytest.raises(InputError, match=rf"{HISTORY} has {kept - 1} epoch.* 2 "):
            read_history(tmp_path)


def spoil(path: Path, keys: tuple[Any, ...], value: Any) -> None:
    """Replace, or with `value` None remove, the entry of a state at `keys`."""
    whole = torch.load(path, weights_only=True)
    entry = whole
    for key in keys[:-1]:
        entry = entry[key]
    if value is None:
        del entry[keys[-1]]
    else:
        entry[keys[-1]] = value
    torch.save(whole, path)


ROW_EDITS = [("epoch", 5), ("val_loss", -1.0), ("val_iou", 2.0), ("lr", "x"), ("train_loss", None)]
STATE_EDITS = [
    *(((name,), None) for name in ("identity", "parts", "random", "progress")),
    *((("parts", name), None) for name in ("network", "optimizer")),
    (("parts",), []),
    (("parts", "network"), 3),
    (("random", "cpu"), None),
    (("random", "cpu"), torch.zeros(100, dtype=torch.uint8)),
    (("random", "cpu"), torch.zeros(5056)),
    (("random", "cpu"), "x"),
    *((("progress", name), None) for name in ("confusion", "loss", "epoch", "step", "seconds", "history")),
    *((("progress", "epoch"), value) for value in (-1, 0, 3, "x", 1.5)),
    *((("progress", "step"), value) for value in (-1, "x")),
    *((("progress", name), value) for name in ("loss", "seconds") for value in (-1.0, float("nan"), "x")),
    *((("progress", "confusion"), value) for value in ([[-1, 0], [0, 0]], [1, 2], [], [["x"]], 5)),
    (("progress", "history"), [1, 2]),
    *((("progress", "history", 1, name), value) for name, value in ROW_EDITS),
]


@pytest.mark.parametrize(("keys", "value"), STATE_EDITS)
def test_an_edited_state_is_refused_and_nothing_is_changed(tmp_path: Path, keys: tuple[Any, ...], value: Any) -> None:
    write_epoch(tmp_path, 2)
    spoil(tmp_path / STATE, keys, value)
    before = content(tmp_path)
    network = TinyNetwork()
    with pytest.raises(InputError, match=STATE) as caught:
        load_state(tmp_path, {"network": network, "optimizer": Adam(network.parameters())}, {"seed": 0}, 9)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before
