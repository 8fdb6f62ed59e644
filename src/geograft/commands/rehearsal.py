"""What a run rehearses of its own place while it is adapted to another, and the recipe of these trainings."""

import tomllib
from dataclasses import replace
from pathlib import Path

from geograft.commands.train import RECIPE
from geograft.config import AdaptConfig, Recipe, parse_recipe
from geograft.dataset.splits import stratified_order
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import units_of
from geograft.errors import SettingError
from geograft.runs import run_file, run_location

EPOCHS = 10
"""Number of epochs of each training; the number of steps is that of the settings."""


def _base_recipe(run: Path) -> Recipe:
    """Return the recipe of a run; the default one if it does not have it."""
    path = run_file(run, RECIPE)
    try:
        return parse_recipe(tomllib.loads(path.read_bytes().decode()), str(path))
    except OSError:
        return Recipe()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not a TOML file: {error}. Copy the run again.") from error


def step_tiles(run: Path) -> int:
    """Return the number of tiles in an optimizer step, by the recipe of a run."""
    config = _base_recipe(run).train
    return config.batch_size * config.accumulate


def _draws(tiles: int, config: AdaptConfig, in_step: int) -> float:
    """Return the number of tiles to draw in an epoch: for the chosen steps, and each new tile at least once."""
    return max(config.steps * in_step / EPOCHS, tiles / (1 - config.rehearsal))


def choose_rehearsal(source: TileSet, tiles: int, config: AdaptConfig, in_step: int) -> tuple[int, ...]:
    """Return training tiles of the source, stratified by unit: with the new tiles, as many as are drawn in an epoch.

    As positions among its training tiles. `in_step` is the number of tiles in an optimizer step.
    """
    count = max(1, round(_draws(tiles, config, in_step)) - tiles)
    units = units_of(source, "train")
    order = stratified_order([units.cells[cell].unit for cell in units.cell_of], config.seed)
    return tuple(sorted(order[:count]))


def adaptation_recipe(run: Path, config: AdaptConfig, tiles: int, rehearsal: int) -> Recipe:
    """Return the recipe of each training: that of the run, with another length, and nothing that the folds forbid.

    Crops would show pixels of the tiles that a fold keeps out, and class-balanced sampling would change the proportion
    of the rehearsal.
    """
    base = _base_recipe(run)
    per_epoch = _draws(tiles, config, step_tiles(run))
    changes = {
        "epochs": EPOCHS,
        "repeat": max(1, round(per_epoch / (tiles + rehearsal))),
        "sampling": "tiles",
        "crops": False,
        "normalise": "auto",
        "patience": 0,
        "devices": 1,
        "nodes": 1,
        "tensorboard": False,
        "mlflow": "",
        "seed": config.seed,
        "device": config.device,
    }
    recipe = replace(base, variants=())
    return recipe.with_settings(
        model={"start": run_location(run), "start_fraction": config.start_fraction}, train=changes
    )
