import pytest
import torch

from geograft.inference.probability import CHAIN, Turn, turned, turned_back, turns

SQUARE = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)


def key(images: torch.Tensor) -> tuple[int, ...]:
    return tuple(images[0, 0].flatten().tolist())


def test_the_eight_turns_differ_and_start_from_the_image_as_it_is() -> None:
    assert CHAIN[0] == Turn(0, flipped=False)
    assert torch.equal(turned(SQUARE, CHAIN[0]), SQUARE)
    assert len({key(turned(SQUARE, turn)) for turn in CHAIN}) == len(CHAIN) == 8


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_set_is_a_group(count: int) -> None:
    """Two turns one after another are again one of the set."""
    alone = {key(turned(SQUARE, turn)) for turn in turns(count)}
    both = {key(turned(turned(SQUARE, first), second)) for first in turns(count) for second in turns(count)}
    assert both == alone


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_set_prefers_no_direction(count: int) -> None:
    """Normal in D4: seen from any other side, the set is the same set."""
    for side in CHAIN:
        seen = {key(turned_back(turned(turned(SQUARE, side), turn), side)) for turn in turns(count)}
        assert seen == {key(turned(SQUARE, turn)) for turn in turns(count)}


@pytest.mark.parametrize("turn", CHAIN)
def test_turned_back_undoes_turned(turn: Turn) -> None:
    assert torch.equal(turned_back(turned(SQUARE, turn), turn), SQUARE)
