"""What the cost model of `bench_cost` says of a map of a million square kilometres, and with which assumptions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import page
from cost_model import Case, CostModel, network_windows
from job_size import JobSize, count_whole_windows
from rasters import BLOCK

SIDE = 2_000_000
"""Pixels of the side of a square of 1,000 km at 0.5 m."""


@dataclass(frozen=True)
class Assumptions:
    """What was not measured here. Prices in US dollars."""

    date: str = "2026-11"
    gpu_tflops: float = 989.0
    """Peak of the matrix units of an NVIDIA H100 SXM in bfloat16 without sparsity, by its data sheet."""
    gpu_fraction: float = 0.2
    """Fraction of the peak that the network reaches."""
    gpu_cores: int = 16
    """Processor cores beside a GPU."""
    gpu_usd: float = 3.0
    """An hour of a GPU with its cores."""
    core_usd: float = 0.04
    """An hour of a core."""
    storage_usd: float = 0.023
    """A gigabyte in object storage for a month."""
    million_gets_usd: float = 0.4
    """A million read requests."""
    egress_usd: float = 0.09
    """A gigabyte that leaves the provider's region."""
    network_gbit: float = 25.0
    """Bandwidth that all workers share, in Gbit/s."""
    gets_per_s: float = 5500.0
    """Read requests per second that the storage answers for one prefix."""


ASSUMED = Assumptions()


@dataclass(frozen=True)
class Estimate:
    """The cost of the map with windows of one size."""

    size: JobSize
    whole_windows: int
    """Windows of the map without units."""
    flop: float
    pipeline_s: float
    """Processor seconds without the network."""
    network_s: float
    read_bytes: float
    raster_bytes: float
    requests: float
    output_bytes: float

    @property
    def core_hours(self) -> float:
        """Hours of one core without a GPU."""
        return (self.pipeline_s + self.network_s) / 3600

    def gpu_hours(self, assumed: Assumptions) -> float:
        """Return the hours of one GPU for the network alone."""
        return self.flop / (assumed.gpu_tflops * 1e12 * assumed.gpu_fraction) / 3600

    def gpu_machine_hours(self, assumed: Assumptions) -> float:
        """Return the hours of a GPU with its cores, which read, decode and write: those of the slower of both."""
        return max(self.gpu_hours(assumed), self.pipeline_s / 3600 / assumed.gpu_cores)

    def limits(self, workers_s: float, assumed: Assumptions) -> dict[str, float]:
        """Return how many workers, that take `workers_s` seconds together, each shared resource is enough for."""
        return {
            "the bandwidth is": assumed.network_gbit * 1e9 / 8 / (self.read_bytes / workers_s),
            "requests are": assumed.gets_per_s / (self.requests / workers_s),
        }


def estimate(model: CostModel, window: tuple[int, int], flop: float, stored: float) -> Estimate:
    """Return the cost of the map from remote deflate, with `flop` per window and `stored` bytes per pixel."""
    case = Case(SIDE, *window, remote=True)
    network_s, block = model.network[str(case.window_px)] * network_windows(case), stored * BLOCK**2
    return Estimate(
        size=case.size,
        whole_windows=count_whole_windows(SIDE, *window),
        flop=flop * case.size.windows,
        pipeline_s=model.cpu_s(case) - network_s,
        network_s=network_s,
        read_bytes=model.read_bytes(case, block),
        raster_bytes=stored * SIDE**2,
        requests=model.requests_of(case),
        output_bytes=model.output_bytes(case),
    )


def window_flop(run: Path, window_px: int) -> int:
    """Return the floating-point operations of a window of a run's network."""
    import torch

    from geograft.card import read_card
    from geograft.networks.network import build
    from geograft.networks.summary import count_flop

    card = read_card(run)
    network = build(card.model, len(card.band_names), card.legend.outputs, pretrained=False).eval()
    return count_flop(network, torch.zeros(1, len(card.band_names), window_px, window_px))


