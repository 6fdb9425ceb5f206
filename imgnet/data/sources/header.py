"""What the first bytes of an encoded image tell, without decoding it."""

import re
from dataclasses import dataclass
from struct import unpack_from

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SIZES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive: what every decoder reads
_PADDING = 64  # bytes that some programs leave after the end of an image
_PPM = re.compile(rb"P6\n([1-9]\d{0,4}) ([1-9]\d{0,4})\n255\n")  # as `as_ppm` writes it, and no other
_MOST_PX = 0xFFFF  # of a side: what an index can say, and a JPEG


@dataclass(frozen=True)
class JpegHeader:
    """An ordinary JPEG: 8 bits, one or three colours, and whole as far as its last bytes tell."""

    width: int
    height: int


def read_header(data: bytes | memoryview) -> JpegHeader | None:
    """The size of an ordinary JPEG in pixels; None for everything else, broken images among them.

    What is not ordinary (CMYK, PNG under another name, a file that was cut) is rare in ImageNet and is given to the one
    decoder that knows all of it, so that all back ends treat it alike. The size is that of the pixels in the file:
    whatever EXIF data say, no back end turns them.
    """
    if bytes(data[:2]) != _START or _END not in bytes(data[-_PADDING:]):
        return None
    at, size = 2, len(data)
    while at + 10 <= size and data[at] == 0xFF:
        marker, length = data[at + 1], (data[at + 2] << 8) | data[at + 3]
        if marker in _SIZES:
            bits, height, width, num_colors = unpack_from(">BHHB", data, at + 4)
            ordinary = bits == 8 and num_colors in (1, 3) and width > 0 and height > 0
            return JpegHeader(width, height) if ordinary else None
        at += 2 + length
    return None


@dataclass(frozen=True)
class PpmHeader:
    """Pixels that need no decoding: row by row, three bytes each, behind ``num_bytes`` of header."""

    width: int
    height: int
    num_bytes: int


def read_ppm_header(data: bytes) -> PpmHeader | None:
    """Of what :func:`as_ppm` wrote, to the last byte; None for everything else."""
    found = _PPM.match(data)
    if found is None:
        return None
    header = PpmHeader(int(found[1]), int(found[2]), found.end())
    is_whole = len(data) == header.num_bytes + 3 * header.width * header.height
    return header if is_whole and max(header.width, header.height) <= _MOST_PX else None


def extension(data: bytes) -> str:
    """``jpg``, ``png`` or ``webp``, from the bytes; ``jpg`` for what is none of them."""
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "jpg"


def as_ppm(width: int, height: int, rgb: bytes) -> bytes:
    """Pixels (row by row, three bytes each) as a file that every decoder reads without loss."""
    return b"P6\n%d %d\n255\n" % (width, height) + rgb
