"""The model card, card.json: everything needed to use the weights of a run elsewhere."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, field, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from geograft.config import Cleaning, ModelConfig, describe_fault
from geograft.errors import InputError, OutputError, RunChangedError
from geograft.files import complete_update, write_json
from geograft.indices import Index, check_indices
from geograft.legend import Legend
from geograft.memory import MAX_TILE_PX
from geograft.runs import run_file

CARD = "card.json"
WEIGHTS = "model.safetensors"
TILES_FILE = "tiles.json"
STATE = "state.ckpt"
FEATURES_FILE = "training_features.safetensors"
WINDOW_PX, OVERLAP_PX = 640, 80
"""Largest windows of a new run and their overlap, in pixels. Larger ones are no faster and need more memory; others
map no better (docs/speed.md)."""
ATTEMPTS = 3
"""Attempts to read a run that is being trained."""
COMPARED_FIELDS = ("classes", "number of bands", "dtype", "indices", "nodata", "alpha")
"""Properties that must be equal for all runs of an ensemble."""

Result = TypeVar("Result")
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
BandNames = Annotated[tuple[str, ...], Field(min_length=1)]
DtypeName = Annotated[str, Field(pattern=r"^(u?int(8|16|32|64)|float(16|32|64))$")]


def check_band_statistics(band_names: Sequence[str], means: Sequence[float], stds: Sequence[float]) -> None:
    """Raise ValueError unless each band has a mean and a standard deviation."""
    for name, values in (("mean", means), ("std", stds)):
        if len(values) != len(band_names):
            raise ValueError(f"{name} has {len(values)} values, but band_names has {len(band_names)}")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ModelCard:
    """What a network was trained on and what input it expects. Its weights are in model.safetensors in the same
    folder.
    """

    name: str
    """Name of the run, for tables and figures."""
    model: ModelConfig
    """Settings of the network."""
    weights_from: str
    """Origin of the encoder's weights: "random", or a source with its digest."""
    legend: Legend
    """The classes."""
    band_names: BandNames
    """Names of the bands in order, then of the indices; their number is the number of input channels."""
    dtype: DtypeName
    """NumPy dtype of the training images."""
    mean: tuple[Finite, ...]
    """Mean per band, in units of the images: network input = (pixel - mean) / std."""
    std: tuple[PositiveFinite, ...]
    """Standard deviation per band, in units of the images; above 0, and 1 for a constant band."""
    tile_px: Annotated[int, Field(ge=16, le=MAX_TILE_PX)]
    """Tile size in training, in pixels: 16 to 4096."""
    resolution_m: PositiveFinite | None
    """Pixel size of the training images in metres; None without CRS."""
    threshold: Probability
    """Minimum probability of the positive class (binary), or of every overlapping class."""
    epoch: Annotated[int, Field(ge=1)]
    """Epoch of the weights, counted from 1: the one with the lowest validation loss."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """Divisor of the logits (temperature scaling), from 0.001 to 1000; 1 before calibration."""
    calibrated: str = ""
    """Data on which threshold and temperature were chosen; empty before calibration."""
    scores: dict[str, float] = field(default_factory=dict)
    """Validation scores of that epoch, without undefined ones."""
    data_fingerprint: str = ""
    """Fingerprint of the tile set: images, labels, tiles and split."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Geograft and its main dependencies in training."""
    indices: tuple[Index, ...] = ()
    """Spectral indices, appended to the bands; computed when pixels are read."""
    nodata: Literal["auto", "any", "all"] = "auto"
    """Whether pixels with nodata in any band or in all bands were invalid, see `PrepareConfig.nodata`."""
    alpha: bool = True
    """Whether a band tagged alpha was a mask, not a band."""
    thresholds: tuple[Probability, ...] = ()
    """One threshold per overlapping class, replacing `threshold`; empty before calibration."""
    finished: bool = True
    """Whether training has ended. If not, the weights are those of the best epoch so far."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Number of epochs trained so far, which are the rows of history.csv; 0 if unknown."""

    stride: Annotated[int, Field(ge=0, le=1024)] = 0
    """Stride of the network in pixels: sides of images are padded to its multiples; 0 if unknown."""
    window_px: Annotated[int, Field(ge=0, le=MAX_TILE_PX)] = 0
    """Size in pixels of the windows in which rasters are predicted; 0: that of the training tiles."""
    overlap_px: Annotated[int, Field(ge=0, le=MAX_TILE_PX)] | None = None
    """Overlap of adjacent windows in pixels; None: half of their size."""
    cleaning: Cleaning | None = None
    """How `geograft polygons` cleans the objects of a class; None unless `geograft calibrate` chose it."""
    weights_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of model.safetensors; empty in runs of earlier versions."""

    def __post_init__(self) -> None:
        check_indices(self.indices, self.bands)
        check_band_statistics(self.band_names, self.mean, self.std)
        if self.epochs and self.epoch > self.epochs:
            raise ValueError(f"epoch is {self.epoch}, but epochs is {self.epochs}")
        count = len(self.legend.names) if self.legend.overlapping else 1
        if self.cleaning and self.cleaning.objects not in self.legend.names:
            raise ValueError(f"cleaning.objects is {self.cleaning.objects!r}, which is not a class")
        if len(self.thresholds) not in (0, count):
            raise ValueError(f"thresholds has {len(self.thresholds)} values; the legend needs {count} or none")

    @property
    def window(self) -> tuple[int, int]:
        """The size of the windows in which rasters are predicted, and the overlap of adjacent ones, in pixels."""
        size = self.window_px or self.tile_px
        return size, min(size // 2 if self.overlap_px is None else self.overlap_px, size * 3 // 4)

    @property
    def bands(self) -> int:
        """The number of bands of an image, without indices."""
        return len(self.band_names) - len(self.indices)

    @property
    def output_thresholds(self) -> tuple[float, ...]:
        """The minimum probability of the positive class, or of each overlapping class."""
        count = len(self.legend.names) if self.legend.overlapping else 1
        return self.thresholds or (self.threshold,) * count

    @property
    def used_thresholds(self) -> tuple[float, ...]:
        """The output thresholds; empty where the most probable of several classes is mapped."""
        return self.output_thresholds if self.legend.overlapping or self.legend.binary else ()

    def describe_calibration(self) -> str:
        """Return which data the run was calibrated on, and the temperature."""
        if not self.calibrated:
            return "not calibrated"
        return f"calibrated on {self.calibrated}: temperature {self.temperature:.3f}"

    def with_thresholds(self, thresholds: Sequence[float]) -> "ModelCard":
        """Return the card with other output thresholds; itself where the most probable of several classes is mapped."""
        if self.legend.overlapping:
            return replace(self, thresholds=tuple(thresholds))
        return replace(self, threshold=thresholds[0]) if self.legend.binary else self

    def band_numbers(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the number, counted from 1, of each band of the run among bands with these `names`, as for --bands.

        Case and outer spaces do not matter. Empty unless each band of the run has a name that occurs exactly once.
        """
        wanted, found = ([name.strip().casefold() for name in each] for each in (self.band_names[: self.bands], names))
        known = all(found.count(name) == wanted.count(name) == 1 for name in wanted)
        return tuple(found.index(name) + 1 for name in wanted) if known else ()

    @property
    def content(self) -> dict[str, Any]:
        """The fields of card.json; `thresholds` and `cleaning` are left out when they are empty."""
        fields = asdict(self) | {"legend": self.legend.content}
        empty = [name for name in ("thresholds", "cleaning") if not fields[name]]
        return {name: value for name, value in fields.items() if name not in empty}

    def write(self, folder: Path) -> None:
        """Write the card into a run folder."""
        write_json(folder / CARD, self.content)


