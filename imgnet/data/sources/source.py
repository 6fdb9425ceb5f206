"""What every kind of storage offers to a back end that decodes."""

from typing import Protocol

from imgnet.data.sampling.counter import Ints
from imgnet.data.sources.header import JpegHeader
from imgnet.data.sources.raw import RawPixels


class ImageError(ValueError):
    """An image that cannot be read or decoded; one line that names the file and the reason."""


class Source(Protocol):
    """The images of one split, numbered from zero. Threads, and processes with copies of it, read at the same time."""

    @property
    def labels(self) -> Ints:
        """The class of each image: int64 ``[len(self)]``, from zero."""
        ...

    @property
    def pixels(self) -> RawPixels | None:
        """The quick way to images that need no decoding; None where they do."""
        ...

    def __len__(self) -> int: ...

    def expect(self, indices: Ints) -> None:
        """Tell the system that these images are read next, where that spares waiting for them. Returns at once."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded image, in any format of JPEG, PNG, WebP and :func:`.header.as_ppm`.

        Raises OSError where the storage fails.
        """
        ...

    def header(self, index: int, data: bytes) -> JpegHeader | None:
        """What :func:`.header.read_header` says of ``data``, which :meth:`read` gave for ``index``."""
        ...

    def describe(self, index: int) -> str:
        """Where the image is, for messages to the user."""
        ...
