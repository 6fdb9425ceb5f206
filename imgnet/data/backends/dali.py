"""Encoded images to pixels with NVIDIA DALI, on the GPU or on the CPU.

DALI gets the bytes and the boxes that follow from our own order and crops; it draws nothing itself. On a GPU it
decodes, resizes and mirrors; of raw pixels it gets the parts that are needed, and resizes and mirrors them. On a CPU it
decodes the part of the image that is needed, and torch resizes it (:mod:`.pool`), in a fifth of the time of DALI's own
operator and to the same pixels as with torchvision's decoder; raw pixels leave nothing for it to do there.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIImageType, DALIInterpType
from torch import Tensor

from imgnet.config import Interpolation
from imgnet.data.backends.ahead import Ahead
from imgnet.data.backends.backend import Backend, Batch, BatchKey, Finisher
from imgnet.data.backends.encoded import EncodedImages
from imgnet.data.backends.pieces import Pieces, Reader, joined
from imgnet.data.backends.raw_parts import RawParts
from imgnet.data.sampling.view import Cut, Resizing, View
from imgnet.data.sources.source import Source

_FINISHED = 2  # batches that wait for the training
_NUM_READERS = 8  # reading waits for a disk or the network, not for a core
_NO_QUEUE: dict[str, Any] = {
    "prefetch_queue_depth": 1
}  # work overlaps without it; a longer one has to be filled at once
_INTERPOLATIONS = {
    Interpolation.bilinear: DALIInterpType.INTERP_LINEAR,
    Interpolation.bicubic: DALIInterpType.INTERP_CUBIC,
}
_Made: TypeAlias = tuple[BatchKey, Tensor, dict[int, str]]
"""A key, its pixels (uint8 ``[n, px, px, 3]``), and what is bad."""


@final
class DaliParts:
    """Decodes on the CPU the part of each image that is needed. A :class:`~imgnet.data.backends.pieces.Reader`."""

    def __init__(self, source: Source, view: View) -> None:
        self._read = EncodedImages(source, view)
        self._read_careful = EncodedImages(source, view, careful=True)
        self._pipeline: Pipeline | None = None
        self._max_batch_size = 0

    def __call__(self, key: BatchKey) -> Pieces:
        """Parts as pixels, uint8 ``[h, w, 3]`` each, in memory that is DALI's until the next call."""
        try:
            return self._decoded(self._read(key))
        except RuntimeError:
            # An image that looks ordinary is not. DALI does not say which, and takes no further batch.
            self._pipeline = None
            return self._decoded(self._read_careful(key))

    def _decoded(self, pieces: Pieces) -> Pieces:
        num = len(pieces.data)
        if self._pipeline is None or num > self._max_batch_size:
            self._max_batch_size = max(num, self._max_batch_size)
            self._pipeline = _parts_graph(batch_size=self._max_batch_size, num_threads=1, device_id=None, **_NO_QUEUE)
            self._pipeline.build()
        (made,) = _run(self._pipeline, {"data": pieces.data, **_places(pieces.cut)})
        return Pieces([np.asarray(part) for part in made], pieces.cut, pieces.bad)