def read_card(run: Path) -> ModelCard:
    """Read the model card of a run, finished or not; `unfinished_notes` tells of runs that are not.

    If training was killed while it replaced the files of an epoch, this completes it, so that the files belong
    together.

    Raises:
        InputError: if `run` is not a run, has no finished epoch, or its card cannot be read.
    """
    path = run_file(run, CARD)
    try:
        complete_update(run)
        return TypeAdapter(ModelCard).validate_json(path.read_bytes())
    except OutputError as error:
        raise InputError(
            f"{run} has an epoch whose files must still be moved into place. Make the folder writable: {error}"
        ) from error
    except OSError as error:
        raise InputError(f"{run} is not a run: it has no {CARD}. Train one with `geograft train`.") from error
    except ValidationError as error:
        raise InputError(f"{path} cannot be read: {describe_fault(error)}. Train the run again.") from error


def check_weights(run: Path, card: ModelCard, digest: str) -> None:
    """Check that weights of a run, with the SHA-256 `digest`, are those of its `card`, which was read before them.

    Raises:
        RunChangedError: if the run was trained further in the meantime.
        InputError: if the weights and the card do not belong together.
    """
    if card.weights_digest in ("", digest):
        return
    if read_card(run).weights_digest != card.weights_digest:
        raise RunChangedError(f"{run} was trained further while it was read. Run the command again.")
    raise InputError(
        f"{run_file(run, WEIGHTS)} does not belong to {CARD}: its SHA-256 begins with {digest[:12]}, not with "
        f"{card.weights_digest[:12]}. Copy the run again, or train it again."
    )


