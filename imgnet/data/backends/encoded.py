"""Encoded images as DALI reads them, and the parts of them that a view takes."""

from typing import final

import numpy as np

from imgnet.data.backends.backend import BatchKey
from imgnet.data.backends.bad_images import describe_failure
from imgnet.data.backends.decode import decode_sample
from imgnet.data.backends.pieces import Pieces
from imgnet.data.sampling.view import View
from imgnet.data.sources.header import JpegHeader, as_ppm
from imgnet.data.sources.source import ImageError, Source

_NOTHING = as_ppm(1, 1, bytes(3))  # stands in for an image that cannot be read


@final
class EncodedImages:
    """Reads them undecoded. A :class:`~imgnet.data.backends.pieces.Reader`; safe in threads."""

    def __init__(self, source: Source, view: View, *, careful: bool = False) -> None:
        """``careful``: decode all of them outside DALI."""
        self._source = source
        self._view = view
        self._careful = careful

    def __call__(self, key: BatchKey) -> Pieces:
        """Whole images as bytes, and where they are cut."""
        loaded = [self._load(index) for index in key.indices.tolist()]
        bad = {place: image for place, image in enumerate(loaded) if isinstance(image, str)}
        good = [(_NOTHING, JpegHeader(1, 1)) if isinstance(image, str) else image for image in loaded]
        widths, heights = [header.width for _, header in good], [header.height for _, header in good]
        cut = self._view.cut(key.epoch, key.indices, widths, heights)
        return Pieces([np.frombuffer(data, np.uint8) for data, _ in good], cut, bad)

    def _load(self, index: int) -> tuple[bytes, JpegHeader] | str:
        """Bytes and size of an image, or the line that says why there are none."""
        try:
            data = self._source.read(index)
            header = None if self._careful else self._source.header(index, data)
            return self._converted(index, data) if header is None else (data, header)
        except ImageError as error:
            return str(error)
        except OSError as error:
            return describe_failure(self._source, index, error)

    def _converted(self, index: int, data: bytes) -> tuple[bytes, JpegHeader]:
        """Whatever format it has, as one that DALI reads to the same pixels. Raises ImageError."""
        image = decode_sample(self._source, index, data)
        height, width = image.shape[1:]
        return as_ppm(width, height, image.permute(1, 2, 0).contiguous().numpy().tobytes()), JpegHeader(width, height)
