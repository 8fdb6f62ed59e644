"""`geograft export`: a run as a file for other programs, or for other people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from geograft.bundle import SUFFIX
from geograft.card import ModelCard, unfinished_notes
from geograft.commands.bundle import bundle_run
from geograft.commands.stac import write_stac_item
from geograft.config import ExportConfig
from geograft.dataset.joined import check_fit, open_run_tiles
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import InputError, SettingError, first_line
from geograft.exports.program import (
    IMAGE,
    MIN_CELLS,
    PROBABILITIES,
    VALID,
    GraphRunner,
    any_size_model,
    export_program,
    one_size_model,
    open_program,
    write_program,
)
from geograft.exports.quantize import LabelledImage, QuantizationTrial, quantize, try_quantized
from geograft.files import StrPath, atomic_write, optional_path, refuse_existing
from geograft.indices import append_indices
from geograft.inference.graphs import suppress_warnings
from geograft.inference.predictor import EnsemblePredictor, PixelBatch, typical_tile
from geograft.inference.runners import EXPORT_BACKENDS
from geograft.labels import image_mask
from geograft.locks import locks_output
from geograft.mapping.held_out import evenly_spaced
from geograft.mapping.places import read_cards_at
from geograft.networks.network import padded_size
from geograft.runs import to_runs
from geograft.text import join_names

TOLERANCE = 1e-4
"""Largest allowed difference of the probabilities of a file from torch's."""
CALIBRATION_TILES, COMPARED_TILES = 32, 200
"""Maximum numbers of training tiles to calibrate 8-bit integers on, and of validation tiles to score them on."""
MAX_COMPARED_PX = 256
"""Maximum side of the images that files for any size are compared on."""
DEFAULT = ExportConfig()


@dataclass(frozen=True)
class Export:
    """A file that `export` wrote."""

    path: Path
    summary: tuple[str, ...]
    """What the file takes and returns, one line each."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, one line each."""

    def lines(self) -> list[str]:
        """Return the output of the command line."""
        size = f"{self.path}: {self.path.stat().st_size / 1e6:.1f} MB"
        return [size, *(f"  {line}" for line in self.summary), *(f"Note: {note}" for note in self.notes)]


@locks_output
def export(
    run: StrPath, out: StrPath, target: str = "onnx", config: ExportConfig = DEFAULT, tiles: StrPath | None = None
) -> Export:
    """Write a run as a file, `target`: for other programs onnx, deepness, openvino or torch; a bundle; a STAC item.

    A file for other programs takes raw pixels and returns probabilities: spectral indices, scaling, temperature, and
    sigmoid or softmax are inside. It is compared with torch before it gets its name. `geograft.commands.bundle` and
    `stac` tell of the other two. `tiles` is the current path of the run's tile set, if it was moved: for bundles, STAC
    items, and `config.int8`.

    Raises:
        InputError: if the run or its tile set cannot be used, or its network cannot be exported.
        SettingError: for an unknown target, a setting or a suffix of `out` that does not fit it, or a library that is
            not installed; if 8-bit integers are too slow or too inaccurate.
        OutputError: if `out` exists or cannot be written.
    """
    if target not in TARGETS:
        raise SettingError(f"--for {target}: unknown. Use {', '.join(TARGETS)}.")
    for name, used_by in USED_BY.items():
        if getattr(config, name) != getattr(DEFAULT, name) and target != used_by:
            raise SettingError(f"--{name.replace('_', '-')} needs --for {used_by}, not {target}. Omit it.")
    if config.place and target in ("bundle", "stac"):
        raise SettingError(
            f"--place {config.place} has no effect with --for {target}: a bundle has all places. Omit it."
        )
    run, out = to_runs(run)[0], Path(out)
    refuse_existing(out)
    return TARGETS[target](run, out, config, optional_path(tiles))


USED_BY = {"int8": "onnx", "window_px": "deepness", "threshold": "deepness"}
"""The target that each setting is for."""


def _write_onnx(run: Path, out: Path, config: ExportConfig, tiles: Path | None) -> Export:
    card = _read_run(run, out, ".onnx", ONNX_NEEDS, config.place)
    from geograft.exports import onnx  # noqa: PLC0415  (needs an extra)

    model, stride = any_size_model(run, card)
    with _explained(run):
        exported = export_program(model, card.bands, (3 * stride, 4 * stride), stride, masked=True)
        graph = onnx.onnx_model(exported, [IMAGE, VALID], [PROBABILITIES])
    with atomic_write(out) as part:
        onnx.write_onnx(graph, onnx.card_metadata(card, stride), part)
        result = _parity(_check(onnx.open_onnx(part), run, card, _sides(card, stride)))
        if config.int8:
            result = f"8-bit integers: {_quantize(graph, part, run, card, stride, tiles)}"
    return _exported(out, card, (*_describe(card, stride), result))


