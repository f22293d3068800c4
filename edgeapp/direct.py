"""The pipeline's runner for engines that take one batch after the other: on the CPU, or with inputs of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeapp.pipeline import Engine
from edgeapp.pixels import image_of
from edgeapp.records import Letterbox, Picture, Tensors

Fill = Callable[[Image.Image, tuple[int, int], NDArray[Any]], Letterbox]
"""(picture, its size before it was reduced, where the network input of one picture goes)."""


@dataclass
class DirectHost:
    """A batch in ordinary memory; `filled` says which places hold a picture of this batch."""

    input: NDArray[Any]
    filled: set[int] = field(default_factory=set)
    outputs: Tensors = field(default_factory=dict)


class Direct:
    """The Runner for engines that take one batch after the other: on the CPU, or with inputs of other kinds.

    Args:
        shape: of the input of one picture.
        least: places that an inference has at least; those without a picture are zero.
        hosts: how many batches there are.
    """

    depth = 1
    takes_pixels = False

    def __init__(
        self, engine: Engine, fill: Fill, shape: tuple[int, ...], dtype: Any, *, batch: int, least: int, hosts: int
    ) -> None:
        self._engine = engine
        self._fill = fill
        self._least = least
        self.hosts: Sequence[DirectHost] = [
            DirectHost(np.zeros((max(batch, least), *shape), dtype)) for _ in range(hosts)
        ]

    def begin(self, host: DirectHost) -> None:
        host.filled.clear()

    def fill(self, host: DirectHost, place: int, image: Picture, picture_wh: tuple[int, int]) -> Letterbox:
        letterbox = self._fill(image_of(image), picture_wh, host.input[place])
        host.filled.add(place)
        return letterbox

    def launch(self, host: DirectHost, count: int) -> None:
        places = max(count, self._least)
        for place in set(range(places)) - host.filled:  # an earlier batch's picture, which the model must not see
            host.input[place] = 0
        host.outputs = self._engine.infer({self._engine.inputs[0].name: host.input[:places]})

    def finish(self, host: DirectHost) -> None:
        pass

    def outputs(self, host: DirectHost) -> Tensors:
        return host.outputs
