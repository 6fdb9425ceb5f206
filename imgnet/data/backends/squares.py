"""Parts of images to squares on the CPU, in threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imgnet.data.backends.buffers import Buffers
from imgnet.data.sampling.view import View


@final
class Squares:
    """Resizes and mirrors as the view says."""

    def __init__(self, view: View, num_threads: int) -> None:
        self._view = view
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, "resize")
        self._buffers = Buffers(np.uint8)

    def __call__(self, parts: Sequence[npt.NDArray[np.uint8]], mirrored: npt.NDArray[np.bool_]) -> Tensor:
        """uint8 ``[h, w, 3]`` each to uint8 ``[n, px, px, 3]``."""
        squares = self._buffers.empty(len(parts), self._view.px, self._view.px, 3)
        pixels = squares.numpy()

        def render(first: int) -> None:
            # Every so many, so that the threads end together; one at a time, so that none holds the GIL for long.
            for place in range(first, len(parts), self._num_threads):
                part = torch.from_numpy(parts[place]).permute(2, 0, 1)
                self._view.render([part], mirrored[place : place + 1], pixels[place : place + 1])

        list(self._threads.map(render, range(self._num_threads)))
        return squares

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()
