import numpy as np
import pytest
from numpy import ndarray

from geograft.inference.probability import FLIP_ROTATIONS, FlipRotation, flip_rotate, flip_rotations, undo_flip_rotate

SQUARE = np.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)


def key(images: ndarray) -> tuple[int, ...]:
    return tuple(images[0, 0].flatten().tolist())


def test_the_eight_transforms_differ_and_start_with_the_identity() -> None:
    assert FLIP_ROTATIONS[0] == FlipRotation(0, flipped=False)
    assert np.array_equal(flip_rotate(SQUARE, FLIP_ROTATIONS[0]), SQUARE)
    assert len({key(flip_rotate(SQUARE, turn)) for turn in FLIP_ROTATIONS}) == len(FLIP_ROTATIONS) == 8


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_set_is_a_group(count: int) -> None:
    """The composition of two transforms is in the set."""
    alone = {key(flip_rotate(SQUARE, turn)) for turn in flip_rotations(count)}
    both = {
        key(flip_rotate(flip_rotate(SQUARE, first), second))
        for first in flip_rotations(count)
        for second in flip_rotations(count)
    }
    assert both == alone


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_set_is_normal(count: int) -> None:
    """The set is a normal subgroup of D4: conjugation does not change it."""
    for side in FLIP_ROTATIONS:
        seen = {
            key(undo_flip_rotate(flip_rotate(flip_rotate(SQUARE, side), turn), side)) for turn in flip_rotations(count)
        }
        assert seen == {key(flip_rotate(SQUARE, turn)) for turn in flip_rotations(count)}


@pytest.mark.parametrize("turn", FLIP_ROTATIONS)
def test_undo_flip_rotate_is_the_inverse(turn: FlipRotation) -> None:
    assert np.array_equal(undo_flip_rotate(flip_rotate(SQUARE, turn), turn), SQUARE)
