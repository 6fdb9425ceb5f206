"""Large arrays on the CPU that are used again: the system takes four times as long to give one as to fill it."""

import math
import weakref
from collections import deque
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NUM_KEPT = 6  # the batches that a pool has begun, that of the step, and the one after it


@final
class Buffers:
    """Tensors of one type. The memory of one is given to the next when nothing refers to the first any more."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._free: deque[npt.NDArray] = deque(maxlen=_NUM_KEPT)

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised tensor, packed in the order of its dimensions. Safe in threads."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, self._dtype)
        if memory.size < size:
            memory = np.empty(size, self._dtype)
        # The tensor, every view of it and the graph of a backward pass hold this array, and nothing else does.
        array = memory[:size].reshape(shape)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array)
