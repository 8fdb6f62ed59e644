"""Make one map as a whole command and print its cost as JSON: `python whole_map.py NAME RUN RASTER OUT`.

NAME is "smp" or "smp-channels-last" (segmentation_models.pytorch's U-Net with the run's encoder and random weights, in
a plain loop with the run's tiles at half overlap, in batches of 8), "default" (the run's network in the same loop), or
a backend of `geograft predict`, with `:SIZE:OVERLAP` for windows other than the run's. Processor time includes imports.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from measured import peak_mb

STAGES: dict[str, float] = {}
"""Processor seconds by stage."""


def processor_seconds() -> float:
    """Return the processor seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(owner: Any, name: str, stage: str) -> None:
    """Add the processor time of a function's calls, in their own threads, to a stage."""
    function: Callable[..., Any] = getattr(owner, name)

    @wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*args, **options)
        finally:
            STAGES[stage] = STAGES.get(stage, 0.0) + time.thread_time() - began

    setattr(owner, name, wrapped)


def map_with_geograft(backend: str, run: Path, raster: Path, out: Path) -> None:
    """Run `geograft predict`, and time its stages."""
    backend, *windows = backend.split(":")
    import geograft.commands.predict as predicting
    from geograft.cli import main
    from geograft.geo.rasters.mosaic import Mosaic
    from geograft.inference.predictor import EnsemblePredictor
    from geograft.mapping import job
    from geograft.mapping.blend import _Sums
    from geograft.mapping.ledger import Ledger

    STAGES["import"] = processor_seconds()
    timed(predicting, "_load_models", "load")
    timed(Mosaic, "read", "read")
    timed(EnsemblePredictor, "_predict", "network")
    for name in ("add", "finish_lane"):
        timed(_Sums, name, "blend")
    timed(Ledger, "add", "write")
    timed(job, "_write_files", "write")
    options = ["--backend", backend] + (
        ["--window-px", windows[0], "--overlap", str(int(windows[1]) / int(windows[0]))] if windows else []
    )
    try:
        main(["predict", str(run), str(raster), "--out", str(out), *options])
    except SystemExit as ended:
        if ended.code:
            raise


def map_with_plain_loop(name: str, run: Path, raster: Path, out: Path) -> None:
    """Predict with a loop that reads tiles one by one, and write the classes."""
    import numpy as np
    import torch

    from geograft.card import read_card
    from tiling import eager_predictor, load_network, plain_loop, write_map

    torch.set_num_threads(1)
    if name == "default":
        card, network = load_network(run)
    else:
        import segmentation_models_pytorch as smp

        card = read_card(run)
        encoder = card.model.encoder.replace("tf_efficientnet_lite0", "timm-tf_efficientnet_lite0").replace("_b", "-b")
        network = smp.Unet(encoder, encoder_weights=None, in_channels=len(card.band_names), classes=1).eval()
    if name == "smp-channels-last":
        network = network.to(memory_format=torch.channels_last)
    probability = plain_loop(eager_predictor(card, network), raster, card.tile_px, 0.5, 8)
    write_map((probability >= card.threshold).astype(np.uint8), raster, out)


def main() -> None:
    """Make the map and print seconds of processor and wall time, peak memory, and the stages."""
    name, run, raster, out = sys.argv[1], *map(Path, sys.argv[2:])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.perf_counter()
    plain = name.startswith("smp") or name == "default"
    (map_with_plain_loop if plain else map_with_geograft)(name, run, raster, out)
    total = processor_seconds()
    result = {"cpu": total, "wall": time.perf_counter() - began, "peak_mb": peak_mb(), "stages": STAGES}
    print("\n" + json.dumps(result | {"torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
