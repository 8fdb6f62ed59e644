"""`geograft curve`: how good a network is with how many labels, pretrained and from scratch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geograft.config import Recipe
from geograft.errors import InputError, SettingError
from geograft.geo.coverage import overlap
from geograft.geo.tilesets.tileset import Split, TileSet
from geograft.progress import announce
from geograft.verbs.compare import check_variants, slug
from geograft.verbs.curve.plan import LEAST_STEPS, SHARES, repeats, sizes, variants_of
from geograft.verbs.curve.points import Job, computed, finished
from geograft.verbs.curve.result import Curve
from geograft.verbs.train import DEFAULT_RECIPE

__all__ = ["Curve", "curve"]

MUCH_OVERLAP = 1.05
"""Tiles in which a pixel lies, in the mean, from where a share of tiles is far from that share of the labels."""


def curve(
    tiles: Path,
    out: Path,
    recipe: Recipe = DEFAULT_RECIPE,
    shares: Sequence[float] = SHARES,
    least_steps: int = LEAST_STEPS,
) -> Curve:
    """Train on ever more of the training tiles, and return how good each network is on the same ground; writes `out`.

    `shares` are percent. Every seed of the recipe draws subsets of its own, the smaller inside the larger, and every
    variant trains on the same ones; without variants, the recipe's network pretrained and from scratch. All are scored
    on the whole test part, or on val where there is none. Points with few tiles take as many steps as that with all,
    or `least_steps` where that is fewer. Takes variants x shares x seeds trainings. Given again after a stop, it goes
    on: finished points stay, an unfinished one is resumed.

    Raises:
        SettingError: for shares that give no tile, variants of one name, or points in `out` of other settings.
        InputError, WeightsError, OutputError: as `train` does.
    """
    whole = TileSet.open(tiles)
    named = replace(recipe, variants=variants_of(recipe))
    check_variants(named)
    if not recipe.seeds or least_steps < 0:
        raise SettingError(f"{len(recipe.seeds)} seeds, --least-steps {least_steps}: give a seed, and 0 steps or more.")
    jobs = _jobs(whole, named, shares, least_steps)
    done = {job.run: finished(job, whole, out) for job in jobs}
    points = []
    for number, job in enumerate(jobs, start=1):
        found = done[job.run]
        if found is None:
            where = f"{job.variant}, {job.size.tiles:,} tiles, seed {job.seed}"
            announce(f"{number} of {len(jobs)}: {where}")
            found = computed(job, whole, out)
        points.append(found)
    # Small numbers of tiles are computed first, for a curve that can be looked at early.
    order = [variant.name for variant in named.variants]
    points.sort(key=lambda point: (order.index(point.job.variant), point.job.size.tiles))
    split = _scored(whole)
    result = Curve(
        out, recipe.title, tiles.resolve(), split, whole.meta.legend.names, tuple(points), _notes(whole, named)
    )
    result.write()
    return result


def _jobs(whole: TileSet, recipe: Recipe, shares: Sequence[float], least_steps: int) -> list[Job]:
    total = len(whole.split("train"))
    if not total or not whole.split("val"):
        raise InputError(f"{whole.folder} has no train or no val tiles. Prepare it again with other shares.")
    jobs = []
    for size in sizes(shares, total):
        for seed in dict.fromkeys(recipe.seeds):
            for variant in recipe.variants:
                own = recipe.variant(variant, seed)
                often = repeats(size.tiles, total, own.train, least_steps)
                run = f"{slug(variant.name)}/share{size.share:g}/seed{seed}"
                repeated = replace(own.changed(train={"repeat": often}), variants=())
                jobs.append(Job(variant.name, size, repeated, _scored(whole), run))
    return jobs


def _scored(whole: TileSet) -> Split:
    return "test" if whole.split("test") else "val"


def _notes(whole: TileSet, recipe: Recipe) -> tuple[str, ...]:
    notes = []
    if _scored(whole) == "val":
        notes.append("there is no test part, and val also chose each run's epoch: all figures flatter a little.")
    if len(set(recipe.seeds)) == 1:
        notes.append("one seed: which few tiles are drawn is chance. Give --seeds 0 1 2 or more.")
    held = overlap([(tile.scene, tile.window) for tile in whole.split("train")], ())
    again = held.pixels / held.ground
    if again > MUCH_OVERLAP:
        notes.append(
            f"training tiles overlap, each pixel lies in {again:.1f} of them in the mean: few tiles hold more of the "
            "ground than their share says. Labels are counted by the ground."
        )
    return tuple(notes)
