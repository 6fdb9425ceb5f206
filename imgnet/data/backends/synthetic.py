"""Images without files: made once on the device, so that a benchmark measures everything but the data."""

from collections.abc import Iterable, Iterator

import torch

from imgnet.data.backends.backend import Backend, Batch, BatchKey, layout

POOL_SIZE = 64
_CLASS_SHIFT = 0.5  # standard deviation of a class's mean colour, beside noise of deviation 1 in each pixel
_CLASS_SEED = 0


class SyntheticBackend(Backend):
    """Sample ``i`` is image ``i % POOL_SIZE`` of a pool of noise, in the mean colour of its class ``i % num_classes``.

    So it depends on its index and ``pool_seed`` only, and the classes can be learned. Nothing is cropped or mirrored.
    """

    def __init__(
        self, num_samples: int, num_classes: int, px: int, *, pool_seed: int, channels_last: bool, device: torch.device
    ) -> None:
        self._num_samples = num_samples
        self._num_classes = num_classes
        self._device = device
        # Drawn on the CPU, so that the samples are the same on every device.
        pool = torch.randn(
            min(POOL_SIZE, num_samples), 3, px, px, generator=torch.Generator().manual_seed(1 + pool_seed)
        )
        colors = torch.randn(num_classes, 3, 1, 1, generator=torch.Generator().manual_seed(_CLASS_SEED))
        self._pool = pool.to(device, memory_format=layout(channels_last))
        self._colors = (_CLASS_SHIFT * colors).to(device)

    @property
    def num_samples(self) -> int:
        """Images in the split."""
        return self._num_samples

    def batches(self, keys: Iterable[BatchKey]) -> Iterator[Batch]:
        """Each batch is gathered when it is asked for."""
        for key in keys:
            indices = torch.from_numpy(key.indices).to(self._device, non_blocking=True)
            targets = indices % self._num_classes
            yield Batch(self._pool[indices % len(self._pool)].add_(self._colors[targets]), targets)

    def close(self) -> None:
        """Nothing to end."""


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
