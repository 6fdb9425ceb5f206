"""What back ends read of some images, and who reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imgnet.data.backends.backend import BatchKey
from imgnet.data.sampling.view import Cut

Bytes = npt.NDArray[np.uint8]
NO_PIXELS = np.zeros((1, 1, 3), np.uint8)
"""Stands in for an image that cannot be read."""


@dataclass(frozen=True)
class Pieces:
    """Of each image the part that a view takes, ``[h, w, 3]``; or its encoded bytes, and where that part is in them."""

    data: list[Bytes]
    cut: Cut
    bad: dict[int, str]
    """Places whose image cannot be read or decoded, each with a line that names file and reason; one black pixel."""


class Reader(Protocol):
    """Reads pieces. Used by one thread at a time."""

    def __call__(self, key: BatchKey) -> Pieces:
        """The images of ``key``, of which a view takes the parts that belong to its epoch."""
        ...


def joined(chunks: Sequence[Pieces]) -> Pieces:
    """The pieces of one batch that were read apart."""
    data: list[Bytes] = []
    bad: dict[int, str] = {}
    for chunk in chunks:
        bad |= {len(data) + place: line for place, line in chunk.bad.items()}
        data += chunk.data
    parts = np.concatenate([chunk.cut.parts for chunk in chunks])
    boxes = np.concatenate([chunk.cut.boxes for chunk in chunks])
    return Pieces(data, Cut(parts, boxes, np.concatenate([chunk.cut.mirrored for chunk in chunks])), bad)
