"""Settings of what a trained run is used for: maps, polygons, samples, scores and lists."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from geograft.config.training import STRICT, Positive


@dataclass(frozen=True, config=STRICT)
class PredictConfig:
    """How a raster is mapped."""

    overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.5
    """Share of a tile that its neighbour also predicts; the two are blended."""
    batch_size: Positive = 8
    """Tiles in one call of the network."""
    tta: Literal[1, 2, 4, 8] = 1
    """Flips and quarter turns of each tile that the network is shown; their mean counts. So many times as slow."""
    probabilities: Literal["none", "uint8", "float16"] = "none"
    """Also write the probability of every class beside the map: uint8 (0 to 250 stand for 0 to 1) or float16."""
    uncertainty: bool = False
    """Also write the uncertainty of every pixel beside the map: the entropy of its probabilities, from 0 to 1, or with
    several runs the standard deviation of theirs."""
    applicability: bool = False
    """Also write beside the map where the rasters look like what the run was trained on, and where they do not."""
    bands: tuple[Positive, ...] = ()
    """Which bands of the rasters are the run's, in its order, counted from 1. Without: all, as they are."""
    resample: bool = False
    """Bring rasters to the ground resolution of training while they are read; the map has that resolution."""
    backend: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    """What runs the network. auto: on a CPU the fastest that is installed and agrees with torch; torch on a GPU."""
    compile: bool = False
    """Let torch compile the network first: a minute or two that large rasters earn back."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass(frozen=True, config=STRICT)
class PolygonConfig:
    """How a class map becomes polygons. Lengths and areas are on the ground; in pixels for a map without CRS."""

    min_area_m2: Annotated[float, Field(ge=0)] = 0.0
    """Polygons smaller than this are left out."""
    fill_holes_m2: Annotated[float, Field(ge=0)] = 0.0
    """Holes smaller than this are filled; what fills them belongs to the polygon around it alone."""
    simplify_m: Annotated[float, Field(ge=0)] = 0.0
    """Largest distance in metres that simplifying may move an outline."""
    smooth: Annotated[int, Field(ge=0, le=5)] = 0
    """Rounds of cutting the corners of outlines, for shapes of nature."""
    square: bool = False
    """Give outlines right angles along their main direction, for buildings."""
    connectivity: Literal[4, 8] = 4
    """Pixels that touch at a corner only belong to one polygon (8) or to two (4)."""
    background: bool = False
    """Also write the polygons of class 0 of a map of two classes."""
    uncertain_below: Annotated[float, Field(ge=0, le=1)] = 0.75
    """A pixel counts as uncertain where the probability of its class is below this."""


@dataclass(frozen=True, config=STRICT)
class SampleConfig:
    """How many points of a map are drawn to be labelled, and how they are shared among its classes."""

    points: Annotated[int, Field(ge=0)] = 0
    """Number of points. 0: as many as standard_error asks for."""
    standard_error: Annotated[float, Field(gt=0, lt=0.5)] = 0.015
    """Standard error that overall accuracy shall have; its 95 % interval is twice that to either side."""
    expected_accuracy: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of every class that is expected to be mapped right. Only the number of points depends on it."""
    min_points: Annotated[int, Field(ge=2)] = 50
    """Least number of points of a class, however rare it is."""
    band: str = ""
    """Of a map of overlapping classes, the class to look at: where it is and where it is not are sampled."""
    seed: int = 0
    """Seed of the draw."""


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    """What is scored beside pixels."""

    boundary_m: Annotated[float, Field(ge=0)] = 0.0
    """Also score boundaries: right within so many metres. 0: do not."""
    objects: str = ""
    """Also score the objects of this class, connected pixels matched at IoU over 0.5: crowns, buildings."""


@dataclass(frozen=True, config=STRICT)
class SuggestConfig:
    """Which tiles are suggested to be labelled next."""

    tiles: Positive = 20
    """Number of tiles to suggest."""
    acquisition: Literal["entropy", "margin", "disagreement"] = "entropy"
    """How unsure of a pixel: entropy of its probabilities, how near the two largest are, or how far runs (--ensemble)
    and turns (--tta) disagree."""
    tta: Literal[1, 2, 4, 8] = 1
    """Flips and quarter turns of each tile that the network is shown. So many times as slow."""
    batch_size: Positive = 8
    """Tiles in one call of the network."""
    bands: tuple[Positive, ...] = ()
    """Which bands of the rasters are the run's, in its order, counted from 1. Without: all, as they are."""
    resample: bool = False
    """Bring rasters to the ground resolution of training while they are read; rows and columns are then those of the
    resampled raster."""
    backend: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    """What runs the network. auto: on a CPU the fastest that is installed and agrees with torch; torch on a GPU."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass(frozen=True, config=STRICT)
class ReviewConfig:
    """What is listed of a run's mistakes."""

    worst: Positive = 50
    """Most tiles in the layer of the worst."""
    suspect_px: Positive = 25
    """Least pixels of a place whose label is suspected."""
