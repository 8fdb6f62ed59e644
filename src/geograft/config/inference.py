"""Settings of everything that uses a trained run or its map: predict, polygons, sample, evaluate, suggest, review."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from geograft.config.training import STRICT, Bands, Positive, Seed
from geograft.memory import MAX_TILE_PX

Threshold = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class InferenceConfig:
    """How pixels are predicted: the same in maps, scores, calibration, reviews and suggestions."""

    window_px: Annotated[int, Field(ge=0, le=MAX_TILE_PX)] = 0
    """Size in pixels of the square windows that the network predicts at once; a smaller raster gets a smaller one. 0:
    the run's own, which training chose on the validation tiles."""
    overlap: Annotated[float | None, Field(ge=0, le=0.75)] = None
    """Overlap of adjacent windows, as a fraction of their size; predictions are blended there. Default: the run's
    own, in pixels."""
    tta: Literal[1, 2, 4, 8] = 1
    """Test-time augmentation: number of flips and rotations over which predictions are averaged. Time grows in
    proportion."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Windows per batch. 0: as many as fit into 32 MB, from 1 to 8; on an NVIDIA GPU 128 MB, from 1 to 64. On a CPU the
    result does not depend on it."""
    backend: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    """Inference backend. auto: on a CPU the fastest one that is installed and agrees with torch; on a GPU torch."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    place: str = ""
    """Use the thresholds and the temperature of this place, which geograft calibrate --place-tiles fitted to labelled
    tiles there. Default: the run's own."""


@dataclass(frozen=True, config=STRICT)
class PredictConfig(InferenceConfig):
    """How a raster is mapped."""

    probabilities: Literal["none", "uint8", "float16"] = "none"
    """Also write the probability of every class: uint8 (0 to 250 for 0 to 1) or float16."""
    uncertainty: bool = False
    """Also write the uncertainty of every pixel: the entropy of its probabilities, from 0 to 1; with several runs, the
    standard deviation of their probabilities."""
    applicability: bool = False
    """Also write the area of applicability: where the rasters resemble the training data, and where they do not."""
    bands: Bands = ()
    """Bands of the rasters in the order of the run's bands: numbers, counted from 1, or names. Default: all bands, in
    file order; of a scene with a file per band, those with the names of the run's."""
    mask: tuple[str, ...] = ()
    """Pixels to leave out, by a quality band: its name and values, such as scl:3,8,9,10, or its bits, such as
    qa_pixel:bits:1-4."""
    nodata: Literal["auto", "any", "all"] | None = None
    """Whether a pixel is invalid if any band in use is nodata, or only if all are; auto: all for integers whose nodata
    is 0 or their maximum, else any. Default: as in training."""
    threshold: tuple[Threshold, ...] = ()
    """Minimum probability of the positive class, or of each overlapping class in order. Default: the run's own."""
    resample: bool = False
    """Resample rasters to the pixel size of the training images while reading; the map has that pixel size."""
    keep_going: bool = False
    """With a folder of maps: report a raster that is damaged, changed or does not fit the run, and map the others; exit
    with code 1 at the end. The same command tries it again."""
    compile: bool | None = None
    """Compile the network with torch.compile. Takes one or two minutes; worth it for large rasters. Default: no, but on
    an NVIDIA GPU it is captured as a CUDA graph, which takes a moment; --no-compile disables that too."""


@dataclass(frozen=True, config=STRICT)
class StacConfig:
    """Rasters from a STAC catalogue: which items, and which of their assets."""

    stac_url: str = ""
    """Also take rasters of a STAC catalogue: address of an API, or of an item, collection or item collection; or the
    path of such a JSON file."""
    collections: tuple[str, ...] = ()
    """Collections of the API to search. Default: all."""
    bbox: Annotated[tuple[float, ...], Field(max_length=4)] = ()
    """Only items that intersect these degrees: west, south, east and north."""
    datetime: str = ""
    """Only items of this time, such as 2026-06-01/2026-08-31."""
    assets: tuple[str, ...] = ()
    """Names of the assets to take, each a raster. Default: the only GeoTIFF of an item."""
    asset_hosts: tuple[str, ...] = ()
    """Hosts and buckets from which assets are read, besides that of the catalogue, such as
    sentinel-cogs.s3.us-west-2.amazonaws.com or s3://bucket."""
    max_items: Positive = 100
    """Maximum number of items; a search that finds more is an error."""


