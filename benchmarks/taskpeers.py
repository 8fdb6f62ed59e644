"""Adapter for TorchGeo's segmentation task, trained by Lightning as in its documentation.

It may need another interpreter, which PEER_PYTHON names (docs/training.md describes the set-up).
"""

import warnings

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from geograft.config import load_recipe
from geograft.legend import IGNORE
from peernets import load_encoder_weights
from plainloop import (
    CLOCKS,
    TilesInMemory,
    TrainingResult,
    ValidationResult,
    ValidationSet,
    scaling_of_weights,
    validate,
)
from trainees import ARTICLE, BATCH, ENCODER, TrainingJob, open_tiles, validation_scenes


class DictTiles(Dataset[dict[str, Tensor]]):
    """The plain loop's tiles as the dictionaries that TorchGeo's tasks expect. Unlabelled pixels become class 0."""

    def __init__(self, tiles: TilesInMemory) -> None:
        self._tiles = tiles

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self._tiles[index]
        return {"image": image, "mask": torch.where(label == IGNORE, 0, label).long()}


def train_torchgeo(job: TrainingJob) -> tuple[TrainingResult, nn.Module]:
    """Train smp's U-Net by TorchGeo's task, with its optimizer and schedule; return the result and the network.

    The learning rate is that of the plain loop's decoders. The benchmark's own scoring after each epoch is not timed.
    """
    from lightning.pytorch import Callback, Trainer
    from torchgeo.trainers import SemanticSegmentationTask

    torch.manual_seed(job.seed)
    tiles, clock = open_tiles(job), CLOCKS[job.clock]
    task = SemanticSegmentationTask(
        model="unet", backbone=f"tu-{ENCODER}", task="binary", loss="bce", lr=load_recipe(ARTICLE).train.decoder_lr
    )
    load_encoder_weights(task.model.encoder.model, job.weights)
    start = clock()
    scaling = scaling_of_weights(tiles.meta.scale or 1.0)
    val = ValidationSet(
        TilesInMemory(tiles.samples("val", unique_pixels=True), scaling), validation_scenes(tiles)[1], BATCH
    )
    train_tiles = DictTiles(TilesInMemory(tiles.samples("train"), scaling, augment=True))
    epochs: list[ValidationResult] = []
    scoring_seconds = [0.0]

    class Scoring(Callback):  # type: ignore[misc]
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
            scoring_start = clock()
            result = validate(pl_module, val, memory_format=torch.contiguous_format)
            epochs.append(
                ValidationResult(float(trainer.callback_metrics.get("val_loss", float("nan"))), result.counts)
            )
            scoring_seconds[0] += clock() - scoring_start

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on workers and devices
        trainer = Trainer(
            max_epochs=job.epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[Scoring()],
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, DataLoader(train_tiles, BATCH, shuffle=True), DataLoader(DictTiles(val.tiles), BATCH))
    return TrainingResult.of(clock() - start - scoring_seconds[0], epochs), task.model
