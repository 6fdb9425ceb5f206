"""Which worker reads which sample at which step, as pure functions."""

import numpy as np

from imgnet.data.sampling.counter import ORDER_DRAW, Ints, hashes


def epoch_order(seed: int, epoch: int, num_samples: int) -> Ints:
    """All sample indices in the order of this epoch: int64 ``[num_samples]``, the same for every world size."""
    # Sorting by distinct random keys is a uniform shuffle, and unlike `Generator.permutation` it is the same in every
    # version of NumPy.
    keys = hashes(seed, epoch, np.arange(num_samples), [ORDER_DRAW])[:, 0]
    return np.argsort(keys).astype(np.int64, copy=False)


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Whole global batches in an epoch. The samples that are left over differ from epoch to epoch."""
    return num_samples // global_batch_size


def step_indices(order: Ints, step: int, global_batch_size: int, rank: int, world_size: int) -> Ints:
    """What one worker reads at ``step`` of the epoch: int64 ``[global_batch_size // world_size]``.

    The global batch is the same set on any number of workers; each takes a contiguous part of it.
    """
    if global_batch_size % world_size:
        raise ValueError(f"global_batch_size={global_batch_size} is not divisible by {world_size} workers")
    if not 0 <= step < steps_per_epoch(len(order), global_batch_size):
        raise IndexError(f"step {step} of an epoch of {steps_per_epoch(len(order), global_batch_size)}")
    local_batch_size = global_batch_size // world_size
    start = step * global_batch_size + rank * local_batch_size
    return order[start : start + local_batch_size]


def evaluation_indices(num_samples: int, rank: int, world_size: int) -> Ints:
    """What one worker evaluates: int64, ascending.

    Over all workers each sample exactly once, in parts whose sizes differ by at most one.
    """
    # Strided, so that each worker sees every class although the files are sorted by class.
    return np.arange(rank, num_samples, world_size, dtype=np.int64)
