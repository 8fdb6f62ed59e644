"""TorchGeo's task for segmentation, trained by Lightning as its documentation does: an adapter, and nothing else of it.

It may need another interpreter; PEER_PYTHON names it (docs/training.md says how to make one).
"""

import warnings

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from geograft.config import load_recipe
from geograft.legend import IGNORE
from peernets import fill
from plainloop import Part, TilesInMemory, Validated, validated
from train_one import CLOCKS, Trained, scaling_of_weights
from trainees import ARTICLE, BATCH, ENCODER, Job, opened, scenes_of


class AsDictionaries(Dataset[dict[str, Tensor]]):
    """The plain loops' tiles as TorchGeo's tasks take them. A pixel without a label is of class 0."""

    def __init__(self, tiles: TilesInMemory) -> None:
        self._tiles = tiles

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self._tiles[index]
        return {"image": image, "mask": torch.where(label == IGNORE, 0, label).long()}


def in_torchgeo(job: Job) -> tuple[Trained, nn.Module]:
    """Return what TorchGeo's task makes of smp's U-Net, and the network: its own optimizer, schedule and metrics.

    The rate is that of the plain loops' decoders. What the benchmark itself scores after each epoch is not timed.
    """
    from lightning.pytorch import Callback, Trainer
    from torchgeo.trainers import SemanticSegmentationTask

    torch.manual_seed(job.seed)
    tiles, clock = opened(job), CLOCKS[job.clock]
    task = SemanticSegmentationTask(
        model="unet", backbone=f"tu-{ENCODER}", task="binary", loss="bce", lr=load_recipe(ARTICLE).train.decoder_lr
    )
    fill(task.model.encoder.model, job.weights)
    start = clock()
    scaling = scaling_of_weights(tiles.meta.scale or 1.0)
    val = Part(TilesInMemory(tiles.samples("val", unique_pixels=True), scaling), scenes_of(tiles)[1], BATCH)
    shown = AsDictionaries(TilesInMemory(tiles.samples("train"), scaling, turned=True))
    epochs: list[Validated] = []
    scoring = [0.0]

    class Scored(Callback):  # type: ignore[misc]
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
            begun = clock()
            found = validated(pl_module, val, layout=torch.contiguous_format)
            epochs.append(Validated(float(trainer.callback_metrics.get("val_loss", float("nan"))), found.counts))
            scoring[0] += clock() - begun

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on workers and devices
        trainer = Trainer(
            max_epochs=job.epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[Scored()],
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, DataLoader(shown, BATCH, shuffle=True), DataLoader(AsDictionaries(val.tiles), BATCH))
    return Trained.of(clock() - start - scoring[0], epochs), task.model
