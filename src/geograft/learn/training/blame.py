"""Which tile made the loss infinite or no number, in words for the user."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from geograft.learn.feeding.feed import Batch
from geograft.learn.losses.mix import LossMix, segmentation_loss

MOST_NAMED = 3


@runtime_checkable
class Named(Protocol):
    """Tiles that can say where they lie."""

    def name(self, index: int, /) -> str:
        """Return the scene and the window of a tile, in words."""
        ...


def name_of(tiles: object, index: int) -> str:
    """Return the name of a tile; its number, counted from 0, where the tiles have no names."""
    return tiles.name(index) if isinstance(tiles, Named) else f"tile {index}"


def culprits(model: Any, batch: Batch, mix: LossMix) -> list[int]:
    """Return the positions of those tiles of a batch whose loss is no finite number even when they are alone.

    Costs a forward pass of each tile. `model` stays in the mode it is in: in training, batch norm's running statistics
    may be no numbers any more, and those of the tile itself count.
    """
    images, label = batch
    with torch.no_grad():
        losses = [
            segmentation_loss(model(images[index : index + 1]), label[index : index + 1], mix)
            for index in range(len(images))
        ]
    return [index for index, loss in enumerate(losses) if not loss.isfinite()]


def verdict(network: nn.Module, guilty: Sequence[str], tiles: int) -> str:
    """Return what is at fault and what to do, when `guilty` tiles of a batch of `tiles` have no finite loss alone."""
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        return "The weights are no numbers any more. Lower the learning rates, or set clip_norm."
    if not guilty:
        return "No tile of its batch does so alone. Lower the learning rates, or set clip_norm."
    if len(guilty) == tiles > 1:
        return "Each tile of its batch does so alone. Lower the learning rates, or look for extreme pixel values."
    more = f" and {len(guilty) - MOST_NAMED} more" if len(guilty) > MOST_NAMED else ""
    named = "; ".join(guilty[:MOST_NAMED])
    return f"The cause is {named}{more}. Look there for extreme pixel values, and mask them or scale the bands."
