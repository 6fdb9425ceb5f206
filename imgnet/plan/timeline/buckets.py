"""Which parameters share a message, from their sizes alone, and when a bucket's gradients are ready.

The same splits as :func:`imgnet.parallel.flat.split_into_buckets` and ``DistributedDataParallel`` make, without torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Gradient(NamedTuple):
    """One parameter's gradient."""

    num_values: int
    ready: float
    """The share of a forward and backward pass after which it is there, in (0, 1]."""


@dataclass(frozen=True)
class Bucket:
    """Parameters that are one message."""

    num_values: int
    ready: float
    """The share of a pass after which all gradients of this bucket, and of those before it, are there."""


def by_registration(gradients: Sequence[Gradient], bucket_mb: int, at_least: int = 1) -> list[Bucket]:
    """Buckets of the decentralized engine: in the reverse of the order in which the model registers its parameters.

    Args:
        gradients: of all parameters.
        bucket_mb: size of a message.
        at_least: so many, of smaller messages where it needs them.
    """
    limit = bucket_mb * 2**20
    buckets = _split(reversed(gradients), limit)
    while len(buckets) < min(at_least, len(gradients)):
        limit //= 2
        buckets = _split(reversed(gradients), limit)
    return buckets


def by_gradient(gradients: Sequence[Gradient], bucket_mb: int) -> list[Bucket]:
    """Buckets of ``DistributedDataParallel`` from its second step on: in the order in which gradients are ready."""
    order = sorted(range(len(gradients)), key=lambda place: (gradients[place].ready, -place))
    return _split((gradients[place] for place in order), bucket_mb * 2**20)


def _split(gradients: Iterable[Gradient], limit: int) -> list[Bucket]:
    """Each is closed when it holds so many bytes."""
    buckets: list[Bucket] = []
    size = limit
    ready = 0.0
    for gradient in gradients:
        ready = max(ready, gradient.ready)
        is_full = size >= limit
        size = 4 * gradient.num_values + (0 if is_full else size)
        values = gradient.num_values + (0 if is_full else buckets.pop().num_values)
        buckets.append(Bucket(values, ready))
    return buckets
