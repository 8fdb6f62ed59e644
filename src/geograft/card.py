"""The model card: everything needed to use a run's weights elsewhere, beside the weights as card.json."""

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from geograft.config import ModelConfig
from geograft.errors import InputError
from geograft.files import write_json
from geograft.indices import Index, check_indices
from geograft.legend import Legend

CARD = "card.json"
WEIGHTS = "model.safetensors"
SOURCE = "tiles.json"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelCard:
    """What a network was trained on and what it expects. Weights lie beside it, in model.safetensors."""

    name: str
    """The run's name, for tables and figures."""
    model: ModelConfig
    """The network."""
    weights_from: str
    """Where the encoder's weights came from, in words: "random", or a source with its digest."""
    legend: Legend
    """The classes."""
    band_names: tuple[str, ...]
    """The bands in order, then the indices; their number is the network's number of inputs."""
    dtype: str
    """Number format of the images trained on, as numpy names it."""
    mean: tuple[float, ...]
    """Per band, in the images' own units: input to the network = (pixel - mean) / std."""
    std: tuple[float, ...]
    """Per band, in the images' own units."""
    tile_px: int
    """Edge of a training tile in pixels."""
    resolution_m: float | None
    """Ground size of a pixel in metres; None when the images had no CRS."""
    threshold: float
    """A pixel is class 1 of two, or of an overlapping class, where its probability is at least this."""
    epoch: int
    """Epoch of the weights, counted from 1: the one with the least validation loss."""
    temperature: float = 1.0
    """What logits are divided by before they become probabilities; 1 until calibrated."""
    calibrated: str = ""
    """What threshold and temperature were chosen on, in words; empty until `geograft calibrate` chose them."""
    scores: dict[str, float] = field(default_factory=dict)
    """Validation scores of that epoch: those that exist."""
    data_fingerprint: str = ""
    """Fingerprint of the tile set: images, labels, tiles and split."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Geograft and the libraries that trained."""
    indices: tuple[Index, ...] = ()
    """Spectral indices, the last of the bands; computed from the others when pixels are read."""
    thresholds: tuple[float, ...] = ()
    """Of each overlapping class, in place of the one threshold; empty until `geograft calibrate` chose them."""

    def __post_init__(self) -> None:
        check_indices(self.indices, self.bands)

    @property
    def bands(self) -> int:
        """Number of bands that an image needs, without indices."""
        return len(self.band_names) - len(self.indices)

    @property
    def cuts(self) -> tuple[float, ...]:
        """From which probability on a pixel is of class 1 of two, or of each overlapping class."""
        count = len(self.legend.names) if self.legend.overlapping else 1
        return self.thresholds or (self.threshold,) * count

    @property
    def content(self) -> dict[str, Any]:
        """What a card's JSON holds: every field but those of overlapping classes where the classes are not."""
        fields = asdict(self) | {"legend": self.legend.content}
        return fields if self.thresholds else {name: value for name, value in fields.items() if name != "thresholds"}

    def write(self, folder: Path) -> None:
        """Write the card into a run folder."""
        write_json(folder / CARD, self.content)


def read_card(run: Path, name: str = CARD) -> ModelCard:
    """Read the card of a run folder, or one that lies beside it under another name.

    Raises:
        InputError: when `run` is no run folder, or its card cannot be read.
    """
    path = run / name
    try:
        return TypeAdapter(ModelCard).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{run} is not a finished run: it holds no {CARD}. Train one with `geograft train`."
        ) from error
    except ValidationError as error:
        fault: Any = error.errors(include_url=False)[0]
        raise InputError(f"{path} cannot be read: {fault['loc']}: {fault['msg']}. Train the run again.") from error


def tiles_of(run: Path) -> Path:
    """Return the tile set that a run was trained on.

    Raises:
        InputError: when `run` does not say.
    """
    try:
        return Path(json.loads((run / SOURCE).read_text(encoding="utf-8"))["tiles"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run} does not say what it was trained on ({SOURCE}). Give --tiles.") from error
