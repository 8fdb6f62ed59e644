"""Pictures of tiles and maps, training curves, and colours that are distinguishable with colour blindness."""

import io
from itertools import combinations
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.image import imread
from numpy import ndarray

from geograft.figures import ExampleTile, curves_figure, examples_figure, loss_figure
from geograft.figures.curves import mean_over_seeds
from geograft.figures.pictures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    blend_colour,
    class_picture,
    downsample,
    downsample_factor,
    draw_outline,
    error_picture,
    grey,
    jpeg,
    label_picture,
    outcome_picture,
    outcomes,
    png,
    split_picture,
    stretch,
    stretch_limits,
    tile_iou,
)
from geograft.figures.style import (
    DARK,
    FN_COLOUR,
    FP_COLOUR,
    LIGHT,
    NO_DATA_COLOUR,
    TP_COLOUR,
    Theme,
    rgb,
)
from geograft.legend import IGNORE, PALETTE, SPLIT_COLOURS, Legend

LABELS = arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1, IGNORE]))
MAPS = arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1]))
BLACK = np.zeros((2, 3, 3), np.uint8)


def test_each_outcome_has_its_colour() -> None:
    label = np.array([[1, 0, 1], [0, IGNORE, IGNORE]], np.uint8)
    mapped = np.array([[1, 1, 0], [0, 1, 0]], np.uint8)
    found = outcomes(label, mapped)
    assert found.tolist() == [[TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE], [0, 0, 0]]
    # Black is 48 on the grey picture; 45 % of bluish green and 85 % of the error colours are blended into it.
    green, vermilion, blue, plain = [26, 98, 78], [188, 87, 7], [7, 104, 158], [48, 48, 48]
    assert outcome_picture(BLACK, found).tolist() == [[green, vermilion, blue], [plain, plain, plain]]


def test_errors_of_several_classes_are_the_misclassified_pixels() -> None:
    label = np.array([[0, 1, 2], [2, IGNORE, 1]], np.uint8)
    mapped = np.array([[0, 2, 2], [0, 0, 1]], np.uint8)
    wrong = (error_picture(BLACK, label, mapped) != 48).any(axis=2)
    assert wrong.tolist() == [[False, True, False], [True, False, False]]


@given(label=LABELS, mapped=MAPS)
def test_outcomes_include_every_labelled_and_every_mapped_pixel(label: ndarray, mapped: ndarray) -> None:
    found = outcomes(label, mapped)
    hits, extra, missed = ((found == code).sum() for code in (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE))
    assert hits + missed == (label == 1).sum()
    assert hits + extra == ((mapped == 1) & (label != IGNORE)).sum()
    iou = tile_iou(label, mapped, 2)
    union = hits + extra + missed
    assert iou == pytest.approx(hits / union) if union else np.isnan(iou)


def test_the_iou_of_several_classes_is_the_mean_over_those_present() -> None:
    label = np.array([[0, 0, 1, 1]], np.uint8)
    mapped = np.array([[0, 0, 1, 0]], np.uint8)
    assert tile_iou(label, mapped, 4) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_classes_are_coloured_and_the_background_is_not() -> None:
    legend = Legend(("rest", "tree"))
    picture = class_picture(BLACK, np.array([[0, 1, 1], [0, 0, IGNORE]], np.uint8), legend.colours)
    tree = [round(0.4 * 48 + 0.6 * channel) for channel in rgb(PALETTE[0])]
    assert picture[0, 1].tolist() == tree
    assert picture[0, 0].tolist() == picture[1, 2].tolist() == [48, 48, 48]
    sample = ExampleTile(BLACK, np.full((2, 3), IGNORE, np.uint8), {})
    assert (label_picture(sample, legend) == rgb(NO_DATA_COLOUR)).all()


# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def perceived_lab(colour: str, blindness: str) -> ndarray:
    """Return CIE L*a*b* (D65) of a colour as perceived with a colour blindness."""
    channels = np.array(rgb(colour)) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    perceived = np.clip(np.asarray(BLINDNESS[blindness]) @ linear, 0, 1)
    to_xyz = [[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]]
    xyz = np.asarray(to_xyz) @ perceived / [0.950456, 1, 1.088754]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize(
    "colours",
    [(TP_COLOUR, FP_COLOUR, FN_COLOUR), tuple(SPLIT_COLOURS.values()), LIGHT.lines[:3], DARK.lines[:3]],
    ids=["outcomes", "splits", "lines on light", "lines on dark"],
)
def test_colours_are_distinguishable_with_colour_blindness(colours: tuple[str, ...], blindness: str) -> None:
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(perceived_lab(one, blindness) - perceived_lab(other, blindness)) > 15, (one, other)


def test_the_stretch_maps_the_2nd_percentile_to_black_and_the_98th_to_white() -> None:
    image = np.arange(3 * 40 * 50, dtype=np.float32).reshape(3, 40, 50)
    valid = np.ones((40, 50), bool)
    valid[:4] = False
    limits = stretch_limits([image], [valid])
    assert limits == pytest.approx(np.percentile(image[:, valid], (2, 98), axis=1).T)
    picture = stretch(image, valid, limits)
    assert (picture[:4] == rgb(NO_DATA_COLOUR)).all()
    for band in range(3):
        assert (picture[valid][:, band] == 0).mean() == pytest.approx(0.02, abs=0.006)
        assert (picture[valid][:, band] >= 254).mean() == pytest.approx(0.02, abs=0.006)


@pytest.mark.parametrize("bands", [1, 2, 3, 8])
def test_the_first_three_bands_or_the_first_alone_are_shown(bands: int) -> None:
    image = np.random.default_rng(0).integers(0, 2048, (bands, 9, 9)).astype(np.uint16)
    valid = np.ones((9, 9), bool)
    picture = stretch(image, valid, stretch_limits([image], [valid]))
    assert picture.shape == (9, 9, 3)
    assert (bands < 3) == (picture[..., 0] == picture[..., 2]).all()


def test_images_without_a_valid_pixel_or_of_one_value_are_stretched() -> None:
    image = np.full((3, 4, 4), 7, np.float32)
    for valid in (np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        assert stretch(image, valid, stretch_limits([image], [valid])).shape == (4, 4, 3)


@given(height=st.integers(1, 90), width=st.integers(1, 90), longest=st.integers(1, 60))
def test_downsampled_pictures_fit_and_keep_their_mean(height: int, width: int, longest: int) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    small = downsample(picture, longest)
    factor = downsample_factor(height, width, longest)
    assert max(small.shape[:2]) <= longest
    whole = picture[: small.shape[0] * factor, : small.shape[1] * factor]
    assert small.mean() == pytest.approx(whole.mean(), abs=0.51)


def test_an_outline_is_the_inner_edge() -> None:
    where = np.zeros((12, 12), bool)
    where[2:9, 0:6] = True
    drawn = (draw_outline(np.zeros((12, 12, 3), np.uint8), where, "#FFFFFF", 2) == 255).all(axis=2)
    assert drawn.sum() == 7 * 6 - 3 * 2
    assert not drawn[4:7, 2:4].any()
    assert not (drawn & ~where).any()


def test_splits_are_outlined_and_tinted() -> None:
    picture = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    train, test = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    train[:, :10] = True
    test[:, 20:] = True
    drawn = split_picture(picture, {"train": train, "test": test}, SPLIT_COLOURS, line_px=1)
    assert (drawn[:, 12:18] == grey(picture)[:, 12:18]).all()
    assert (drawn[0, :10] == rgb(SPLIT_COLOURS["train"])).all()
    assert (drawn[5:15, 22:28] == blend_colour(picture, test, SPLIT_COLOURS["test"], 0.3)[5:15, 22:28]).all()
    alone = split_picture(picture, {"train": train}, SPLIT_COLOURS, line_px=1)
    assert (alone[5:15, 2:8] == picture[5:15, 2:8]).all()


def test_encoded_pictures_decode_to_themselves() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 16:] = rgb(FP_COLOUR)
    assert (decoded(png(picture)) == picture).all()
    assert np.abs(imread(io.BytesIO(jpeg(picture)), format="jpg").astype(int) - picture).max() < 24


