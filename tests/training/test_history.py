import csv
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geograft.errors import InputError, OutputError
from geograft.training.history import HISTORY, SCORES, Epoch, History, read_history

losses, scores = (st.floats(0, maximum) | st.just(math.nan) for maximum in (10, 1))
epochs = st.builds(
    Epoch,
    epoch=st.just(0),
    **{field.name: scores if field.name.endswith(SCORES) else losses for field in fields(Epoch)[1:]},
)


def row(epoch: int, val_loss: float) -> Epoch:
    others = {field.name: 0.5 for field in fields(Epoch) if field.name not in ("epoch", "val_loss")}
    return Epoch(epoch=epoch, val_loss=val_loss, **others)


@settings(max_examples=25)
@given(st.lists(epochs, max_size=3))
def test_reading_returns_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Epoch]) -> None:
    folder = tmp_path_factory.mktemp("run")
    history = History(tuple(replace(row, epoch=number) for number, row in enumerate(rows, start=1)))
    history.write(folder)
    assert repr(read_history(folder)) == repr(history)


def test_history_is_plain_csv(tmp_path: Path) -> None:
    History((row(1, 0.25), row(2, math.nan))).write(tmp_path)
    with (tmp_path / HISTORY).open(newline="") as file:
        header, first, second = csv.reader(file)
    assert header[:3] == ["epoch", "train_loss", "train_iou"]
    assert (first[0], first[header.index("val_loss")]) == ("1", "0.25")
    assert second[header.index("val_loss")] == ""


def test_the_best_epoch_has_the_lowest_validation_loss() -> None:
    assert History((row(1, 0.5), row(2, 0.3), row(3, 0.3), row(4, math.nan))).best.epoch == 2
    assert History((row(1, math.nan), row(2, math.nan))).best.epoch == 2


def test_append_returns_a_new_history() -> None:
    first = History((row(1, 0.5),))
    assert first.append(row(2, 0.4)).epochs == (row(1, 0.5), row(2, 0.4))
    assert first.epochs == (row(1, 0.5),)


@pytest.mark.parametrize("text", ["", "epoch,colour\n1,2\n", "epoch,train_loss\n1\n", "\x00\n", "a\n1\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    History((row(1, 0.5),)).write(tmp_path)
    (tmp_path / HISTORY).write_text(text)
    with pytest.raises(InputError, match=HISTORY):
        read_history(tmp_path)


def test_a_history_cut_short_anywhere_is_refused_or_has_whole_rows(tmp_path: Path) -> None:
    rows = tuple(row(number, 0.125) for number in (1, 2, 3))
    History(rows).write(tmp_path)
    path = tmp_path / HISTORY
    text = path.read_text()
    for length in range(len(text)):
        path.write_text(text[:length])
        if text[:length].endswith("\n"):
            assert read_history(tmp_path).epochs == rows[: text[:length].count("\n") - 1]
        else:
            with pytest.raises(InputError, match=HISTORY):
                read_history(tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("epoch", 0), ("epoch", 3), ("epoch", -1), ("epoch", "x"), ("epoch", "")]
    + [(name, value) for name in ("val_iou", "train_f1", "val_recall") for value in (-0.1, 1.1, "inf", "x")]
    + [(name, value) for name in ("train_loss", "lr", "seconds") for value in (-1, "x")],
)
def test_an_edited_value_is_refused_by_column(tmp_path: Path, column: str, value: object) -> None:
    History((row(1, 0.25), row(2, 0.5))).write(tmp_path)
    path = tmp_path / HISTORY
    head, first, second = path.read_text().splitlines()
    cells = second.split(",")
    cells[head.split(",").index(column)] = str(value)
    path.write_text("\n".join((head, first, ",".join(cells), "")))
    with pytest.raises(InputError, match=rf"{HISTORY}.*{column} is .*{value}"):
        read_history(tmp_path)


def test_a_folder_without_history_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=HISTORY):
        read_history(tmp_path)


def test_a_folder_that_cannot_be_written_raises_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        History((replace(row(1, 0.5)),)).write(tmp_path / "file")


def test_reading_does_not_import_torch() -> None:
    code = "import sys, geograft.training.history, geograft.metrics.confusion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
