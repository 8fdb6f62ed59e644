"""A model of what a map costs: maps to measure, the terms of the model, and their fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from geograft.mapping.environment import SAMPLE_WINDOWS
from job_size import JobSize, count_job, count_whole_windows
from rasters import BLOCK

WINDOWS = ((640, 80), (224, 112))
COMPRESSIONS = ("deflate", "zstd", "none")


@dataclass(frozen=True)
class Case:
    """One map to measure."""

    side: int
    window_px: int
    overlap_px: int
    compression: str = "deflate"
    remote: bool = False
    network: bool = True

    @property
    def size(self) -> JobSize:
        """What the map consists of."""
        return count_job(self.side, self.window_px, self.overlap_px)

    @property
    def title(self) -> str:
        """What is mapped, in words."""
        where = "web server" if self.remote else "file"
        network = "" if self.network else ", no network"
        return f"{self.side:,} px, windows of {self.window_px}, {self.compression}, {where}{network}"


@dataclass(frozen=True)
class Measured:
    """What a map took."""

    cpu_s: float
    """Of the process and its children, from its start."""
    output_bytes: int
    """Of the files of its units."""
    read_bytes: int
    """Of the raster, sent by the web server; 0 for a file."""
    requests: int


def fitted_cases() -> list[Case]:
    """Return the small rasters: of one unit, and without the network also of four."""
    large, small = WINDOWS
    remote = [Case(side, *window, remote=True, network=False) for side in (1024, 2560, 2048) for window in WINDOWS]
    local = [Case(side, *large, name, network=False) for side in (1024, 2560) for name in COMPRESSIONS]
    network = [Case(side, *large) for side in (1024, 2048, 2560)] + [Case(side, *small) for side in (1024, 1536)]
    return [*remote, *local, *network]


def held_out_cases() -> list[Case]:
    """Return the larger rasters."""
    large, small = WINDOWS
    return [
        Case(3072, *large, remote=True, network=False),
        Case(4096, *large, remote=True, network=False),
        Case(3072, *small, remote=True, network=False),
        Case(3072, *large),
        Case(3072, *large, "zstd"),
        Case(3072, *large, "none"),
        Case(2048, *small),
    ]


@dataclass(frozen=True)
class CostModel:
    """Fitted coefficients, by name."""

    pipeline: dict[str, float]
    """Processor seconds without the network: of a start, and per million of what `pipeline_terms` counts."""
    network: dict[str, float]
    """Processor seconds of the network: of its first call, and per window by its size."""
    requests: dict[str, float]
    read: dict[str, float]
    """Blocks that are read, relative to those that the units touch, and to those of a worker's sample."""
    output: float
    """Bytes written per pixel."""
    unit_files: float
    """Bytes written per unit and job beside that."""

    def cpu_s(self, case: Case) -> float:
        """Return the processor seconds of a map."""
        terms = pipeline_terms(case, self.requests_of(case))
        return _sum(self.pipeline, terms) + (_sum(self.network, network_terms(case)) if case.network else 0)

    def requests_of(self, case: Case) -> float:
        """Return the number of requests of a map."""
        if not case.remote:
            return 0.0
        return _sum(self.requests, request_terms(case.size))

    def read_bytes(self, case: Case, block_bytes: float) -> float:
        """Return the bytes that a map reads from a web server, by the mean size of a stored block."""
        return block_bytes * _sum(self.read, read_terms(case)) if case.remote else 0.0

    def output_bytes(self, case: Case) -> float:
        """Return the bytes of the files of a map."""
        return self.output * case.size.output_px + self.unit_files * case.size.units


def pipeline_terms(case: Case, requests: float) -> dict[str, float]:
    """Return what the processor time without the network is proportional to."""
    size = case.size
    decoded = {f"decode {name}": size.block_px / 1e6 * (name == case.compression) for name in COMPRESSIONS}
    return {
        "start": 1.0,
        "units": float(size.units),
        **decoded,
        "window pixels": size.window_px / 1e6,
        "map pixels": size.output_px / 1e6,
        "requests": requests,
    }


def request_terms(size: JobSize) -> dict[str, float]:
    """Return what the number of requests is proportional to."""
    return {
        "job": 1.0,
        "units": float(size.units),
        "rows of blocks": float(size.unit_rows),
        "rows of blocks of a read": float(size.chunk_rows),
    }


def read_terms(case: Case) -> dict[str, float]:
    """Return what the number of blocks that are read is proportional to."""
    return {"units": float(case.size.blocks), "sample": sample_windows(case) * (1 + case.window_px / BLOCK) ** 2}


def network_terms(case: Case) -> dict[str, float]:
    """Return what the network's processor time is proportional to."""
    windows = {str(size): float(network_windows(case) * (size == case.window_px)) for size, _ in WINDOWS}
    return {"first call": 1.0, **windows}


def network_windows(case: Case) -> int:
    """Return how many windows the network computes."""
    return case.size.windows + sample_windows(case)


def sample_windows(case: Case) -> int:
    """Return on how many windows a worker compares its network with the first worker's."""
    return min(SAMPLE_WINDOWS, count_whole_windows(case.side, case.window_px, case.overlap_px))


def fit(found: Mapping[Case, Measured], block_bytes: Callable[[Case], float]) -> CostModel:
    """Fit the coefficients: none is negative, and relative errors count.

    `block_bytes` returns the mean size of a stored block of a raster.
    """
    remote = [case for case in found if case.remote]
    requests = _fit([request_terms(case.size) for case in remote], [found[case].requests for case in remote])
    read = [found[case].read_bytes / block_bytes(case) for case in remote]
    blocks = _fit([read_terms(case) for case in remote], read)
    silent = [case for case in found if not case.network]
    terms = [pipeline_terms(case, found[case].requests) for case in silent]
    pipeline = _fit(terms, [found[case].cpu_s for case in silent])
    real = [case for case in found if case.network]
    silent_s = [_sum(pipeline, pipeline_terms(case, 0.0)) for case in real]
    left = [found[case].cpu_s - seconds for case, seconds in zip(real, silent_s, strict=True)]
    network = _fit([network_terms(case) for case in real], left, [found[case].cpu_s for case in real])
    written = _fit(
        [{"pixels": case.size.output_px, "units": case.size.units} for case in real],
        [found[case].output_bytes for case in real],
    )
    return CostModel(pipeline, network, requests, blocks, written["pixels"], written["units"])


def _sum(coefficients: Mapping[str, float], terms: Mapping[str, float]) -> float:
    return sum(coefficients[name] * value for name, value in terms.items())


def _fit(
    terms: Sequence[dict[str, float]], values: Sequence[float], errors: Sequence[float] | None = None
) -> dict[str, float]:
    """Return coefficients for which the sums of `terms` are the values; `errors`, by default the values, weigh them."""
    from scipy.optimize import nnls

    weights = 1 / np.array(errors or values)
    matrix = np.array([[*each.values()] for each in terms]) * weights[:, None]
    scale = np.maximum(matrix.max(axis=0), 1e-300)
    solution, _ = nnls(matrix / scale, np.array(values) * weights)
    return dict(zip(terms[0], (solution / scale).tolist(), strict=True))