def _write_deepness(run: Path, out: Path, config: ExportConfig, _tiles: Path | None) -> Export:
    card = _read_run(run, out, ".onnx", ONNX_NEEDS, config.place)
    from geograft.exports import deepness, onnx  # noqa: PLC0415  (need an extra)

    threshold = deepness.plugin_threshold(card, config.threshold)
    model, size = one_size_model(run, card), config.window_px or card.window[0]
    with _explained(run):
        graph = deepness.plugin_model(model, card, size)
    with atomic_write(out) as part:
        onnx.write_onnx(graph, deepness.plugin_metadata(card, size, threshold), part)
        difference = _check(deepness.open_plugin_model(part), run, card, (size,))
    images = f"windows of {size} pixels of {join_names(card.band_names[: card.bands])}"
    summary = images, _outputs(card), _parity(difference)
    return _exported(out, card, summary, deepness.plugin_notes(card, threshold))


def _write_openvino(run: Path, out: Path, config: ExportConfig, _tiles: Path | None) -> Export:
    card = _read_run(run, out, ".xml", EXPORT_BACKENDS["openvino"].needs + ONNX_NEEDS, config.place)
    from geograft.exports import onnx  # noqa: PLC0415  (need extras)

    weights = out.with_suffix(".bin")
    refuse_existing(weights)
    model, stride = any_size_model(run, card)
    with _explained(run):
        exported = export_program(model, card.bands, (3 * stride, 4 * stride), stride)
        graph = onnx.onnx_model(exported, [IMAGE], [PROBABILITIES])
    with atomic_write(out) as part:
        with _explained(run):
            onnx.write_openvino(graph, onnx.card_metadata(card, stride), part)
        difference = _check(onnx.open_openvino(part), run, card, _sides(card, stride))
        part.with_suffix(".bin").replace(weights)
    return _exported(out, card, (*_describe(card, stride), f"weights in {weights}", _parity(difference)))


def _write_torch(run: Path, out: Path, config: ExportConfig, _tiles: Path | None) -> Export:
    card = _read_run(run, out, ".pt2", (), config.place)
    model, stride = any_size_model(run, card)
    with _explained(run):
        exported = export_program(model, card.bands, (3 * stride, 4 * stride), stride)
    with atomic_write(out) as part:
        write_program(exported, card.content, part)
        difference = _check(open_program(part), run, card, _sides(card, stride))
    return _exported(out, card, (*_describe(card, stride), _parity(difference)))


def _write_bundle(run: Path, out: Path, _config: ExportConfig, tiles: Path | None) -> Export:
    card = _read_run(run, out, SUFFIX, ())
    notes = bundle_run(run, out, tiles)
    return _exported(out, card, (f"the same maps, scores and reports as from {run}",), notes)


def _write_stac(run: Path, out: Path, _config: ExportConfig, tiles: Path | None) -> Export:
    card = _read_run(run, out, ".json", ())
    notes = write_stac_item(run, out, tiles)
    return _exported(out, card, ("a STAC item of the model",), notes)


ONNX_NEEDS = EXPORT_BACKENDS["onnx"].needs
TARGETS: Mapping[str, Callable[[Path, Path, ExportConfig, Path | None], Export]] = {
    "onnx": _write_onnx,
    "deepness": _write_deepness,
    "openvino": _write_openvino,
    "torch": _write_torch,
    "bundle": _write_bundle,
    "stac": _write_stac,
}
"""The function that writes the file for each target."""


def _read_run(run: Path, out: Path, suffix: str, needs: Sequence[str], place: str = "") -> ModelCard:
    """Return the card of a run, or of a place of it, if the file's suffix fits and all libraries are installed."""
    (card,) = read_cards_at([run], place)
    if out.suffix != suffix:
        raise SettingError(f"{out}: the file for this program needs a name that ends in {suffix}.")
    missing = [name for name in needs if not find_spec(name)]
    if missing:
        extras = ",".join(name for name, backend in EXPORT_BACKENDS.items() if set(missing) & set(backend.needs))
        raise SettingError(f"{', '.join(missing)}: not installed. Run pip install 'geograft[{extras}]'.")
    return card


@contextmanager
def _explained(run: Path) -> Iterator[None]:
    """Raise InputError for whatever an exporter raises in the block; its warnings are hidden."""
    try:
        with suppress_warnings():
            yield
    except Exception as error:  # an exporter may raise anything
        reason = first_line(error)
        raise InputError(f"{run}: its network cannot be exported: {reason}. Use another --for.") from error


