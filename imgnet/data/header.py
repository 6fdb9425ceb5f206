"""What the first bytes of an encoded image tell, without decoding it."""

from dataclasses import dataclass
from struct import unpack_from

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SIZES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive: what every decoder reads
_EXIF = 0xE1
_ORIENTATION = 0x0112
_PADDING = 64  # bytes that some programs leave after the end of an image


@dataclass(frozen=True)
class JpegHeader:
    """An ordinary JPEG: 8 bits, one or three colours, not turned, and whole as far as its last bytes tell."""

    width: int
    height: int


def read_header(data: bytes | memoryview) -> JpegHeader | None:
    """The size of an ordinary JPEG in pixels; None for everything else, broken images among them.

    What is not ordinary (CMYK, PNG under another name, a camera held upright, a file that was cut) is rare in ImageNet
    and is given to the one decoder that knows all of it, so that all back ends treat it alike.
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
        if marker == _EXIF and _is_turned(bytes(data[at + 4 : at + 2 + length])):
            return None
        at += 2 + length
    return None


def extension(data: bytes) -> str:
    """``jpg``, ``png`` or ``webp``, from the bytes; ``jpg`` for what is none of them."""
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "jpg"


def _is_turned(segment: bytes) -> bool:
    """Whether EXIF data say that the image is to be shown mirrored or turned. Damaged ones count as if they did."""
    if not segment.startswith(b"Exif\0\0"):
        return False
    from PIL import Image  # rarely needed, and not at the start of a command

    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(_ORIENTATION, 1) != 1
    except Exception:  # whatever a parser raises on damaged data
        return True


def as_ppm(width: int, height: int, rgb: bytes) -> bytes:
    """Pixels (row by row, three bytes each) as a file that every decoder reads without loss."""
    return b"P6\n%d %d\n255\n" % (width, height) + rgb
