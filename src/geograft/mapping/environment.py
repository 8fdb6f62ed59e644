"""What a map's bits depend on besides inputs and settings: the hardware and libraries of a worker, and their results.

Workers of one map must give the same bits. They are compared by name (backend, versions, instruction set, GPU, driver)
and by what the network computes in them for a few windows of the raster, the sample.
"""

import hashlib
import io
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt32
from numpy import ndarray

from geograft.card import ModelCard
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.inference.predictor import PixelBatch
from geograft.inference.runners import EXPORT_BACKENDS, TORCH, library_version
from geograft.mapping.classmap import class_indices
from geograft.mapping.sums import PROBABILITY_STEPS, WEIGHT_SUM, ArraySums, Model, nan_error
from geograft.resume import READ_ERRORS, differences, unreadable_error

FLAGS = re.compile(r"(avx|fma|amx|asimd|sve)\w*")
"""Names of the instruction sets that networks compute with, as Linux tells them."""


@dataclass(frozen=True)
class Environment:
    """Hardware and libraries of a process that predicts, as far as its bits depend on them."""

    backend: str
    """torch, onnx or openvino, and the versions of the libraries that it needs."""
    precision: str
    instruction_set: str
    """Machine type and instruction sets of the CPU."""
    gpu: str = ""
    """Name of the GPU; empty on a CPU."""
    driver: str = ""
    """Version of its driver."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of geograft and torch."""

    def differences(self, other: "Environment") -> list[str]:
        """Return a line for each difference of `other` from this environment; empty if there is none."""
        return differences(asdict(self), asdict(other))


def describe_libraries(backend: str) -> Environment:
    """Return the environment of this process where no network is needed; `backend` names the libraries."""
    return Environment(backend, "float64", _instruction_set(), versions={"geograft": library_version("geograft")})


def describe_environment(
    backend: str, precision: str, device: str, further: Mapping[str, str] = MappingProxyType({})
) -> Environment:
    """Return the environment of this process, which predicts with a backend on cpu, cuda or mps.

    `further` are the versions of other libraries, on which the bits depend.
    """
    libraries = EXPORT_BACKENDS[backend].needs if backend in EXPORT_BACKENDS else (TORCH,)
    versions = ", ".join(f"{name} {library_version(name)}".strip() for name in libraries)
    gpu, driver = ("", "") if device == "cpu" else _gpu(device)
    shared = {name: library_version(name) for name in ("geograft", "torch")} | dict(further)
    return Environment(f"{backend} ({versions})", precision, _instruction_set(), gpu, driver, shared)


def worker_name() -> str:
    """Return the machine and the process, by which people find a worker."""
    return f"{platform.node()}, process {os.getpid()}"


def _instruction_set() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    found = sorted({word for word in told.partition(":")[2].split() if FLAGS.fullmatch(word)})
    return " ".join([platform.machine(), *found])


def _gpu(device: str) -> tuple[str, str]:
    """Return the name of the GPU that torch uses, and the version of its driver."""
    torch = sys.modules.get("torch")
    if torch is None or device != "cuda":
        return device, platform.release()
    name = str(torch.cuda.get_device_name())
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, f"CUDA {torch.version.cuda}"
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return name, found[0] if found else text.split("\n", maxsplit=1)[0]


@dataclass(frozen=True)
class Agreement:
    """How far a worker's layers of the sample are from those of the job's first worker."""

    difference: float
    """Largest difference of a layer, such as a probability."""
    flips: int
    """Pixels of the sample whose class differs."""
    pixels: int
    """Pixels of the sample; 0 if there is no network to compare."""

    @property
    def same_bits(self) -> bool:
        """Whether blended maps have the same bits, as far as the sample tells."""
        return self.difference == 0


NO_DIFFERENCE = Agreement(0.0, 0, 0)
DIGEST_ROWS = 512
SAMPLE_WINDOWS = 8
SAMPLE_BYTES = 2**24
"""Size of a sample's layers, above which it has fewer windows."""
WINDOWS_AT_ONCE = 2


