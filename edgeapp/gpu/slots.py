"""What a ring is made of: memory of batches on the host and on the device, and what works on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeapp.gpu.buffers import Buffer
from edgeapp.gpu.graphs import Graph
from edgeapp.gpu.infer import GpuEngine
from edgeapp.gpu.intake import Input
from edgeapp.records import Shape


@dataclass(frozen=True)
class Layout:
    """Where the outputs of a batch of `batch` lie in one piece of memory, so that one copy fetches them.

    Attributes:
        outputs: of each output tensor the offset (bytes), shape and dtype in memory.
        size: bytes of all.
        fetched: of them, those that are copied out after every run: the first ones.
    """

    batch: int
    outputs: dict[str, tuple[int, Shape, np.dtype[Any]]]
    size: int
    fetched: int


@dataclass
class Host:
    """Page-locked memory of one batch: its pictures go out of here, its outputs come in.

    Attributes:
        slot: where it is on the GPU, while it is there.
        layout: of the outputs that came in.
        whole: all of them, and not only what the filter picked.
    """

    input: Input
    sent: Buffer
    received: Buffer
    slot: Slot | None = None
    layout: Layout | None = None
    whole: bool = False


@dataclass(frozen=True)
class Lane:
    """A stream for computing, and the engine with an execution context for it."""

    engine: GpuEngine
    stream: int


@dataclass
class Slot:
    """Device memory of one batch, and what runs on it.

    Attributes:
        lane: where it is computed.
        copied: what came from the host.
        tensor: the address of the input tensor.
        uploaded, computed, done: events.
        graphs: by batch size.
    """

    lane: Lane
    copied: Buffer
    tensor: int
    output: Buffer
    uploaded: int
    computed: int
    done: int
    graphs: dict[int, Graph] = field(default_factory=dict)
