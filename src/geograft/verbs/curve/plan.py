"""What a curve computes: which numbers of tiles, which of them, which networks, and for how many steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geograft.config import Recipe, TrainConfig, Variant
from geograft.errors import SettingError
from geograft.geo.splitting.nested import spread_order
from geograft.geo.splitting.units import units_of
from geograft.geo.tilesets.tileset import Tile, TileSet
from geograft.learn.feeding.order import batched

SHARES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Percent of the training tiles."""
LEAST_STEPS = 1000
"""Steps of the optimizer that a point with few tiles takes, if the one with all takes as many."""


@dataclass(frozen=True)
class Size:
    """One place on the axis of a curve."""

    share: float
    """Percent of the training tiles."""
    tiles: int


def sizes(shares: Sequence[float], total: int) -> list[Size]:
    """Return the number of tiles that each share in percent is of `total`, to the nearest, in ascending order.

    Raises:
        SettingError: for a share that is none, gives no tile, or gives as many as another one.
    """
    strange = [share for share in shares if not 0 < share <= 100]
    if strange or not shares:
        raise SettingError(f"--shares {joined(shares)}: each is more than 0 and at most 100, in percent.")
    found = [Size(share, int(share * total / 100 + 0.5)) for share in sorted(shares)]
    # Of several shares of one number of tiles the largest comes nearest to what it says.
    kept = {size.tiles: size for size in found if size.tiles}
    if len(kept) < len(found):
        none = [size.share for size in found if not size.tiles]
        what = f"{joined(none)} % give no tile" if none else "some give the same number of tiles"
        remedy = f"Give --shares {joined([size.share for size in kept.values()])}." if kept else "Prepare more."
        raise SettingError(f"--shares {joined(shares)}: of {total:,} training tiles {what}. {remedy}")
    return found


def joined(shares: Sequence[float]) -> str:
    """Return shares as the command line takes them.

    >>> joined([0.5, 10.0])
    '0.5,10'
    """
    return ",".join(f"{share:g}" for share in shares)


def variants_of(recipe: Recipe) -> tuple[Variant, ...]:
    """Return the recipe's variants; of one that lists none its network pretrained, and the same from scratch."""
    if recipe.variants:
        return recipe.variants
    scratch = Variant("from scratch", model={"weights": "none", "start": ""})
    if recipe.model.architecture == "unet" or recipe.model.weights == "none":
        return (scratch,)
    return (Variant("pretrained"), scratch)


def subset(whole: TileSet, seed: int, count: int) -> list[Tile]:
    """Return the tiles of `whole` with `count` of the training tiles, in the index's order.

    The smaller subset of a seed lies in the larger one. Tiles are drawn from all units of the split alike.
    """
    train = whole.split("train")
    units = units_of(whole, "train")
    order = spread_order([units.cells[cell].unit for cell in units.cell_of], seed)
    chosen = {id(train[position]) for position in order[:count]}
    return [tile for tile in whole.tiles if tile.split != "train" or id(tile) in chosen]


def repeats(tiles: int, total: int, config: TrainConfig, least_steps: int) -> int:
    """Return how often each of `tiles` training tiles comes in an epoch, of which `total` tiles make the full one.

    So often that the run takes about as many steps as that with all tiles, or `least_steps` where that is fewer. Epochs
    stay what they are: as many validations to choose the best from, and rates that fall alike.
    """
    enough = least_steps * config.batch_size * config.accumulate / config.epochs
    return max(config.repeat, int(min(total * config.repeat, enough) / tiles + 0.5))


def steps(tiles: int, config: TrainConfig) -> int:
    """Return how many steps of the optimizer a run on `tiles` training tiles takes when nothing stops it early."""
    batches = len(batched(range(tiles * config.repeat), config.batch_size))
    return config.epochs * math.ceil(batches / config.accumulate)