@dataclass(frozen=True, config=STRICT)
class PartConfig:
    """How a process takes part in a job that several compute."""

    part: str = ""
    """Number of this worker and number of workers, such as 2/8; says only which units it takes first. Default: from the
    variables of an array job of Slurm, AWS Batch or Kubernetes."""
    tolerance: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Accept a worker whose hardware or libraries differ from the first one's, if its probabilities differ by no more
    than this on a few windows, and embeddings by no more than this fraction; for polygons, which need no
    network, any number does. Default: such a worker is refused."""
    ray: str = ""
    """Compute the units on a Ray cluster: HOST:PORT of its head, or local for this machine (docs/scale.md)."""


@dataclass(frozen=True, config=STRICT)
class WorkerConfig(PartConfig):
    """How a process takes part in a map that several compute."""

    one_file: bool = False
    """Also assemble the units into one file, OUT/map.tif, with the bytes that one process would have written."""


Area = Annotated[float, Field(ge=0)]
OptionalArea = Annotated[float | None, Field(ge=0)]
MAX_CLOSE_PX = 50


@dataclass(frozen=True, config=STRICT)
class Cleaning:
    """How the objects of a class are cleaned, chosen on validation tiles. Areas are in m2; in pixels without CRS."""

    objects: str
    """The class."""
    min_area_m2: Area = 0.0
    """Minimum area of an object; smaller objects are dropped."""
    fill_holes_m2: Area = 0.0
    """Holes smaller than this area are filled."""
    close_px: Annotated[int, Field(ge=0, le=MAX_CLOSE_PX)] = 0
    """Gaps of up to twice this many pixels are closed before."""


@dataclass(frozen=True, config=STRICT)
class PolygonConfig:
    """How a class map is polygonised. Lengths are in metres and areas in m2; in pixels for a map without CRS."""

    min_area_m2: OptionalArea = None
    """Minimum polygon area; smaller polygons are dropped. Default: what calibrate chose for objects, else 0."""
    fill_holes_m2: OptionalArea = None
    """Fill holes smaller than this area. Filled pixels belong only to the surrounding polygon. Default: what calibrate
    chose for objects, else 0."""
    close_px: Annotated[int | None, Field(ge=0, le=MAX_CLOSE_PX)] = None
    """Close gaps between pixels of a class that are up to twice this wide. Default: what calibrate chose for objects,
    else 0."""
    simplify_m: Annotated[float, Field(ge=0)] = 0.0
    """Simplification tolerance: maximum distance that an outline may move. 0: none, or two pixels with square."""
    smooth: Annotated[int, Field(ge=0, le=5)] = 0
    """Iterations of corner cutting (Chaikin), for natural shapes."""
    square: bool = False
    """Make outlines right-angled along their main direction, for buildings. Outlines are simplified, too."""
    connectivity: Literal[4, 8] = 4
    """Whether pixels that touch only at a corner belong to the same polygon (8) or not (4)."""
    background: bool = False
    """Also write polygons of class 0 of a binary map."""
    uncertain_below: Annotated[float, Field(ge=0, le=1)] = 0.75
    """A pixel is uncertain if the probability of its class is below this."""


@dataclass(frozen=True, config=STRICT)
class SampleConfig:
    """The size of a stratified random sample of a map, and its allocation to the classes."""

    points: Annotated[int, Field(ge=0)] = 0
    """Number of sample points. 0: as many as standard_error requires."""
    standard_error: Annotated[float, Field(gt=0, lt=0.5)] = 0.015
    """Target standard error of the overall accuracy; its 95 % confidence interval is about twice that to either
    side."""
    expected_accuracy: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Expected user's accuracy of every class. Only the number of points depends on it."""
    min_points: Annotated[int, Field(ge=2)] = 50
    """Minimum number of points per class, however rare it is."""
    band: str = ""
    """For maps of overlapping classes: the class to assess. The strata are its presence and its absence."""
    seed: Seed = 0
    """Random seed of the sample."""


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig(InferenceConfig):
    """How tiles are predicted, and what is scored besides pixels."""

    boundary_m: Annotated[float, Field(ge=0)] = 0.0
    """Also score boundaries, with this tolerance in metres. 0 disables it."""
    objects: str = ""
    """Also score the objects of this class: connected components matched at IoU > 0.5, for crowns or buildings."""


