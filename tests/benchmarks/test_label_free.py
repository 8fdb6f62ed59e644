"""Remedies without labels: the expected threshold, batch-norm statistics, pseudo-labels, runs as they are."""

import numpy as np
import pytest
import torch
from torch import nn

from geograft.legend import IGNORE
from geograft.metrics.calibration import STEPS
from geograft.networks.bodies import UNet
from geograft.networks.network import Network
from label_free import as_it_is, expected_threshold, pseudo_label, recorded_statistics, with_mixed_statistics


def test_the_expected_threshold_is_the_best_one_for_calibrated_probabilities() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 10_000, STEPS + 1) * np.linspace(2, 0.1, STEPS + 1) ** 3
    p = np.minimum((np.arange(STEPS + 1) + 0.5) / STEPS, 1)
    counts = np.stack([pixels * (1 - p), pixels * p])[None]
    hit, predicted = (each[::-1].cumsum()[::-1] for each in (counts[0, 1], pixels))
    iou = hit / (predicted + counts[0, 1].sum() - hit)
    assert iou[expected_threshold(counts)] == iou.max()


def test_recorded_statistics_are_those_of_batch_norm() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3, momentum=None).train()
    images = torch.randn(6, 3, 8, 8) * 3 + 1
    with recorded_statistics([layer]) as recorded:
        for image in images:
            layer(image[None])
    mean, variance = recorded(layer)
    flat = images.transpose(0, 1).flatten(1)
    assert torch.allclose(mean, flat.mean(dim=1), atol=1e-5)
    assert torch.allclose(variance, flat.var(dim=1, unbiased=False), atol=1e-3)


def test_mixed_statistics_change_the_prediction_of_another_place() -> None:
    torch.manual_seed(0)
    network = Network(UNet(3, 1)).eval()
    images = [np.random.default_rng(i).normal(2, 3, (3, 32, 32)).astype(np.float32) for i in range(2)]
    before = list(as_it_is([network], images))
    before_mean = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)).running_mean.clone()
    after = list(with_mixed_statistics([network], images))
    norm = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    assert not torch.equal(norm.running_mean, before_mean)
    assert after[0] != pytest.approx(before[0])


def test_pseudo_labels_are_where_the_network_is_sure_and_do_not_depend_on_the_labels() -> None:
    probability = np.array([0.0, 0.1, 0.11, 0.5, 0.89, 0.9, 1.0])
    for label in (np.zeros(7, np.uint8), np.ones(7, np.uint8)):
        assert pseudo_label(probability, label).tolist() == [0, 0, IGNORE, IGNORE, IGNORE, 1, 1]
    assert (pseudo_label(probability, np.full(7, IGNORE)) == IGNORE).all()
