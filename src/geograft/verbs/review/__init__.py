"""`geograft review`: where a run is wrong, and where the labels probably are, as layers to look at in a GIS."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geograft.card import tiles_of
from geograft.config import ReviewConfig
from geograft.errors import InputError
from geograft.files import building, refuse_existing
from geograft.geo.tilesets.tileset import Split, TileSet, check_fit
from geograft.learn.using.inference import Predictor
from geograft.verbs.review.canvases import Look, kept_canvases
from geograft.verbs.review.finding import Found, found_in
from geograft.verbs.review.layers import write_layers

DEFAULT = ReviewConfig()


@dataclass(frozen=True)
class Review:
    """What `review` wrote."""

    folder: Path
    scenes: int
    tiles: int
    """Tiles that were looked at."""
    found: Found
    notes: tuple[str, ...]
    unit: str = "labelled pixels"
    """What is counted as wrong or right, in words."""

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        found = self.found
        return [
            f"{self.tiles:,} held-out tiles of {self.scenes:,} {'scene' if self.scenes == 1 else 'scenes'}: "
            f"{found.wrong:.1%} of the {self.unit} are mapped as another class",
            f"{self.folder / 'errors'}: what is wrong at every pixel, a raster a scene",
            f"{self.folder / 'worst.gpkg'}: {len(found.worst):,} tiles, the worst first",
            f"{self.folder / 'suspects.gpkg'}: {len(found.suspects):,} places where the label is probably wrong",
            *(f"Note: {note}" for note in self.notes),
        ]


def review(runs: Path | Sequence[Path], out: Path, tiles: Path | None = None, config: ReviewConfig = DEFAULT) -> Review:
    """Write error rasters, the worst tiles and suspected labels of the ground that runs did not train on to `out`.

    Of one run, its validation and test tiles are looked at; with `tiles`, all tiles of that other tile set. Of several,
    which are the runs of a comparison by folds, each one's test tiles: together all labels, each seen by a model that
    did not train on it. Takes about as long as `evaluate`. Memory: one canvas of 2,048 x 2,048 pixels, some 300 MB.

    Raises:
        InputError: when runs and tiles cannot be used or do not fit each other, or there is nothing to look at.
        OutputError: when `out` exists or cannot be written.
    """
    refuse_existing(out)
    several = [runs] if isinstance(runs, Path) else list(runs)
    looks = [look for run in several for look in _looks(run, tiles, several)]
    if not looks:
        raise InputError(
            f"{several[0]} holds no tile back from training. Prepare with --test above 0, or give --tiles."
        )
    with building(out) as part:
        canvases = [kept_canvases(look, part / "canvases" / str(index)) for index, look in enumerate(looks)]
        found = found_in(looks, canvases, config)
        write_layers(part, looks, canvases, found)
    scenes = {(look.tile_set.folder, tile.scene) for look in looks for tile in look.tiles}
    unit = "labels, one a pixel and class," if looks[0].counting.overlapping else "labelled pixels"
    return Review(out, len(scenes), sum(len(look.tiles) for look in looks), found, _notes(several, tiles, looks), unit)


def _looks(run: Path, tiles: Path | None, several: Sequence[Path]) -> list[Look]:
    predictor = Predictor.load(run)
    tile_set = TileSet.open(tiles or tiles_of(run))
    check_fit(predictor.card, tile_set)
    splits: tuple[Split, ...] = ("test",) if len(several) > 1 else ("val", "test")
    chosen: tuple[Split, ...] = ("train", "val", "test") if tiles else splits
    return [Look(predictor, tile_set, split) for split in chosen if tile_set.split(split)]


def _notes(several: Sequence[Path], tiles: Path | None, looks: Sequence[Look]) -> tuple[str, ...]:
    if tiles:
        return (f"{tiles} must be ground that {several[0]} did not train on: a model repeats the mistakes it learned.",)
    if len(several) > 1:
        return ()
    return ("only held-out tiles were looked at. For all labels, compare by folds and give the runs of all folds.",)
