"""Where a training step's time goes, by part of the network and by kind of operator: `python step_profile.py JOB.json`.

Operators are torch.profiler's, each with the time that it took without those that it called. Forward, an operator
belongs to the part that was running. Backward, autograd runs it for an operator of the forward pass, and tells which
by a sequence number: it belongs where that one does. The profiler itself makes small operators look dearer than they
are. Prints milliseconds a tile as JSON.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from geograft.networks.network import Network
from geograft.training.loader import TrainingBatch
from learners import LAYOUTS, Learner, learner
from step_times import feed
from trainees import BATCH, OURS, Job, opened

MARK = "part: "
BACKWARD = "autograd::engine::evaluate_function"
FEED, LOSS, OPTIMIZER, BETWEEN = "feed", "loss", "optimizer", "between the parts"
OWN = (FEED, LOSS, OPTIMIZER)
"""Parts that are no convolutions' business: each is a kind of its own."""
KINDS = {
    "batch norm": ("batch_norm",),
    "activations": ("silu", "relu", "sigmoid", "hardtanh", "threshold", "gelu", "hardswish"),
    "enlarging": ("upsample", "pixel_shuffle", "pixel_unshuffle", "grid_sampler"),
    "pooling, means": ("pool", "mean"),
}
"""Kinds of operators, by what their names hold. Convolutions are told by their weights; the rest is REST."""
REST = "sums and copies"
WARM_UP = 1


def parts_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a network by name, encoder stages first. No part lies within another; a name may repeat."""
    body = network.body if isinstance(network, Network) else network
    stages = list(network.stages) if isinstance(network, Network) else [body.get_submodule("encoder")]
    inside = {module for stage in stages for module in stage.modules()}
    encoder = [(f"encoder, stage {i}" if len(stages) > 1 else "encoder", stage) for i, stage in enumerate(stages, 1)]
    others = [
        (name, each)
        for name, child in body.named_children()
        if not inside & set(child.modules())
        for each in (child if isinstance(child, nn.ModuleList) else [child])
    ]
    return encoder + others


def marked(network: nn.Module) -> None:
    """Have every part of the network say to the profiler when it runs."""
    for name, module in parts_of(network):
        _mark(module, MARK + name)


def events_of(learning: Learner, stream: Iterator[TrainingBatch], steps: int) -> list[FunctionEvent]:
    """Return the operators of `steps` training steps, after one that warms up."""
    layout = LAYOUTS[learning.layouts[0]]
    learning.network.to(memory_format=layout).train()
    marked(learning.network)
    for _ in range(WARM_UP):
        _step(learning, *next(stream))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        for _ in range(steps):
            with record_function(MARK + FEED):
                batch = next(stream)
            _step(learning, *batch)
    return list(found.events())


def by_part(events: Sequence[FunctionEvent]) -> dict[str, tuple[float, float]]:
    """Return the microseconds of every part, forward and backward, in the order in which they first run."""
    places = Places(events)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        part, backward = places.of(event)
        found[part][backward] += event.self_cpu_time_total
    return {part: (forward, backward) for part, (forward, backward) in found.items()}


def by_kind(events: Sequence[FunctionEvent]) -> dict[str, float]:
    """Return the microseconds of every kind of operator, forward and backward together."""
    places = Places(events)
    found: dict[str, float] = defaultdict(float)
    for event in events:
        part, _ = places.of(event)
        found[part if part in OWN else kind_of(event)] += event.self_cpu_time_total
    return dict(found)


class Places:
    """Finds to which part an operator belongs."""

    def __init__(self, events: Sequence[FunctionEvent]) -> None:
        self._parts: dict[int, str] = {}
        # What needs no gradient has the number of the next operator that does: the last of each number counts.
        for event in sorted(events, key=lambda each: each.time_range.start):
            part = _marked_part(event)
            if part and event.sequence_nr >= 0:
                self._parts[event.sequence_nr] = part

    def of(self, event: FunctionEvent) -> tuple[str, bool]:
        """Return an operator's part, and whether it runs backward."""
        for each in _with_callers(event):
            if each.name.startswith(BACKWARD):
                # The gradients' last stop, in the weights, has no operator of the forward pass.
                return self._parts.get(each.sequence_nr, BETWEEN), True
        return _marked_part(event) or BETWEEN, False


def kind_of(event: FunctionEvent) -> str:
    """Return an operator's kind, read from its name and the names of those that called it."""
    for each in _with_callers(event):
        if each.name in ("aten::convolution", "aten::convolution_backward", "aten::_convolution"):
            shapes: Any = each.input_shapes
            return convolution_kind(shapes[2 if each.name.endswith("backward") else 1])
        for kind, words in KINDS.items():
            if each.name.startswith("aten::") and any(word in each.name for word in words):
                return kind
    return REST


def convolution_kind(weight: Sequence[int]) -> str:
    """Return what kind of convolution has a weight of this shape: outputs, inputs of each, height, width."""
    if weight[2] == 1:
        return "convolutions 1 x 1"
    return "convolutions by channel" if weight[1] == 1 < weight[0] else "convolutions k x k"


def main() -> None:
    """Print the profiles of one job as JSON: of Geograft's default by part, and of all named by kind."""
    job, steps = Job.read(Path(sys.argv[1])), int(sys.argv[2])
    torch.set_num_threads(job.threads)
    tiles = steps * min(BATCH, len(opened(job).split("train")))
    found: dict[str, Any] = {"kinds": {}}
    for name in sys.argv[3:]:
        events = events_of(learner(replace(job, name=name)), feed(job), steps)
        found["kinds"][name] = {kind: spent / tiles / 1e3 for kind, spent in by_kind(events).items()}
        if name == OURS:
            found["parts"] = {part: [spent / tiles / 1e3 for spent in both] for part, both in by_part(events).items()}
    print(json.dumps(found))


def _step(learning: Learner, images: torch.Tensor, label: torch.Tensor) -> None:
    images = images.contiguous(memory_format=LAYOUTS[learning.layouts[0]])
    outputs = learning.network(images)
    with record_function(MARK + LOSS):
        loss = learning.loss(outputs, label)
    with record_function(MARK + OPTIMIZER):
        learning.optimizer.zero_grad()
    loss.backward()
    with record_function(MARK + OPTIMIZER):
        learning.optimizer.step()
        learning.after()


def _mark(module: nn.Module, name: str) -> None:
    running: list[record_function] = []

    def begin(*_: Any) -> None:
        running.append(record_function(name))
        running[-1].__enter__()

    def end(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def _with_callers(event: FunctionEvent) -> Iterator[FunctionEvent]:
    each: FunctionEvent | None = event
    while each is not None:
        yield each
        each = each.cpu_parent


def _marked_part(event: FunctionEvent) -> str:
    names = (each.name for each in _with_callers(event))
    return next((name.removeprefix(MARK) for name in names if name.startswith(MARK)), "")


if __name__ == "__main__":
    main()