def sample_count(layers: int, window_px: int) -> int:
    """Return the number of windows of a sample, at least 2.

    >>> sample_count(1, 640), sample_count(1, 224), sample_count(5, 640)
    (8, 8, 2)
    """
    return max(2, min(SAMPLE_WINDOWS, SAMPLE_BYTES // (4 * layers * window_px**2)))


@dataclass(frozen=True)
class Sample:
    """The layers of the sample in whole steps, as they are blended."""

    levels: UInt32[ndarray, "n layers t t"]

    @classmethod
    def compute(cls, model: Model, windows: PixelBatch) -> "Sample":
        """Predict the windows of the sample.

        Raises:
            InputError: for NaN.
        """
        some = range(0, len(windows[0]), WINDOWS_AT_ONCE)
        layers = np.concatenate([model(*(array[i : i + WINDOWS_AT_ONCE] for array in windows)) for i in some])
        if np.isnan(layers).any():
            raise nan_error()
        return cls(np.rint(layers.clip(0, 1) * np.float32(PROBABILITY_STEPS)).astype(np.uint32))

    @classmethod
    def from_bytes(cls, content: bytes, shape: tuple[int, ...]) -> "Sample":
        """Return a sample of the given shape from a file's content.

        Raises:
            InputError: if it is not one.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                levels = arrays["levels"]
        except READ_ERRORS as error:
            raise InputError(f"it cannot be read ({error})") from error
        if levels.shape != shape or levels.dtype != np.uint32 or levels.max(initial=0) > PROBABILITY_STEPS:
            raise InputError(f"it has {levels.shape} {levels.dtype}, not {shape} uint32 of up to {PROBABILITY_STEPS}")
        return cls(levels)

    def to_bytes(self) -> bytes:
        """Return the content of its file. Equal samples have equal content."""
        file = io.BytesIO()
        # Compression would take longer than the network, and save a third.
        np.savez(file, levels=self.levels)
        return file.getvalue()

    def agreement(self, other: "Sample", card: ModelCard) -> Agreement:
        """Compare another worker's sample with this one, by the classes and thresholds of a card."""
        apart = np.abs(self.levels.astype(np.int64) - other.levels).max(initial=0)
        flips = sum(
            int((_classes(mine, card) != _classes(its, card)).any(axis=0).sum())
            for mine, its in zip(self.levels, other.levels, strict=True)
        )
        pixels = len(self.levels) * self.levels.shape[2] * self.levels.shape[3]
        return Agreement(float(apart) / PROBABILITY_STEPS, flips, pixels)


def _classes(levels: UInt32[ndarray, "layers t t"], card: ModelCard) -> ndarray:
    return class_indices(ArraySums(levels * np.uint32(WEIGHT_SUM**2)), card.legend, card.output_thresholds)


def check_agreement(
    first: tuple[str, Environment], environment: Environment, agreement: Agreement, tolerance: float | None
) -> tuple[str, ...]:
    """Check that this worker gives the bits of the job's first worker, given by name and environment, or is tolerated.

    Returns:
        In what it differs, if it is tolerated; nothing if it does not differ.

    Raises:
        SettingError: if it differs by name or in its results and `tolerance` is None; if the largest difference of
            probabilities exceeds it.
    """
    named = first[1].differences(environment)
    if not named and agreement.same_bits:
        return ()
    named = named or ["its hardware and libraries have the same names, but the network gives other bits"]
    how = "; ".join(named)
    measured = (
        f" On {agreement.pixels:,} pixels of the raster probabilities differ by at most {agreement.difference:.2g}, "
        f"and the class of {agreement.flips:,}."
        if agreement.pixels
        else ""
    )
    if tolerance is None:
        raise SettingError(
            f"This worker ({worker_name()}) differs from the job's first one ({first[0]}): {how}.{measured} Use "
            "workers of one kind, or accept the difference with --tolerance."
        )
    if agreement.difference > tolerance:
        raise SettingError(
            f"This worker ({worker_name()}) differs from the job's first one ({first[0]}) by more than "
            f"--tolerance {tolerance:g}: {how}.{measured} Use workers of one kind, or a larger tolerance."
        )
    return tuple(named)


DIGESTED = (".tif", ".npz")
"""Suffixes of the files of a unit whose values must be the same from all workers."""


def content_digest(path: Path) -> str:
    """Return the SHA-256 of the pixels of a raster or the arrays of an .npz file; see `DIGESTED`.

    Raises:
        InputError: if the file cannot be read.
    """
    return pixels_digest(path) if path.suffix == ".tif" else arrays_digest(path)


def count_flips(path: Path, other: Path) -> int:
    """Return the number of pixels whose class differs between two class maps of the same size, in any band.

    Raises:
        InputError: if a file cannot be read.
    """
    flips = 0
    with Image.open(path) as one, Image.open(other) as two:
        grid = one.info.grid
        for row in range(0, grid.height, DIGEST_ROWS):
            window = Window(row, 0, min(DIGEST_ROWS, grid.height - row), grid.width)
            flips += int((one.read_raw(window) != two.read_raw(window)).any(axis=0).sum())
    return flips


def arrays_digest(path: Path) -> str:
    """Return the SHA-256 of the arrays of an .npz file, which does not depend on how they are compressed."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in sorted(arrays.files):
                digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
                digest.update(arrays[name].tobytes())
    except READ_ERRORS as error:
        raise unreadable_error(path, error) from error
    return digest.hexdigest()


def pixels_digest(path: Path) -> str:
    """Return the SHA-256 of a raster's pixels, which does not depend on how they are compressed."""
    digest = hashlib.sha256()
    with Image.open(path) as image:
        grid = image.info.grid
        digest.update(f"{image.info.dtype} {image.info.bands} {grid.height} {grid.width}".encode())
        for row in range(0, grid.height, DIGEST_ROWS):
            window = Window(row, 0, min(DIGEST_ROWS, grid.height - row), grid.width)
            digest.update(image.read_raw(window).tobytes())
    return digest.hexdigest()
