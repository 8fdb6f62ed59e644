"""How long a batch of tiles takes."""

import time
from collections.abc import Callable

from numpy import ndarray

from geograft.geo.mapping.batches import Batch


def batch_seconds(model: Callable[[ndarray, ndarray], object], batch: Batch | None) -> float | None:
    """Return how long `model` takes for a batch; None without one. Runs it twice: the second time counts."""
    if batch is None:
        return None
    model(batch.pixels, batch.valid)
    started = time.perf_counter()
    model(batch.pixels, batch.valid)
    return time.perf_counter() - started
