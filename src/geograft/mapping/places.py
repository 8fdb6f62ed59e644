"""Other places of a run: RUN/places/NAME.json, thresholds and temperature there, which leave the run itself as it is.

And RUN/adaptation.json of an adapted run: the tiles of another place that it was adapted to.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from geograft.card import ModelCard, read_card, read_cards
from geograft.config import AdaptConfig, InferenceConfig, describe_fault
from geograft.dataset.tileset import Tile, TileSet
from geograft.errors import InputError, SettingError
from geograft.files import write_json
from geograft.geo.grid import Window
from geograft.runs import run_file, run_files
from geograft.text import join_names

PLACES = "places"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$"
ADAPTATION = "adaptation.json"
Limit = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UsedTile:
    """A labelled tile that a place was calibrated on, and that its scores must not use."""

    image: str
    """SHA-256 of the scene's image."""
    row: Annotated[int, Field(ge=0)]
    col: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(gt=0)]
    """Upper left pixel and side of the square window."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Place:
    """The content of RUN/places/NAME.json."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    weights: str
    """SHA-256 of the run's weights."""
    tiles: str
    """Folder of the tile set."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)]
    thresholds: tuple[Limit, ...]
    """One for the positive class, or for each overlapping class; empty where the most probable class is mapped."""
    kept: tuple[bool, ...]
    """Whether the threshold is the run's own, because the tiles do not decide."""
    used: Annotated[tuple[UsedTile, ...], Field(min_length=1)]

    def card(self, card: ModelCard) -> ModelCard:
        """Return a run's card with the thresholds and the temperature of this place."""
        words = f"{len(self.used):,} tiles of the place {self.name}"
        return replace(card.with_thresholds(self.thresholds), temperature=self.temperature, calibrated=words)

    def write(self, run: Path) -> Path:
        """Write the file of the place into a run folder, and return its path."""
        path = run / place_file(self.name)
        path.parent.mkdir(exist_ok=True)
        write_json(path, asdict(self))
        return path


def place_file(name: str) -> str:
    """Return the name of a place's file in a run folder."""
    return f"{PLACES}/{name}.json"


def place_name(title: str) -> str:
    """Return a title as the name of a place: other characters become hyphens.

    >>> place_name("_Niederösterreich/2024")
    'Nieder-sterreich-2024'
    """
    return re.sub(r"[^A-Za-z0-9 ._-]", "-", title).lstrip(" ._-")[:80] or "place"


def check_name(name: str) -> None:
    """Raise SettingError for a name that cannot be that of a file everywhere."""
    try:
        TypeAdapter(Annotated[str, Field(pattern=NAME_PATTERN)]).validate_python(name)
    except ValidationError:
        raise SettingError(
            f"{name!r} cannot be the name of a place. Use up to 80 letters from a to z, digits, spaces and . _ or -"
        ) from None


def refuse_place(config: InferenceConfig) -> None:
    """Raise SettingError if the settings of a calibration name a place to use."""
    if config.place:
        raise SettingError("--place names a place that is used. To make one, give --place-tiles and --name.")


def read_place(run: Path, name: str, card: ModelCard) -> Place:
    """Read a place of a run with this card.

    Raises:
        SettingError: if it cannot be the name of a place.
        InputError: if there is no such place, its file is damaged, or it belongs to other weights or classes.
    """
    check_name(name)
    path = run_file(run, place_file(name))
    try:
        place = TypeAdapter(Place).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{run} has no place {name!r}{_known_places(run)}. Make one: geograft calibrate {run} --place-tiles TILES."
        ) from error
    except ValidationError as error:
        raise InputError(f"{path}: {describe_fault(error)}. Calibrate the place again.") from error
    if place.weights != card.weights_digest or len(place.thresholds) != len(card.used_thresholds):
        raise InputError(f"{path} belongs to other weights: {run} was trained again. Calibrate the place again.")
    return place


def read_cards_at(runs: Sequence[Path], place: str) -> tuple[ModelCard, ...]:
    """Return the cards of runs, with the thresholds and temperatures of a place if its name is not empty.

    Raises:
        InputError: if one of `runs` is not a run, differs from the first, or has no such place.
    """
    cards = read_cards(runs)
    if not place:
        return cards
    return tuple(read_place(run, place, card).card(card) for run, card in zip(runs, cards, strict=True))


def refuse_used_tiles(run: Path, place: str, tile_set: TileSet, tiles: Sequence[Tile]) -> None:
    """Raise SettingError if a place of a run was calibrated on one of `tiles`, or on a tile that overlaps one."""
    seen = count_used(read_place(run, place, read_card(run)).used, tile_set, tiles)
    if seen:
        raise SettingError(
            f"{seen:,} of the {len(tiles):,} tiles share pixels with those that the place {place} was calibrated on. "
            "Score other tiles of that place."
        )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Adaptation:
    """The content of adaptation.json in an adapted run."""

    run: str
    """The run that was adapted."""
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its weights."""
    tiles: str
    """Folder of the new tiles."""
    source: tuple[str, ...]
    """Folders of the tile sets of the rehearsal; empty without one."""
    rehearsal_tiles: Annotated[int, Field(ge=0)]
    settings: AdaptConfig
    used: Annotated[tuple[UsedTile, ...], Field(min_length=1)]
    """The new tiles, all of which the run was trained on."""
    scores: dict[str, Any]
    """Scores before and after, on the new tiles out of fold, and on the held-out tiles of the source."""


def read_adaptation(run: Path) -> Adaptation | None:
    """Return what a run remembers of its adaptation; None if it was not adapted.

    Raises:
        InputError: if the file is damaged.
    """
    path = run_file(run, ADAPTATION)
    try:
        return TypeAdapter(Adaptation).validate_json(path.read_bytes())
    except OSError:
        return None
    except ValidationError as error:
        raise InputError(
            f"{path}: {describe_fault(error)}. Copy the run again, or adapt it again with geograft adapt."
        ) from error


def refuse_adapted_tiles(run: Path, tile_set: TileSet, tiles: Sequence[Tile]) -> None:
    """Raise SettingError if a run was adapted on one of `tiles`, or on a tile that overlaps one."""
    adaptation = read_adaptation(run)
    seen = count_used(adaptation.used, tile_set, tiles) if adaptation else 0
    if seen:
        raise SettingError(
            f"{run} was adapted to {seen:,} of the {len(tiles):,} tiles, or to pixels of them. Scores there, of models "
            f"that were not trained on them, are in its {ADAPTATION}. Score other tiles of that place."
        )


def used_tiles(tile_set: TileSet, tiles: Sequence[Tile]) -> tuple[UsedTile, ...]:
    """Return the record of tiles, by which they are recognised in another tile set."""
    return tuple(
        UsedTile(tile_set.scenes[tile.scene].digest, tile.window.row, tile.window.col, tile.window.height)
        for tile in tiles
    )


def count_used(used: Sequence[UsedTile], tile_set: TileSet, tiles: Sequence[Tile]) -> int:
    """Return how many of `tiles` are among the used ones, or share pixels with one."""
    windows: dict[str, list[Window]] = {}
    for each in used:
        windows.setdefault(each.image, []).append(Window(each.row, each.col, each.size, each.size))
    return sum(
        any(tile.part.intersection(window) for window in windows.get(tile_set.scenes[tile.scene].digest, []))
        for tile in tiles
    )


def _known_places(run: Path) -> str:
    names = [Path(file.name).stem for file in run_files(run, place_file("*"))]
    return f", but {join_names(names)}" if names else ""