def read_again(read: Callable[[], Result]) -> Result:
    """Return `read()`, which is called again if a run was trained further while it was read, at most three times.

    Raises:
        RunChangedError: if that happens each time.
    """
    for _ in range(ATTEMPTS - 1):
        with suppress(RunChangedError):
            return read()
    return read()


def unfinished_notes(cards: Sequence[ModelCard]) -> tuple[str, ...]:
    """Return one line for each run that is still being trained or was interrupted: its epochs, and how to go on."""
    return tuple(
        f"the run {card.name} is not finished: weights of epoch {card.epoch}, the best of {card.epochs} so far. "
        "`geograft train --resume` continues it."
        for card in cards
        if not card.finished
    )


def read_cards(runs: Sequence[Path]) -> tuple[ModelCard, ...]:
    """Read the model cards of the runs of an ensemble.

    Raises:
        InputError: if one of `runs` is not a run, or differs from the first in classes, bands, dtype or indices.
    """
    cards = tuple(read_card(run) for run in runs)
    first = _compared_values(cards[0])
    for run, card in zip(runs, cards, strict=True):
        for name, expected, value in zip(COMPARED_FIELDS, first, _compared_values(card), strict=True):
            if value != expected:
                raise InputError(
                    f"{run} cannot be averaged with {runs[0]}: {name} {value}, not {expected}. "
                    "Use runs trained on the same classes, bands and dtype."
                )
    return cards


def _compared_values(card: ModelCard) -> tuple[str, ...]:
    names = [f"{value} {name}" for value, name in zip(card.legend.values, card.legend.names, strict=True)]
    indices = ", ".join(index.formula for index in card.indices)
    kind = " (overlapping)" if card.legend.overlapping else ""
    rule = card.nodata, str(card.alpha)
    return ", ".join(names) + kind, str(len(card.band_names)), card.dtype, indices or "none", *rule


def ensemble_card(cards: Sequence[ModelCard]) -> ModelCard:
    """Return the card of an ensemble, from `read_cards`: the first card, with what determines a map from all of them.

    Thresholds and the training pixel size are means, exact to the last bit and so independent of the order; tiles,
    windows and overlaps are the largest. The pixel size is None if one of the runs has none, and the cleaning of
    objects unless all runs have the same.
    """
    if len(cards) == 1:
        return cards[0]
    thresholds = [mean(each) for each in zip(*(card.output_thresholds for card in cards), strict=True)]
    sizes = [card.resolution_m for card in cards if card.resolution_m is not None]
    resolution_m = mean(sizes) if len(sizes) == len(cards) else None
    windows = [card.window for card in cards]
    return replace(
        cards[0].with_thresholds(thresholds),
        tile_px=max(card.tile_px for card in cards),
        window_px=max(size for size, _ in windows),
        overlap_px=max(overlap for _, overlap in windows),
        resolution_m=resolution_m,
        cleaning=cards[0].cleaning if all(card.cleaning == cards[0].cleaning for card in cards) else None,
    )
