"""Images in shards that need no decoding: parts of them are read where they lie."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from imgnet.data.sampling.counter import Ints
from imgnet.data.sources.header import as_ppm

Pixels = npt.NDArray[np.uint8]


@final
class RawPixels:
    """The pixels of one split. Safe in threads, and in processes forked at any time."""

    def __init__(self, rows: npt.NDArray[Any], read: Callable[[int, int], bytes]) -> None:
        """``rows`` of an index, and who reads so many first bytes of a record, or raises OSError."""
        self._rows = rows
        self._read = read

    def sizes(self, indices: Ints) -> Ints:
        """Width and height of the images ``indices``, as the index says: int64 ``[n, 2]``, at least one pixel each."""
        rows = self._rows[indices]
        return np.maximum(np.stack([rows["width"], rows["height"]], axis=1).astype(np.int64), 1)

    def part(self, index: int, box: Sequence[int]) -> Pixels:
        """What lies in ``box`` (left, top, width, height; inside the image): uint8 ``[height, width, 3]``, packed.

        Read is from the beginning of the record to the last row of the box, so that the header, which tells whether the
        index belongs to these pixels, takes no second visit to the disk. Mapped memory would save 20 of some 45 us for
        each image; but a file that is cut while it is mapped ends the process.

        Raises:
            OSError: the storage fails, or the record is not what the index says.
        """
        left, top, width, height = box
        row = self._rows[index]
        row_bytes, num_rows = 3 * int(row["width"]), int(row["height"])
        header = as_ppm(int(row["width"]), num_rows, b"")
        if row_bytes * num_rows == 0 or int(row["length"]) != len(header) + row_bytes * num_rows:
            raise OSError(0, f"{int(row['length'])} bytes are not {_shown(row)}")
        data = self._read(index, len(header) + row_bytes * (top + height))
        if not data.startswith(header):
            raise OSError(0, f"its header is not that of {_shown(row)}")
        rows = np.frombuffer(data, np.uint8, offset=len(header) + row_bytes * top).reshape(height, -1, 3)
        return rows[:, left : left + width].copy()


def _shown(row: Any) -> str:
    return f"{int(row['width'])} x {int(row['height'])} raw pixels, which the index says"
