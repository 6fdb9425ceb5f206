"""What happens to images that cannot be read: one rule for every back end."""

import logging
import re
from collections.abc import Mapping

import numpy as np

from imgnet.config import OnBadImage
from imgnet.data.sampling.counter import Ints
from imgnet.data.sources.folder import Split
from imgnet.data.sources.source import ImageError, Source

_logger = logging.getLogger(__name__)


class BadImages:
    """The policy of one worker for one split, and its count of what was skipped."""

    def __init__(self, on_bad_image: OnBadImage, max_bad_images: int, split: Split) -> None:
        self._on_bad_image = on_bad_image
        self._max = max_bad_images
        self._split: Split = split
        self._skipped: set[int] = set()

    @property
    def num_skipped(self) -> int:
        """Different images that this worker skipped so far."""
        return len(self._skipped)

    def places_to_take(self, indices: Ints, bad: Mapping[int, str]) -> Ints:
        """Which places of a batch are used in the end: int64.

        In training a bad image is replaced by the good one before it (the first good one, where none is before it),
        so that batches keep their size. In validation it is left out, and the means are over the others.

        Args:
            indices: the samples of the batch.
            bad: the bad places among them, each with the line to show.

        Raises:
            ImageError: images are not to be skipped, too many were, or no image of a training batch is good.
        """
        if self._on_bad_image is OnBadImage.error:
            raise ImageError(bad[min(bad)])
        for place in sorted(bad):
            self._skip(int(indices[place]), bad[place])
        good = np.setdiff1d(np.arange(len(indices)), list(bad))
        if self._split == "val":
            return good
        if not len(good):
            raise ImageError(f"no image of a batch can be read; the first: {bad[0]}")
        before = np.searchsorted(good, np.arange(len(indices)), side="right") - 1
        return good[np.maximum(before, 0)]

    def _skip(self, index: int, line: str) -> None:
        if index in self._skipped:
            return
        self._skipped.add(index)
        _logger.warning("skipped %s (number %d of %s on this worker)", line, len(self._skipped), self._split)
        if len(self._skipped) > self._max:
            raise ImageError(f"more than data.max_bad_images={self._max} images cannot be read; the last: {line}")


def describe_failure(source: Source, index: int, error: Exception) -> str:
    """One line that names an image and why it cannot be read."""
    reason = error.strerror if isinstance(error, OSError) else _reason(error)
    return f"cannot read the image {source.describe(index)}: {reason}"


def _reason(error: Exception) -> str:
    """What an operator said, without the name of the function and the line in its source."""
    first_line = str(error).partition("\n")[0]
    return re.sub(r"^.*?\.(cpp|h):\d+, ", "", first_line)
