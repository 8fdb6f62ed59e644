"""Runs that begin with the weights of an earlier run: on new ground, other bands or other classes."""

from dataclasses import dataclass, replace
from pathlib import Path

from geograft.card import WEIGHTS, ModelCard, read_card
from geograft.config import ModelConfig
from geograft.errors import InputError
from geograft.files import file_digest
from geograft.geo.tilesets.tileset import TileSetMeta
from geograft.learn.feeding.feed import Scaling
from geograft.learn.networks.network import Network
from geograft.learn.networks.starting import Ends, learns_bands, start_from
from geograft.learn.networks.weights import read_tensors
from geograft.legend import Legend


@dataclass(frozen=True)
class Start:
    """An earlier run, from whose weights training goes on."""

    run: Path
    card: ModelCard

    @classmethod
    def of(cls, model: ModelConfig) -> "Start | None":
        """Return the run that `model` names as its start, or None where it names none.

        Raises:
            InputError: when it is no finished run.
        """
        run = Path(model.start).resolve()
        return cls(run, read_card(run)) if model.start else None

    def model(self, chosen: ModelConfig, meta: TileSetMeta) -> ModelConfig:
        """Return `chosen` with the run's network in place of its own, for tiles with other bands perhaps.

        What is frozen stays the choice, unless there are bands to be learned: their filters lie in the first stage.
        """
        known = self.card.model
        frozen = 0 if learns_bands(self.card.band_names, meta.band_names) else chosen.frozen_stages
        network = replace(chosen, architecture=known.architecture, encoder=known.encoder, weights=known.weights)
        return replace(network, start=str(self.run), frozen_stages=frozen)

    def fill(self, network: Network, meta: TileSetMeta) -> str:
        """Fill `network` from the run's weights and return, in a line, what was taken and what is new.

        Raises:
            InputError: when the run's weights are not of the network that its card describes.
            WeightsError: when they are missing or damaged.
        """
        path = self.run / WEIGHTS
        before, now = (_ends(each.band_names, each.legend) for each in (self.card, meta))
        try:
            new = start_from(network, read_tensors(path), before, now)
        except ValueError as error:
            raise InputError(
                f"{path} is not of the network that its card describes: {error}. Give a run that geograft train wrote."
            ) from error
        if learns_bands(before.bands, now.bands):
            new = (*new, "no stage frozen")
        words = "; ".join(new) or "nothing new"
        first = f"first {self.card.weights_from}"
        network.weights_from = f"run {self.card.name}, sha256 {file_digest(path)[:12]} ({words}), {first}"
        return f"starts from {self.run}, epoch {self.card.epoch}: {words}"

    def scaling(self, meta: TileSetMeta, other: Scaling) -> Scaling:
        """Return the run's scaling of the bands that it knows, and `other` of new bands or another number format."""
        if meta.dtype != self.card.dtype:
            return other
        known = dict(zip(self.card.band_names, zip(self.card.mean, self.card.std, strict=True), strict=True))
        own = zip(meta.band_names, other.mean, other.std, strict=True)
        mean, std = zip(*(known.get(name, (mean, std)) for name, mean, std in own), strict=True)
        return Scaling(mean, std)


def _ends(bands: tuple[str, ...], legend: Legend) -> Ends:
    return Ends(bands, legend.names, legend.overlapping)
