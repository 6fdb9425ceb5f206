"""PowerSGD as its paper writes it (Vogels et al. 2019, algorithms 1 and 2), in float64, one gradient at a time."""

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


class LowRank:
    """The compression of one gradient: a right factor that all workers share, and the error of each.

    Args:
        shape: of the gradient; its matrix has a row for each output, with the columns in channels_last order.
        rank: of the compression.
        seed: of the normal numbers that torch's hook begins with.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, seed: int) -> None:
        n, m = shape[0], int(np.prod(shape[1:]))
        normal = torch.randn(m, min(n, m, rank), generator=torch.Generator().manual_seed(seed))
        self.q = normal.double().numpy()
        self.errors: list[Array] = []

    def average(self, gradients: list[Array]) -> Array:
        """The mean gradient as it is after compression; each worker keeps what that leaves out."""
        matrices = [np.moveaxis(gradient, 1, -1).reshape(len(gradient), -1) for gradient in gradients]
        matrices = [
            matrix + error for matrix, error in zip(matrices, self.errors or [0.0] * len(matrices), strict=True)
        ]
        p = np.linalg.qr(np.mean([matrix @ self.q for matrix in matrices], axis=0))[0]
        self.q = np.mean([matrix.T @ p for matrix in matrices], axis=0)
        mean = p @ self.q.T
        self.errors = [matrix - mean for matrix in matrices]
        outputs, inputs, *places = gradients[0].shape
        return np.moveaxis(mean.reshape(outputs, *places, inputs), -1, 1)


class PowerSgdReference:
    """The mean gradients of a model, step by step.

    Args:
        shapes: of the parameters, in the order in which their gradients come; each is a bucket of its own.
        rank: of the compression.
        min_compression_rate: gradients that would not become so many times smaller are averaged exactly, as vectors.
    """

    def __init__(self, shapes: list[tuple[int, ...]], rank: int, min_compression_rate: float) -> None:
        seeds = np.random.RandomState(0)
        self.compressions: list[LowRank | None] = []
        for shape in shapes:
            seed = int(seeds.randint(1_000_000_000))
            n, m = shape[0], int(np.prod(shape[1:]))
            is_smaller = (n + m) * min(n, m, rank) * min_compression_rate < n * m
            self.compressions.append(LowRank(shape, rank, seed) if is_smaller else None)

    def average(self, gradients: list[list[Array]]) -> list[Array]:
        """Of each worker's gradients in the order of ``shapes``."""
        by_parameter = [list(of_workers) for of_workers in zip(*gradients, strict=True)]
        return [
            np.mean(of_workers, axis=0) if compression is None else compression.average(of_workers)
            for compression, of_workers in zip(self.compressions, by_parameter, strict=True)
        ]
