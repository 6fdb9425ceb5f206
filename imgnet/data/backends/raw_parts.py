"""The parts of raw pixels that a view takes: where they are cut is known before anything is read."""

from typing import final

from imgnet.data.backends.backend import BatchKey
from imgnet.data.backends.bad_images import describe_failure
from imgnet.data.backends.pieces import NO_PIXELS, Bytes, Pieces
from imgnet.data.sampling.view import View
from imgnet.data.sources.raw import RawPixels
from imgnet.data.sources.source import Source


@final
class RawParts:
    """Reads those of raw pixels. A :class:`~imgnet.data.backends.pieces.Reader`; safe in threads."""

    def __init__(self, source: Source, pixels: RawPixels, view: View) -> None:
        self._source = source
        self._pixels = pixels
        self._view = view

    def __call__(self, key: BatchKey) -> Pieces:
        """Parts as pixels, uint8 ``[h, w, 3]`` each."""
        widths, heights = self._pixels.sizes(key.indices).T.tolist()
        cut = self._view.cut(key.epoch, key.indices, widths, heights)
        bad: dict[int, str] = {}
        parts: list[Bytes] = []
        for place, (index, box) in enumerate(zip(key.indices.tolist(), cut.parts.tolist(), strict=True)):
            try:
                parts.append(self._pixels.part(index, box))
            except OSError as error:
                bad[place] = describe_failure(self._source, index, error)
                parts.append(NO_PIXELS)
        cut.boxes[list(bad)] = 0, 0, 1, 1
        return Pieces(parts, cut, bad)