def _sides(card: ModelCard, stride: int) -> tuple[int, int]:
    """Return two sides of images to compare: about that of a training tile, and another."""
    cells = max(MIN_CELLS, min(card.tile_px, MAX_COMPARED_PX) // stride)
    return cells * stride, (cells + 1) * stride


def _check(runner: GraphRunner, run: Path, card: ModelCard, sides: Sequence[int]) -> float:
    """Return the largest difference of a file's probabilities from torch's, on typical images with an invalid corner.

    Raises:
        InputError: if it is above TOLERANCE.
    """
    reference = EnsemblePredictor.load([run], device="cpu", backend="torch", cards=(card,))
    differences = []
    for count, side in enumerate(sides, 1):
        pixels, valid = _sample(card, count, side)
        with _explained(run):
            found = runner(pixels, valid)
        every = zip(pixels, valid, strict=True)
        expected = reference(np.stack([append_indices(*each, card.indices) for each in every]), valid)
        differences.append(float(np.abs(found - expected).max()))
    difference = float(np.max(differences))  # NaN if one of them is
    if not difference <= TOLERANCE:
        raise InputError(
            f"{run}: the probabilities of the exported file differ from torch's by up to {difference:.2g}, more than "
            f"{TOLERANCE:g}. Use another --for."
        )
    return difference


def _sample(card: ModelCard, count: int, side: int) -> PixelBatch:
    """Return raw pixels without indices, as float32, and their validity."""
    pixels = typical_tile(card, side)[0][:, : card.bands]
    dtype = np.dtype(card.dtype)
    if dtype.kind in "iu":
        pixels = np.rint(pixels).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    batch = np.concatenate([np.roll(pixels, number, axis=2) for number in range(count)]).astype(np.float32)
    valid = np.ones((count, side, side), bool)
    valid[:, : side // 4, : side // 4] = False
    return batch, valid


def _quantize(graph: Any, part: Path, run: Path, card: ModelCard, stride: int, tiles: Path | None) -> QuantizationTrial:
    """Replace an ONNX file, written from `graph`, by one in 8-bit integers.

    Raises:
        InputError: if the tile set cannot be used, or ONNX Runtime cannot quantise the network.
        SettingError: if the result is not fast or accurate enough.
    """
    from geograft.exports import onnx  # noqa: PLC0415  (needs an extra)

    tile_set = open_run_tiles(run, tiles)
    check_fit(card, tile_set)
    training = [image for image, _ in _tiles(tile_set, "train", card, stride, CALIBRATION_TILES)]
    validation = _tiles(tile_set, "val", card, stride, COMPARED_TILES)
    # A folder of its own: the file itself may have any name.
    folder = part.with_name(f"{part.name}.int8")
    folder.mkdir()
    small = folder / "int8.onnx"
    with _explained(run):
        onnx.write_onnx(quantize(graph, training, folder), onnx.card_metadata(card, stride), small)
        trial = try_quantized(onnx.open_onnx(part), onnx.open_onnx(small), card, validation)
    if not trial.accepted:
        raise SettingError(f"--int8 is not worth it: {trial}. Omit it.")
    small.replace(part)
    return trial


def _tiles(tile_set: TileSet, split: Split, card: ModelCard, stride: int, count: int) -> list[LabelledImage]:
    """Return tiles spread evenly over a split, mirrored at the bottom and right up to a multiple of the stride.

    Raises:
        InputError: if there are none.
    """
    samples = tile_set.samples(split, unique_pixels=True, means=card.mean)
    if not len(samples):
        raise InputError(f"{tile_set.folder} has no {split} tiles, which --int8 needs. Omit it.")
    found = []
    for index in evenly_spaced(len(samples), count):
        pixels, label = samples[index]
        valid = image_mask(pixels, label)
        size = padded_size(len(valid), stride)
        margins = (0, size - len(valid)), (0, size - len(valid))
        image = np.pad(pixels[: card.bands], ((0, 0), *margins), "symmetric"), np.pad(valid, margins, "symmetric")
        found.append(((image[0][None], image[1][None]), label))
    return found


def _exported(out: Path, card: ModelCard, summary: Sequence[str], notes: Sequence[str] = ()) -> Export:
    return Export(out, tuple(summary), (*unfinished_notes((card,)), *notes))


def _describe(card: ModelCard, stride: int) -> tuple[str, ...]:
    sides = f"heights and widths that are multiples of {stride}, from {MIN_CELLS * stride} pixels on"
    return f"images of {join_names(card.band_names[: card.bands])}; {sides}", _outputs(card)


def _outputs(card: ModelCard) -> str:
    names = card.legend.names[1:] if card.legend.binary else card.legend.names
    return f"probabilities of {join_names(names)}"


def _parity(difference: float) -> str:
    return f"probabilities within {difference:.1g} of torch's"
