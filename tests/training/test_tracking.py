from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from geograft.config import TrainConfig
from geograft.errors import SettingError
from geograft.training import history
from geograft.training.history import RUN_ID, Epoch, tracked_metrics
from geograft.training.loop import fit
from tests.support.training import TinyNetwork, training_data

CONFIG = TrainConfig(epochs=2, schedule="constant", batch_size=4, workers=0, device="cpu")
NAN = float("nan")


def test_metrics_are_named_by_split_and_undefined_ones_left_out() -> None:
    row = Epoch(3, 0.5, 0.1, 0.2, 0.3, 0.4, NAN, NAN, NAN, NAN, NAN, lr=1e-3, seconds=2.0, tiles_per_second=9.0)
    train = {"loss/train": 0.5, "iou/train": 0.1, "f1/train": 0.2, "precision/train": 0.3, "recall/train": 0.4}
    assert tracked_metrics(row) == {**train, "lr": 1e-3, "seconds": 2.0, "tiles_per_second": 9.0}


def test_tensorboard_reads_every_epoch_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with_events = replace(CONFIG, tensorboard=True)
    fit(TinyNetwork(), training_data(), replace(with_events, epochs=1), tmp_path)
    history = fit(TinyNetwork(), training_data(), with_events, tmp_path, resume=True)
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = {event.step: event.value for event in reader.Scalars("loss/val")}
    assert written == {row.epoch: pytest.approx(row.val_loss, rel=1e-6) for row in history.epochs}


def test_mlflow_logs_settings_and_every_epoch_in_one_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    config, out = replace(CONFIG, mlflow=str(tmp_path / "mlflow")), tmp_path / "trees"
    fit(TinyNetwork(), training_data(), replace(config, epochs=1), out)
    history = fit(TinyNetwork(), training_data(), config, out, resume=True)
    assert not history.notes
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("geograft").experiment_id])
    assert (run.info.run_name, run.info.status) == ("trees", "FINISHED")
    assert run.info.run_id == (out / RUN_ID).read_text().strip()
    assert run.data.params["batch_size"] == "4"
    for name, figure in (("loss/val", "val_loss"), ("iou/train", "train_iou"), ("lr", "lr")):
        written = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert written == {row.epoch: getattr(row, figure) for row in history.epochs}


def test_training_continues_with_a_message_if_mlflow_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")

    def gone(*_given: Any, **_options: Any) -> None:
        raise mlflow.MlflowException("no answer")

    monkeypatch.setattr(mlflow.MlflowClient, "log_metric", gone)
    history = fit(TinyNetwork(), training_data(), replace(CONFIG, mlflow=str(tmp_path / "mlflow")), tmp_path / "run")
    assert len(history.epochs) == 2
    assert len(history.notes) == 1
    assert "epoch 2: no answer" in history.notes[0]


def test_an_unusable_mlflow_address_is_a_one_line_error(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(SettingError, match="mlflow = 'ftp://nowhere'") as caught:
        fit(TinyNetwork(), training_data(), replace(CONFIG, mlflow="ftp://nowhere"), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "extra"),
    [({"tensorboard": True}, "tensorboard"), ({"mlflow": "x"}, "mlflow")],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], extra: str
) -> None:
    def missing(name: str) -> Callable[[], None]:
        raise ImportError(name)

    monkeypatch.setattr(history, "import_module", missing)
    with pytest.raises(SettingError, match=rf"pip install geograft\[{extra}\]"):
        fit(TinyNetwork(), training_data(), replace(CONFIG, **settings), tmp_path)