@dataclass(frozen=True, config=STRICT)
class SuggestConfig(InferenceConfig):
    """How the tiles to label next are chosen (active learning)."""

    tiles: Positive = 20
    """Number of tiles to suggest."""
    first: Annotated[int | None, Field(ge=0)] = None
    """Number of tiles at the beginning that are drawn at random, all tiles with the same probability, so that
    thresholds and scores from them are unbiased. Default: 5 where no tile of the rasters is labelled, else 0."""
    seed: Seed = 0
    """Random seed of these tiles."""
    acquisition: Literal["entropy", "margin", "disagreement"] = "entropy"
    """Acquisition function: entropy of the class probabilities, margin between the two highest, or disagreement among
    ensemble members (--ensemble) and augmented views (--tta)."""
    bands: Bands = ()
    """Bands of the rasters in the order of the run's bands: numbers, counted from 1, or names. Default: all bands, in
    file order; of a scene with a file per band, those with the names of the run's."""
    mask: tuple[str, ...] = ()
    """Pixels to leave out, by a quality band: its name and values, such as scl:3,8,9,10, or its bits, such as
    qa_pixel:bits:1-4."""
    resample: bool = False
    """Resample rasters to the pixel size of the training images while reading; rows and columns then refer to the
    resampled raster."""


@dataclass(frozen=True, config=STRICT)
class ReviewConfig(InferenceConfig):
    """How the errors of a run are listed."""

    worst: Positive = 50
    """Maximum number of tiles in the layer of the worst tiles."""
    suspect_px: Positive = 25
    """Minimum size in pixels of a suspected label error."""


@dataclass(frozen=True, config=STRICT)
class ExportConfig:
    """What a model file for another program is like."""

    int8: bool = False
    """For onnx: quantise to 8-bit integers, calibrated on training tiles. Refused unless measured to be 1.2 times as
    fast on this machine and to lose at most half a point of IoU on the validation tiles."""
    window_px: Annotated[int, Field(ge=0, le=MAX_TILE_PX)] = 0
    """For deepness: size in pixels of its square windows. 0: the run's own."""
    threshold: Threshold | None = None
    """For deepness: minimum probability of the positive class, or of all overlapping classes, for which it has only
    one."""
    place: str = ""
    """Write the thresholds and the temperature of this place (geograft calibrate --place-tiles). Default: the run's
    own."""


BASEMAP = re.compile(r"(https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?)/[A-Za-z0-9._~:/?&=%+@!$*()-]*")
BASEMAP_FIELDS = ("{z}", "{x}", "{y}")


@dataclass(frozen=True, config=STRICT)
class ServeConfig:
    """What the map in the browser has beside the project's own layers."""

    basemap: str = ""
    """Address of map tiles to show behind the images, with {z}, {x} and {y}. Nothing is loaded from there before the
    user of the page asks for it. Default: none."""
    attribution: str = ""
    """Attribution that the terms of the basemap require. Default: its server."""

    def __post_init__(self) -> None:
        if self.basemap and not self.basemap_origin:
            raise ValueError(
                f"{self.basemap} is not an address of map tiles: it needs http:// or https://, a server, {{z}}, {{x}} "
                "and {y}, and nothing else in braces"
            )

    @property
    def basemap_origin(self) -> str:
        """The scheme, host and port of the basemap; empty if there is none, or it is no address of tiles."""
        plain = self.basemap
        for name in BASEMAP_FIELDS:
            plain = plain.replace(name, "0", 1)
        found = BASEMAP.fullmatch(plain)
        has_fields = all(self.basemap.count(name) == 1 for name in BASEMAP_FIELDS)
        is_fixed = found is not None and self.basemap.startswith(f"{found[1]}/")
        return found[1].lower() if found and is_fixed and has_fields else ""


def _describe_inherited(base: Any, config: Any) -> None:
    """Give inherited settings their descriptions: pydantic reads docstrings of fields only in their own class."""
    for name, info in base.__pydantic_fields__.items():
        config.__pydantic_fields__[name].description = info.description


for _config in (PredictConfig, EvaluateConfig, SuggestConfig, ReviewConfig):
    _describe_inherited(InferenceConfig, _config)
_describe_inherited(PartConfig, WorkerConfig)
