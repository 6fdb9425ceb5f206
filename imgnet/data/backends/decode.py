"""Encoded images to pixels, with torchvision's decoders."""

from typing import final

import torch
import torchvision.io  # loads the operators of torch.ops.image
from torch import Tensor

from imgnet.data.backends.backend import BatchKey
from imgnet.data.backends.bad_images import describe_failure
from imgnet.data.backends.pieces import NO_PIXELS, Bytes, Pieces
from imgnet.data.sampling.view import View
from imgnet.data.sources.header import PpmHeader, read_ppm_header
from imgnet.data.sources.source import ImageError, Source

_RGB = torchvision.io.ImageReadMode.RGB.value
_TURN_BY_EXIF = False  # nor do the loaders that published results come from


def decode(data: bytes) -> Tensor:
    """An encoded image as uint8 ``[3, height, width]`` in RGB, to the bit as torchvision's ImageFolder loads it.

    So EXIF data turn nothing, and transparency is left out. Only of PNGs with 16 bits of grey the upper 8 are taken,
    where Pillow cuts all values at 255. The bytes tell the format, whatever the file is called.

    Raises:
        ValueError, RuntimeError: the bytes are no complete JPEG, PNG, WebP or GIF image, nor what ``as_ppm`` wrote.
    """
    header = read_ppm_header(data)
    if header is not None:
        return _raw(data, header)
    # The operator behind torchvision.io.decode_image, which since 0.29 warns at each call that torchcodec replaces it.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image: Tensor = torch.ops.image.decode_image(encoded, _RGB, _TURN_BY_EXIF)
    if image.ndim == 4:
        image = image[0]  # animated: the first frame
    if image.dtype == torch.uint16:
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    return image


def _raw(data: bytes, header: PpmHeader) -> Tensor:
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header.num_bytes)
    return pixels.view(header.height, header.width, 3).permute(2, 0, 1)


@final
class DecodedParts:
    """Decodes whole images with torchvision. A :class:`~imgnet.data.backends.pieces.Reader`; safe in threads."""

    def __init__(self, source: Source, view: View) -> None:
        self._source = source
        self._view = view

    def __call__(self, key: BatchKey) -> Pieces:
        """Parts as pixels, uint8 ``[h, w, 3]`` each."""
        bad: dict[int, str] = {}
        images: list[Bytes] = []
        for place, index in enumerate(key.indices.tolist()):
            try:
                images.append(decode_sample(self._source, index).permute(1, 2, 0).numpy())
            except ImageError as error:
                bad[place] = str(error)
                images.append(NO_PIXELS)
        heights, widths, _ = zip(*(image.shape for image in images), strict=True)
        cut = self._view.cut(key.epoch, key.indices, widths, heights)
        boxes = zip(images, cut.parts.tolist(), strict=True)
        parts = [image[top : top + high, left : left + wide] for image, (left, top, wide, high) in boxes]
        return Pieces(parts, cut, bad)


def decode_sample(source: Source, index: int, data: bytes | None = None) -> Tensor:
    """Image ``index`` as :func:`decode` gives it; its bytes are read where they are not given.

    Raises:
        ImageError: one line that names the image and the reason.
    """
    try:
        return decode(source.read(index) if data is None else data)
    except (OSError, RuntimeError, ValueError) as error:
        raise ImageError(describe_failure(source, index, error)) from None