def decoded(content: bytes) -> ndarray:
    """Return a PNG as uint8 (H, W, 3)."""
    return np.rint(imread(io.BytesIO(content), format="png")[..., :3] * 255).astype(np.uint8)


def history(*val_loss: float) -> SimpleNamespace:
    """Return epochs with these validation losses."""
    epochs = [
        SimpleNamespace(train_loss=loss - 0.1, val_loss=loss, train_iou=0.9 - loss, val_iou=0.8 - loss)
        for loss in val_loss
    ]
    return SimpleNamespace(epochs=epochs)


def drawn_colours(content: bytes) -> set[tuple[int, ...]]:
    packed = np.unique(decoded(content).reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1]))
    return {(int(colour) >> 16, int(colour) >> 8 & 255, int(colour) & 255) for colour in packed}


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_every_network_has_its_colour(look: Theme) -> None:
    histories = {name: [history(0.7, 0.5 - place / 10)] for place, name in enumerate(("one", "two", "three"))}
    for narrow in (False, True):
        colours = drawn_colours(curves_figure(histories, "loss", look, narrow))
        assert {rgb(look.paper), *map(rgb, look.lines[:3])} <= colours
        assert rgb(look.lines[3]) not in colours
    two = drawn_colours(curves_figure({name: histories[name] for name in ("one", "two")}, "iou", look))
    assert rgb(look.lines[1]) in two
    assert rgb(look.lines[2]) not in two


def test_the_loss_figure_accepts_one_epoch_several_seeds_and_nan() -> None:
    wide = decoded(loss_figure({"a": [history(0.7, 0.6, 0.5), history(0.8, float("nan"))], "b": [history(0.9)]}))
    assert wide.shape[1] > 2 * wide.shape[0]
    alone = decoded(loss_figure({"a": [history(0.7)]}))
    assert alone.shape[1] < 2 * alone.shape[0]
    nothing = decoded(loss_figure({"a": [history(float("nan"), float("nan"))]}))
    assert nothing.shape == alone.shape


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_mean_over_seeds_ignores_shorter_runs(runs: list[list[float]]) -> None:
    found = mean_over_seeds([np.array(run) for run in runs])
    for epoch, value in enumerate(found):
        assert value == pytest.approx(np.mean([run[epoch] for run in runs if len(run) > epoch]))


def test_figures_do_not_change_matplotlib_settings() -> None:
    before = dict(mpl.rcParams)
    curves_figure({"a": [history(0.7, 0.5)]}, "loss")
    assert dict(mpl.rcParams) == before


def test_the_examples_figure_has_a_row_per_tile_and_a_column_per_network() -> None:
    legend = Legend(("rest", "tree"))
    label = np.zeros((40, 40), np.uint8)
    label[10:30, 10:30] = 1
    picture = np.full((40, 40, 3), 90, np.uint8)
    two = ExampleTile(picture, label, {"one": label, "a network with a long name, pretrained": label})
    one = ExampleTile(picture, label, {"one": label})
    small, tall, wide = (decoded(examples_figure(rows, legend)) for rows in ([one], [one, one, one], [two]))
    assert tall.shape[0] > 2 * small.shape[0]
    assert wide.shape[1] * 3 == small.shape[1] * 4
    # Label and perfect map have the class colour blended into grey 90 (48 + 90 * 0.75 = 115).
    tinted = tuple(round(0.4 * 115 + 0.6 * channel) for channel in rgb(PALETTE[0]))
    assert (small == tinted).all(axis=2).mean() > 0.05
    with pytest.raises(ValueError, match="0 tiles"):
        examples_figure([], legend)
    with pytest.raises(ValueError, match="2 tiles"):
        examples_figure([one, two], legend)
