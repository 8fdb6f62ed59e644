"""The labels of every scene on disk, on the grid of an image that can be read by windows."""

import hashlib
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

from jaxtyping import Int8
from numpy import ndarray

from geograft.errors import InputError
from geograft.files import file_digest
from geograft.geo.grid import Window, cells
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterout import copy_tiled, create_labels
from geograft.geo.splitting.splits import Place
from geograft.geo.tilesets.scenes import Gathered, LabelledScene
from geograft.geo.tilesets.structure import Looks
from geograft.geo.tilesets.tally import TALLY_CELL, Tally, counted, tally
from geograft.geo.tilesets.tileset import IMAGES, MASKS
from geograft.legend import IGNORE, Legend
from geograft.progress import Meter, meter


@dataclass(frozen=True)
class BurntScene:
    """A scene whose labels are on disk, on the grid of an image that can be read by windows."""

    scene: LabelledScene
    image: Path
    image_digest: str
    mask: Path
    labels_digest: str
    """SHA-256 of the class indices, however the mask is compressed."""
    held: Tally
    """What all labels of the scene hold."""
    legend: Legend
    shares: bool
    """Whether the mask holds shares."""
    structures: Int8[ndarray, "2 2 64 64"] | None = None
    """What the scene looks like, where that is needed to know it again; see `geograft.geo.tilesets.structure`."""

    @property
    def place(self) -> Place:
        """What the split must know of the scene."""
        grid = self.scene.info.grid
        return Place(self.scene.name, grid.height, grid.width, self.scene.group, lambda w: self.tally(w).balance)

    def tally(self, window: Window) -> Tally:
        """Return what the labelled, valid pixels of `window` hold."""
        return tally(self.mask, window, self.legend, self.shares)


def burn_all(gathered: Gathered, folder: Path) -> list[BurntScene]:
    """Return the scenes, with their masks and what images had to be copied written into a tile set's folder.

    Reads every image once.

    Raises:
        InputError: when an image or a label cannot be read.
        OutputError: when a mask or a copy cannot be written.
    """
    total = sum(scene.info.grid.height * scene.info.grid.width for scene in gathered.scenes)
    # Scenes without a place on the ground are known again by what they look like.
    looked = len(gathered.scenes) > 1 and any(scene.info.grid.crs is None for scene in gathered.scenes)
    with meter("Burning labels", total / 1e6, "Mpx") as bar:
        return [_burn(scene, gathered, folder, bar, looked) for scene in gathered.scenes]


def _burn(scene: LabelledScene, gathered: Gathered, folder: Path, bar: Meter, looked: bool) -> BurntScene:
    image, mask = _readable_image(scene, folder), folder / MASKS / f"{scene.name}.tif"
    label, digest, grid = scene.label_reader(), hashlib.sha256(), scene.info.grid
    legend, shares = gathered.legend, gathered.shares
    layers = len(legend.names) - (not legend.overlapping)
    looks = Looks(scene.info.bands, layers, grid.height, grid.width) if looked else None
    held = []
    with Image.open(image) as opened, create_labels(mask, grid, legend, shares) as writer:
        for cell in cells(grid.window, *TALLY_CELL):
            labels = label(cell)
            pixels, valid = opened.read(cell)
            labels[..., ~valid] = IGNORE
            if looks:
                looks.add(pixels, valid, labels, cell)
            bands = labels if shares else labels[None]
            writer.write(bands, cell)
            digest.update(labels.tobytes())
            held.append(counted(bands, legend, shares))
            bar.advance(cell.height * cell.width / 1e6)
    seen = looks.structures() if looks else None
    return BurntScene(scene, image, _digest(image), mask, digest.hexdigest(), reduce(add, held), legend, shares, seen)


def _readable_image(scene: LabelledScene, folder: Path) -> Path:
    if scene.info.windowed:
        return scene.info.path.resolve()
    copy_tiled(scene.info.path, folder / IMAGES / f"{scene.name}.tif")
    return folder / IMAGES / f"{scene.name}.tif"


def _digest(image: Path) -> str:
    try:
        return file_digest(image)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error.strerror}. Check the disk it is on.") from error
