"""The fit of the linear classifier: the optimum, the sample, the cache of maps, and the run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from geograft.card import STATE, WEIGHTS
from geograft.config import ModelConfig, TrainConfig
from geograft.errors import InputError, SettingError
from geograft.legend import Legend
from geograft.networks.bodies import LinearClassifier
from geograft.networks.network import Network, build
from geograft.training import linear as module
from geograft.training.checkpoint import RunFolder
from geograft.training.linear import BALANCE, PENALTY, CachedMaps, PixelSample, draw_sample, fit_linear, fit_logistic
from tests.support.training import blocks, training_data

CONFIG = TrainConfig(device="cpu")
LAKES = Legend(("water", "reeds", "boats"), overlapping=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(module, "user_cache_path", lambda *_, **__: tmp_path / "user")
    yield tmp_path / "user" / module.CACHE


def network(outputs: int = 1) -> Network:
    torch.manual_seed(0)
    return build(ModelConfig(architecture="linear", encoder="mobilenetv3_small_050", weights="none"), 3, outputs)


def body(outputs: int = 1) -> LinearClassifier:
    found = network(outputs).eval().body
    assert isinstance(found, LinearClassifier)
    return found


def sample(exclusive: bool, outputs: int, rows: int = 300) -> PixelSample:
    rng = np.random.default_rng(outputs)
    features = rng.normal(3, [1, 20, 0.1, 5], (rows, 4))
    classes = features[:, :1] + features[:, 1:2] / 20 + rng.normal(0, 1, (rows, 1)) > [4.5 + i for i in range(outputs)]
    targets = np.eye(outputs)[classes.sum(axis=1).clip(0, outputs - 1)] if exclusive else classes
    weight = rng.integers(1, 4, rows)
    known = np.ones((rows, 1 if exclusive else outputs), bool)
    given = [torch.tensor(np.asarray(each, np.float32)) for each in (features, targets)]
    return PixelSample(*given, torch.tensor(known), torch.tensor(weight, dtype=torch.float32), exclusive, tiles=4)


@pytest.mark.parametrize(("exclusive", "outputs"), [(False, 1), (True, 3), (False, 2)])
def test_the_fit_is_that_of_scikit_learn(exclusive: bool, outputs: int) -> None:
    drawn = sample(exclusive, outputs)
    weight, bias = (each.numpy() for each in fit_logistic(drawn))
    x, counts = drawn.features.double().numpy(), drawn.weight.double().numpy()
    mean = np.average(x, axis=0, weights=counts)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=counts))
    problems = [drawn.targets.argmax(dim=1).numpy()] if exclusive else list(drawn.targets.T.numpy().astype(int))
    for number, classes in enumerate(problems):
        frequency = np.bincount(classes, counts) / counts.sum()
        balanced = counts * frequency[classes] ** -BALANCE
        # Theirs is the sum over rows with weight C, ours the weighted mean: C = 1 / (penalty * sum of weights).
        peer = LogisticRegression(C=np.sqrt(drawn.tiles) / PENALTY, tol=1e-10, max_iter=10_000)
        peer.fit((x - mean) / std, classes, balanced / balanced.sum())
        own = slice(None) if exclusive else slice(number, number + 1)
        theirs = peer.coef_ / std
        np.testing.assert_allclose(weight[own], theirs, rtol=2e-3, atol=1e-5)
        logits = x @ weight[own].T + bias[own]
        difference = logits - (x @ theirs.T + peer.intercept_ - theirs @ mean)
        # Softmax does not change if the same is added to all classes.
        np.testing.assert_allclose(difference - difference.mean(axis=1, keepdims=True) * exclusive, 0, atol=5e-3)


def test_constant_features_and_a_single_class_are_no_fault() -> None:
    drawn = sample(exclusive=False, outputs=1)
    constant = replace(drawn, features=torch.cat([drawn.features, torch.full((300, 1), 7.0)], dim=1))
    weight, bias = fit_logistic(constant)
    assert weight[0, -1] == 0 and bias.isfinite().all()
    weight, bias = fit_logistic(replace(drawn, targets=torch.zeros_like(drawn.targets)))
    assert weight.isfinite().all() and bias.isfinite().all() and (drawn.features @ weight.T + bias < 0).all()


@pytest.mark.parametrize("legend", [None, LAKES])
def test_each_pixel_stands_for_those_of_its_class_that_were_not_drawn(
    legend: Legend | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 400)
    data = training_data(3)
    if legend:
        rng = np.random.default_rng(0)
        tiles = [(image, (rng.random((3, 16, 16)) > 0.7).astype(np.float32)) for image, _ in blocks(18, 0)]
        tiles[0][1][:, 0] = np.nan
        data = replace(data, train=tiles, legend=legend)
    drawn = draw_sample(data, 0, CachedMaps(body(3)))
    assert len(drawn.weight) <= 400 + 18 * 4
    labels = np.stack([label for _, label in data.train])
    labelled = np.isfinite(labels).any(axis=1) if legend else labels != 255
    assert float(drawn.weight.sum()) == pytest.approx(labelled.sum(), rel=1e-5)
    if legend is None:
        by_class = (drawn.weight[:, None] * drawn.targets).sum(dim=0)
        np.testing.assert_allclose(by_class, np.bincount(labels[labelled], minlength=3), rtol=1e-4)


def fit(out: Path, outputs: int = 1, **changes: Any) -> Network:
    found, resume = network(outputs), changes.pop("resume", False)
    history = fit_linear(found, training_data(**changes), CONFIG, RunFolder(out), resume)
    assert len(history.epochs) == 1
    return found


def test_it_separates_blocks_of_brightness_and_gives_the_same_bits_twice(tmp_path: Path, cache: Path) -> None:
    found = network()
    history = fit_linear(found, training_data(), CONFIG, RunFolder(tmp_path / "first"))
    assert history.best.val_iou > 0.8 and history.best.train_iou > 0.8
    # The second time from the cache, the third without.
    assert len(list(cache.iterdir())) == 23
    fit(tmp_path / "second")
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    fit(tmp_path / "third")
    first, *others = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("first", "second", "third"))
    assert others == [first, first]


def test_only_new_tiles_are_encoded_and_the_cache_is_bounded(cache: Path) -> None:
    images = [torch.rand(1, 3, 32, 48) for _ in range(3)]
    maps = CachedMaps(body())
    found = [maps(image)[1] for image in (*images, *images)]
    assert maps.computed == 3
    assert all(map(torch.equal, found[0], found[3]))
    other = body()
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1)
    changed = CachedMaps(other)
    changed(images[0])
    assert changed.computed == 1  # another encoder
    maps(images[2])  # the last that was used
    size = next(iter(cache.iterdir())).stat().st_size
    maps.prune(max_bytes=size)
    assert len(list(cache.iterdir())) == 1
    maps(images[2])
    assert maps.computed == 3


def test_without_a_writable_cache_nothing_fails(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file in place of the folder")
    fit(tmp_path / "run")
    assert cache.read_text() == "a file in place of the folder"


def test_a_finished_fit_is_resumed_and_another_one_refused(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    fit(tmp_path / "run", resume=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before and STATE in before
    with pytest.raises(SettingError):
        fit(tmp_path / "run", resume=True, fingerprint="of other tiles")


def test_without_labelled_pixels_it_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    tiles = [(image, np.full_like(label, 255)) for image, label in blocks(3, 0)]
    with pytest.raises(InputError):
        fit(tmp_path / "run", train=tiles)
    assert not (tmp_path / "run").exists()


@settings(max_examples=5)
@given(st.integers(2, 4))
def test_fractional_labels_are_fitted_as_such(classes: int) -> None:
    rng = np.random.default_rng(classes)
    fractions = rng.dirichlet([2] * classes, 400).astype(np.float32)
    targets = torch.tensor(fractions[:, 1:] if classes == 2 else fractions)
    features = torch.tensor(np.log(fractions))
    drawn = PixelSample(features, targets, torch.ones(400, 1, dtype=torch.bool), torch.ones(400), classes > 2, 10**8)
    weight, bias = fit_logistic(drawn)
    logits: Tensor = features @ weight.T + bias
    predicted = logits.softmax(dim=1) if classes > 2 else logits.sigmoid()
    assert (predicted - targets).abs().mean() < 0.02