def extrapolation(
    model: CostModel, run: Path, windows: Sequence[tuple[int, int]], stored: float, assumed: Assumptions
) -> str:
    """Return the tables of estimates and assumptions."""
    columns = [estimate(model, window, window_flop(run, window[0]), stored) for window in windows]
    rows = {
        "units": [f"{each.size.units:,} of {each.size.unit_px:,} px" for each in columns],
        "windows": [f"{each.size.windows / 1e6:,.1f} million" for each in columns],
        "of these the halo": [f"{each.size.windows / each.whole_windows - 1:.1%}" for each in columns],
        "network, PFLOP": [f"{each.flop / 1e15:,.0f}" for each in columns],
        "raster, TB": [f"{each.raster_bytes / 1e12:.1f}" for each in columns],
        "read, TB": [f"{each.read_bytes / 1e12:.1f}" for each in columns],
        "read requests, millions": [f"{each.requests / 1e6:.1f}" for each in columns],
        "map, TB": [f"{each.output_bytes / 1e12:.2f}" for each in columns],
        "**core hours on CPUs**": [f"**{each.core_hours:,.0f}**" for each in columns],
        "of these the network": [f"{each.network_s / 3600 / each.core_hours:.0%}" for each in columns],
        "**GPU hours of the network** (assumption)": [f"**{each.gpu_hours(assumed):.2f}**" for each in columns],
        "core hours beside GPUs": [f"{each.pipeline_s / 3600:,.0f}" for each in columns],
        f"GPU hours with {assumed.gpu_cores} cores each": [
            f"{each.gpu_machine_hours(assumed):,.1f}" for each in columns
        ],
        **_money_rows(columns, assumed),
        **_limit_rows(columns, assumed),
    }
    head = [
        "1 million km² at 0.5 m, 3 bands of 8 bits",
        *(f"windows of {size}, overlap {over}" for size, over in windows),
    ]
    table = page.table(head, [[name, *cells] for name, cells in rows.items()])
    text = f"{stored:.2f} bytes are stored per pixel of three bands, and {model.output:.2f} per pixel of the map."
    return f"{table}\n\n{text}\n\n{assumptions_table(assumed)}"


def _money_rows(columns: Sequence[Estimate], assumed: Assumptions) -> dict[str, list[str]]:
    def usd(amounts: Sequence[float]) -> list[str]:
        return [f"{amount:,.0f} USD" for amount in amounts]

    return {
        "CPUs alone": usd([each.core_hours * assumed.core_usd for each in columns]),
        "GPUs instead": usd([each.gpu_machine_hours(assumed) * assumed.gpu_usd for each in columns]),
        "read requests": usd([each.requests / 1e6 * assumed.million_gets_usd for each in columns]),
        "bytes read from another region": usd([each.read_bytes / 1e9 * assumed.egress_usd for each in columns]),
        "the map in storage, a month": usd([each.output_bytes / 1e9 * assumed.storage_usd for each in columns]),
    }


def _limit_rows(columns: Sequence[Estimate], assumed: Assumptions) -> dict[str, list[str]]:
    cores = [each.limits(3600 * each.core_hours, assumed) for each in columns]
    gpus = [each.limits(3600 * each.gpu_machine_hours(assumed), assumed) for each in columns]
    by_gpu = [
        "the GPU"
        if each.gpu_hours(assumed) >= each.gpu_machine_hours(assumed)
        else "its cores: reading, decoding, writing"
        for each in columns
    ]
    by_cpu = ["the network's operations" if each.network_s > each.pipeline_s else "the rest" for each in columns]
    return {
        "bottleneck of a core": by_cpu,
        "bottleneck of a GPU with its cores": by_gpu,
        **{f"cores until {name} the bottleneck": [f"{each[name]:,.0f}" for each in cores] for name in cores[0]},
        **{f"GPUs until {name} the bottleneck": [f"{each[name]:,.0f}" for each in gpus] for name in gpus[0]},
    }


def assumptions_table(assumed: Assumptions) -> str:
    """Return the table of what was not measured."""
    rows = [
        ["peak of a GPU (NVIDIA H100 SXM, bfloat16, data sheet), TFLOP/s", f"{assumed.gpu_tflops:,.0f}"],
        ["fraction of the peak that the network reaches", f"{assumed.gpu_fraction:g}"],
        ["cores beside a GPU", f"{assumed.gpu_cores}"],
        ["an hour of a GPU with its cores, USD", f"{assumed.gpu_usd:g}"],
        ["an hour of a core, USD", f"{assumed.core_usd:g}"],
        ["a GB in object storage for a month, USD", f"{assumed.storage_usd:g}"],
        ["a million read requests, USD", f"{assumed.million_gets_usd:g}"],
        ["a GB that leaves the region, USD", f"{assumed.egress_usd:g}"],
        ["bandwidth that all workers share, Gbit/s", f"{assumed.network_gbit:g}"],
        ["read requests a second that the storage answers", f"{assumed.gets_per_s:,.0f}"],
    ]
    return page.table([f"assumed, {assumed.date}; not measured", ""], rows)
