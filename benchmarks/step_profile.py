"""Profile a training step by part and by kind of operator: `python step_profile.py JOB.json STEPS NAME ...`.

Times are the self times of torch.profiler's operators. A forward operator belongs to the part that called it. A
backward operator belongs to the part of its forward operator, found by autograd's sequence number. The profiler's
overhead inflates small operators. Prints milliseconds per tile as JSON.
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
from learners import MEMORY_FORMATS, Learner, build_learner
from step_times import load_batches
from trainees import BATCH, OURS, TrainingJob, open_tiles

MARK = "part: "
BACKWARD = "autograd::engine::evaluate_function"
LOADING, LOSS, OPTIMIZER, OTHER = "data loading", "loss", "optimizer", "other"
OWN = (LOADING, LOSS, OPTIMIZER)
"""Parts outside the network. In the table of kinds, each is a kind of its own."""
KINDS = {
    "batch norm": ("batch_norm",),
    "activations": ("silu", "relu", "sigmoid", "hardtanh", "threshold", "gelu", "hardswish"),
    "upsampling": ("upsample", "pixel_shuffle", "pixel_unshuffle", "grid_sampler"),
    "pooling, means": ("pool", "mean"),
}
"""Kinds of operators, by substrings of their names. Convolutions are classified by their weights; others are REST."""
REST = "sums and copies"
PART_NAMES = {"coarse": "auxiliary head"}
"""Names of a network's modules that the table words differently."""
WARM_UP = 1


def named_parts(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a network by name, encoder stages first. Parts do not overlap, and names may repeat."""
    body = network.body if isinstance(network, Network) else network
    stages = list(network.stages) if isinstance(network, Network) else [body.get_submodule("encoder")]
    inside = {module for stage in stages for module in stage.modules()}
    encoder = [(f"encoder, stage {i}" if len(stages) > 1 else "encoder", stage) for i, stage in enumerate(stages, 1)]
    others = [
        (PART_NAMES.get(name, name), each)
        for name, child in body.named_children()
        if not inside & set(child.modules())
        for each in (child if isinstance(child, nn.ModuleList) else [child])
    ]
    return encoder + others


def mark_parts(network: nn.Module) -> None:
    """Mark each part of the network with a profiler range."""
    for name, module in named_parts(network):
        _mark(module, MARK + name)


def profile_steps(learner: Learner, stream: Iterator[TrainingBatch], steps: int) -> list[FunctionEvent]:
    """Return the operators of `steps` training steps, after a warm-up step."""
    layout = MEMORY_FORMATS[learner.memory_formats[0]]
    learner.network.to(memory_format=layout).train()
    mark_parts(learner.network)
    for _ in range(WARM_UP):
        _step(learner, *next(stream))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        for _ in range(steps):
            with record_function(MARK + LOADING):
                batch = next(stream)
            _step(learner, *batch)
    return list(found.events())


def time_by_part(events: Sequence[FunctionEvent]) -> dict[str, tuple[float, float]]:
    """Return the microseconds of each part, forward and backward, in the order of their first operator."""
    lookup = PartLookup(events)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        part, backward = lookup.part_of(event)
        found[part][backward] += event.self_cpu_time_total
    return {part: (forward, backward) for part, (forward, backward) in found.items()}


def time_by_kind(events: Sequence[FunctionEvent]) -> dict[str, float]:
    """Return the microseconds of each kind of operator, forward and backward together."""
    lookup = PartLookup(events)
    found: dict[str, float] = defaultdict(float)
    for event in events:
        part, _ = lookup.part_of(event)
        found[part if part in OWN else kind_of(event)] += event.self_cpu_time_total
    return dict(found)


class PartLookup:
    """Finds the part that an operator belongs to."""

    def __init__(self, events: Sequence[FunctionEvent]) -> None:
        self._parts: dict[int, str] = {}
        # An operator without gradient has the number of the next one with a gradient, so the last one counts.
        for event in sorted(events, key=lambda each: each.time_range.start):
            part = _part_in_names(event)
            if part and event.sequence_nr >= 0:
                self._parts[event.sequence_nr] = part

    def part_of(self, event: FunctionEvent) -> tuple[str, bool]:
        """Return an operator's part, and whether it belongs to the backward pass."""
        for each in _call_chain(event):
            if each.name.startswith(BACKWARD):
                # Accumulating gradients has no forward operator.
                return self._parts.get(each.sequence_nr, OTHER), True
        return _part_in_names(event) or OTHER, False


def kind_of(event: FunctionEvent) -> str:
    """Return an operator's kind, from its name and those of its callers."""
    for each in _call_chain(event):
        if each.name in ("aten::convolution", "aten::convolution_backward", "aten::_convolution"):
            shapes: Any = each.input_shapes
            return convolution_kind(shapes[2 if each.name.endswith("backward") else 1])
        for kind, words in KINDS.items():
            if each.name.startswith("aten::") and any(word in each.name for word in words):
                return kind
    return REST


def convolution_kind(weight: Sequence[int]) -> str:
    """Return the kind of a convolution from the shape of its weight, (out, in per group, height, width)."""
    if weight[2] == 1:
        return "convolutions 1 x 1"
    return "convolutions, depthwise" if weight[1] == 1 < weight[0] else "convolutions k x k"


def main() -> None:
    """Print profiles as JSON: by part for Geograft's default, and by kind for all named contestants."""
    job, steps = TrainingJob.read(Path(sys.argv[1])), int(sys.argv[2])
    torch.set_num_threads(job.threads)
    tiles = steps * min(BATCH, len(open_tiles(job).split("train")))
    found: dict[str, Any] = {"kinds": {}}
    for name in sys.argv[3:]:
        events = profile_steps(build_learner(replace(job, name=name)), load_batches(job), steps)
        found["kinds"][name] = {kind: microseconds / tiles / 1e3 for kind, microseconds in time_by_kind(events).items()}
        if name == OURS:
            found["parts"] = {
                part: [microseconds / tiles / 1e3 for microseconds in both]
                for part, both in time_by_part(events).items()
            }
    print(json.dumps(found))


def _step(learner: Learner, images: torch.Tensor, label: torch.Tensor) -> None:
    images = images.contiguous(memory_format=MEMORY_FORMATS[learner.memory_formats[0]])
    outputs = learner.network(images)
    with record_function(MARK + LOSS):
        loss = learner.loss(outputs, label)
    with record_function(MARK + OPTIMIZER):
        learner.optimizer.zero_grad()
    loss.backward()
    with record_function(MARK + OPTIMIZER):
        learner.optimizer.step()
        learner.after_step()


def _mark(module: nn.Module, name: str) -> None:
    running: list[record_function] = []

    def begin(*_: Any) -> None:
        running.append(record_function(name))
        running[-1].__enter__()

    def end(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def _call_chain(event: FunctionEvent) -> Iterator[FunctionEvent]:
    each: FunctionEvent | None = event
    while each is not None:
        yield each
        each = each.cpu_parent


def _part_in_names(event: FunctionEvent) -> str:
    names = (each.name for each in _call_chain(event))
    return next((name.removeprefix(MARK) for name in names if name.startswith(MARK)), "")


if __name__ == "__main__":
    main()