@final
class DaliBackend(Backend):
    """Reads in threads, and decodes, resizes and mirrors on a GPU; the batches of two steps are made ahead.

    On a CPU, where tests run it, it takes ``num_threads`` and five times as long as :class:`DaliParts`.
    """

    def __init__(self, source: Source, view: View, finish: Finisher, *, num_threads: int, device: torch.device) -> None:
        self._source = source
        self._view = view
        self._finish = finish
        self._num_threads = num_threads
        self._device = device
        self._readers = ThreadPoolExecutor(_NUM_READERS, "read")
        self._is_raw = source.pixels is not None
        pixels = source.pixels
        self._read: Reader = EncodedImages(source, view) if pixels is None else RawParts(source, pixels, view)
        self._pipeline: Pipeline | None = None
        self._max_batch_size = 0
        self._in_dali: tuple[BatchKey, Pieces] | None = None
        self._pass: Ahead[_Made] | None = None
        self._closed = False

    @property
    def num_samples(self) -> int:
        """Images in the split."""
        return len(self._source)

    def batches(self, keys: Iterable[BatchKey]) -> Iterator[Batch]:
        """A pass that was left in its middle ends when the next one starts."""
        if self._closed:
            raise RuntimeError("this back end is closed")
        self._end_pass()
        self._pass = Ahead(self._made(keys), _FINISHED)
        for made in self._pass:
            yield self._finish(*made)

    def close(self) -> None:
        """End all threads, each after the batch that it is at."""
        self._end_pass()
        self._closed = True
        self._pipeline = None
        self._readers.shutdown()

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.stop()
            self._pass = None
        if self._in_dali is not None:
            self._take()  # nobody asks for it any more

    def _made(self, keys: Iterable[BatchKey]) -> Iterator[_Made]:
        """While DALI works on a batch, the next one is read."""
        for key in keys:
            pieces = self._pieces(key, self._read)
            taken = self._take() if self._in_dali is not None else None
            self._start(key, pieces)
            if taken is not None:
                yield taken
        if self._in_dali is not None:
            yield self._take()

    def _pieces(self, key: BatchKey, read: Reader) -> Pieces:
        chunks = np.array_split(key.indices, min(_NUM_READERS, len(key.indices)))
        return joined(list(self._readers.map(lambda chunk: read(BatchKey(key.epoch, chunk)), chunks)))

    def _start(self, key: BatchKey, pieces: Pieces) -> None:
        """Give a batch to DALI, which works on it from now on."""
        num, cut = len(pieces.data), pieces.cut
        if self._pipeline is None or num > self._max_batch_size:
            self._max_batch_size = max(num, self._max_batch_size)
            self._pipeline = self._build()
        feeds: dict[str, Any] = {"data": pieces.data, **({} if self._is_raw else _places(cut))}
        feeds["roi_start"] = _pairs(cut.boxes[:, 1::-1], np.float32)
        feeds["roi_end"] = _pairs(cut.boxes[:, 1::-1] + cut.boxes[:, :1:-1], np.float32)
        feeds["mirrored"] = cut.mirrored.astype(np.int32)
        for name, value in feeds.items():
            self._pipeline.feed_input(name, value)
        self._pipeline.schedule_run()
        self._in_dali = key, pieces

    def _take(self) -> _Made:
        """The batch that DALI has, when it is made."""
        assert self._in_dali is not None
        try:
            made = self._outputs()
        except RuntimeError:
            # As in `DaliParts`.
            self._pipeline = None
            key, _ = self._in_dali
            self._start(key, self._pieces(key, EncodedImages(self._source, self._view, careful=True)))
            made = self._outputs()
        (key, pieces), self._in_dali = self._in_dali, None
        return key, self._pixels(made, len(pieces.data)), pieces.bad

    def _outputs(self) -> Any:
        assert self._pipeline is not None
        (made,) = self._pipeline.outputs()
        return made

    def _pixels(self, made: Any, num: int) -> Tensor:
        """uint8 ``[n, px, px, 3]`` in memory that is not DALI's."""
        if self._device.type == "cpu":
            return torch.from_numpy(np.array(made.as_array()))
        from nvidia.dali.plugin.pytorch import feed_ndarray

        pixels = torch.empty((num, self._view.px, self._view.px, 3), dtype=torch.uint8, device=self._device)
        feed_ndarray(made.as_tensor(), pixels, cuda_stream=torch.cuda.current_stream(self._device))
        return pixels

    def _build(self) -> Pipeline:
        on_gpu = self._device.type == "cuda"
        pipeline = _squares_graph(
            px=self._view.px,
            device="mixed" if on_gpu else "cpu",
            resizing=self._view.resizing,
            is_raw=self._is_raw,
            batch_size=self._max_batch_size,
            num_threads=self._num_threads,
            device_id=self._device.index or 0 if on_gpu else None,
            **_NO_QUEUE,
        )
        pipeline.build()
        return pipeline


@pipeline_def
def _parts_graph() -> Any:
    return _decoded_images("cpu")


@pipeline_def
def _squares_graph(px: int, device: str, resizing: Resizing, is_raw: bool) -> Any:
    images = _raw_images(device) if is_raw else _decoded_images(device)
    roi_start, roi_end, mirrored = (fn.external_source(name=name) for name in ("roi_start", "roi_end", "mirrored"))
    squares: Any = fn.resize(
        images,
        size=[px, px],
        roi_start=roi_start,
        roi_end=roi_end,
        interp_type=_INTERPOLATIONS[resizing.interpolation],
        antialias=resizing.antialias,
    )
    return fn.flip(squares, horizontal=mirrored)


def _decoded_images(device: str) -> Any:
    data = fn.external_source(name="data", no_copy=True)  # `Pieces` keeps the bytes
    start, shape = (fn.external_source(name=name) for name in ("start", "shape"))
    return fn.decoders.image_slice(
        data, start, shape, axes=[0, 1], device=device, output_type=DALIImageType.RGB, adjust_orientation=False
    )


def _raw_images(device: str) -> Any:
    parts: Any = fn.external_source(name="data", no_copy=True, layout="HWC")  # `Pieces` keeps them
    return parts.gpu() if device == "mixed" else parts


def _run(pipeline: Pipeline, feeds: dict[str, Any]) -> Any:
    for name, value in feeds.items():
        pipeline.feed_input(name, value)
    return pipeline.run()


def _places(cut: Cut) -> dict[str, npt.NDArray[Any]]:
    """Of the parts that are decoded, as rows before columns."""
    return {"start": _pairs(cut.parts[:, 1::-1], np.int32), "shape": _pairs(cut.parts[:, :1:-1], np.int32)}


def _pairs(columns: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
    """``[n, 2]`` as DALI wants it: packed in memory."""
    return np.ascontiguousarray(columns, dtype=dtype)
