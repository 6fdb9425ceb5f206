"""Encoded images to pixels with NVIDIA DALI: on the GPU, or in threads on the CPU.

DALI gets the bytes and the boxes that follow from our own order and crops; it draws nothing itself. On a GPU it
decodes, resizes and mirrors; of raw pixels it gets the parts that are needed, and resizes and mirrors them. On a CPU it
decodes the part of the image that is needed, and torch resizes it, in a fifth of the time of DALI's own operator and to
the same pixels as in the torchvision back end; raw pixels leave nothing for it to do there (:mod:`.raw`).
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIImageType, DALIInterpType
from torch import Tensor

from imgnet.config import Interpolation
from imgnet.data.backends.ahead import Ahead
from imgnet.data.backends.backend import Backend, Batch, BatchKey, Decoded, Finisher
from imgnet.data.backends.bad_images import describe_failure
from imgnet.data.backends.decode import decode_sample
from imgnet.data.backends.raw_parts import RawParts, RawReader
from imgnet.data.backends.squares import Squares
from imgnet.data.sampling.view import Cut, Resizing, View
from imgnet.data.sources.header import JpegHeader, as_ppm
from imgnet.data.sources.source import ImageError, Source

_FINISHED = 2  # batches that wait for the training
_NUM_READERS = 8  # reading waits for a disk or the network, not for a core
_INTERPOLATIONS = {
    Interpolation.bilinear: DALIInterpType.INTERP_LINEAR,
    Interpolation.bicubic: DALIInterpType.INTERP_CUBIC,
}
_NOTHING = as_ppm(1, 1, bytes(3))  # stands in for an image that cannot be read

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Prepared:
    """A batch that DALI can decode: encoded images, or the raw pixels (``[h, w, 3]``) of their parts."""

    key: BatchKey
    data: list[Bytes]
    cut: Cut
    bad: dict[int, str]


class DaliBackend(Backend):
    """Reads in threads, decodes in ``num_threads`` of DALI's; the batches of two steps are made ahead."""

    def __init__(
        self,
        source: Source,
        view: View,
        finish: Finisher,
        *,
        num_threads: int,
        device: torch.device,
        resize_in_dali: bool | None = None,
    ) -> None:
        """``resize_in_dali`` is true on a GPU and false on a CPU; tests ask for the GPU's graph on a CPU."""
        self._source = source
        self._view = view
        self._finish = finish
        self._num_threads = num_threads
        self._device = device
        self._resize_in_dali = device.type == "cuda" if resize_in_dali is None else resize_in_dali
        self._readers = ThreadPoolExecutor(_NUM_READERS, "read")
        self._raw = RawReader(RawParts(source, source.pixels, view)) if source.pixels is not None else None
        self._squares = Squares(view, num_threads)
        self._pipeline: Pipeline | None = None
        self._max_batch_size = 0
        self._in_dali: _Prepared | None = None
        self._pass: Ahead[tuple[BatchKey, Decoded]] | None = None
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
        self._pass = Ahead(self._decoded(keys), _FINISHED)
        for key, decoded in self._pass:
            yield self._finish(key, decoded)

    def close(self) -> None:
        """End all threads, each after the batch that it is at."""
        self._end_pass()
        self._closed = True
        self._pipeline = None
        self._readers.shutdown()
        if self._raw is not None:
            self._raw.close()
        self._squares.close()

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.stop()
            self._pass = None
        if self._in_dali is not None:
            self._take()  # nobody asks for it any more

    def _decoded(self, keys: Iterable[BatchKey]) -> Iterator[tuple[BatchKey, Decoded]]:
        """While DALI decodes a batch, the next one is read and the one before is resized."""
        for key in keys:
            prepared = self._prepare(key)
            taken = self._take() if self._in_dali is not None else None
            self._start(prepared)
            if taken is not None:
                yield self._made(*taken)
        if self._in_dali is not None:
            yield self._made(*self._take())

    def _prepare(self, key: BatchKey, careful: bool = False) -> _Prepared:
        """Read a batch and see where its images are cut. ``careful``: decode all of it outside DALI."""
        if self._raw is not None:
            batch = self._raw.start(key).wait()
            return _Prepared(key, batch.parts, batch.cut, batch.bad)
        edges = np.linspace(0, len(key.indices), _NUM_READERS + 1).astype(int).tolist()
        chunks = self._readers.map(lambda chunk: self._load(key.indices[slice(*chunk)], careful), pairwise(edges))
        loaded = [image for chunk in chunks for image in chunk]
        bad = {place: image for place, image in enumerate(loaded) if isinstance(image, str)}
        good = [(_NOTHING, JpegHeader(1, 1)) if isinstance(image, str) else image for image in loaded]
        widths, heights = [header.width for _, header in good], [header.height for _, header in good]
        cut = self._view.cut(key.epoch, key.indices, widths, heights)
        return _Prepared(key, [np.frombuffer(data, np.uint8) for data, _ in good], cut, bad)

    def _load(self, indices: npt.NDArray[np.int64], careful: bool) -> list[tuple[bytes, JpegHeader] | str]:
        """Bytes and size of each image, or the line that says why there are none."""
        loaded: list[tuple[bytes, JpegHeader] | str] = []
        for index in indices.tolist():
            try:
                data = self._source.read(index)
                header = None if careful else self._source.header(index, data)
                loaded.append(_converted(self._source, index, data) if header is None else (data, header))
            except ImageError as error:
                loaded.append(str(error))
            except OSError as error:
                loaded.append(describe_failure(self._source, index, error))
        return loaded

    def _start(self, prepared: _Prepared) -> None:
        """Give a batch to DALI, which works on it from now on."""
        num, cut = len(prepared.data), prepared.cut
        if self._pipeline is None or num > self._max_batch_size:
            self._max_batch_size = max(num, self._max_batch_size)
            self._pipeline = self._build()
        feeds: dict[str, Any] = {"data": prepared.data}
        if self._raw is None:
            feeds["start"] = _pairs(cut.parts[:, 1::-1], np.int32)
            feeds["shape"] = _pairs(cut.parts[:, :1:-1], np.int32)
        if self._resize_in_dali:
            feeds["roi_start"] = _pairs(cut.boxes[:, 1::-1], np.float32)
            feeds["roi_end"] = _pairs(cut.boxes[:, 1::-1] + cut.boxes[:, :1:-1], np.float32)
            feeds["mirrored"] = cut.mirrored.astype(np.int32)
        for name, value in feeds.items():
            self._pipeline.feed_input(name, value)
        self._pipeline.schedule_run()
        self._in_dali = prepared

    def _take(self) -> tuple[_Prepared, Any]:
        """The batch that DALI has, when it is decoded."""
        assert self._in_dali is not None
        try:
            made = self._outputs()
        except RuntimeError:
            # An image that looks ordinary is not. DALI does not say which, and takes no further batch.
            self._pipeline = None
            self._start(self._prepare(self._in_dali.key, careful=True))
            made = self._outputs()
        prepared, self._in_dali = self._in_dali, None
        return prepared, made

    def _outputs(self) -> Any:
        assert self._pipeline is not None
        (made,) = self._pipeline.outputs()
        return made

    def _made(self, prepared: _Prepared, made: Any) -> tuple[BatchKey, Decoded]:
        return prepared.key, Decoded(self._pixels(made, prepared), prepared.bad)

    def _pixels(self, made: Any, prepared: _Prepared) -> Tensor:
        """uint8 ``[n, 3, px, px]``, colours innermost, in memory that is not DALI's."""
        num, px = len(prepared.data), self._view.px
        if self._device.type == "cuda":
            from nvidia.dali.plugin.pytorch import feed_ndarray

            pixels = torch.empty((num, px, px, 3), dtype=torch.uint8, device=self._device)
            feed_ndarray(made.as_tensor(), pixels, cuda_stream=torch.cuda.current_stream(self._device))
        elif self._resize_in_dali:
            pixels = torch.from_numpy(np.array(made.as_array()))
        else:
            pixels = self._squares([np.asarray(part) for part in made], prepared.cut.mirrored)
        return pixels.permute(0, 3, 1, 2)

    def _build(self) -> Pipeline:
        on_gpu = self._device.type == "cuda"
        pipeline = _graph(
            px=self._view.px,
            device="mixed" if on_gpu else "cpu",
            resizing=self._view.resizing if self._resize_in_dali else None,
            is_raw=self._raw is not None,
            batch_size=self._max_batch_size,
            num_threads=self._num_threads,
            device_id=self._device.index or 0 if on_gpu else None,
            prefetch_queue_depth=1,  # the passes overlap the work themselves; a longer queue has to be filled at once
        )
        pipeline.build()
        return pipeline


@pipeline_def
def _graph(px: int, device: str, resizing: Resizing | None, is_raw: bool) -> Any:
    images = _raw_images(device) if is_raw else _decoded_images(device)
    if resizing is None:
        return images
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
    data = fn.external_source(name="data", no_copy=True)  # `_Prepared` keeps the bytes
    start, shape = (fn.external_source(name=name) for name in ("start", "shape"))
    return fn.decoders.image_slice(
        data, start, shape, axes=[0, 1], device=device, output_type=DALIImageType.RGB, adjust_orientation=False
    )


def _raw_images(device: str) -> Any:
    parts: Any = fn.external_source(name="data", no_copy=True, layout="HWC")  # `_Prepared` keeps them
    return parts.gpu() if device == "mixed" else parts


def _pairs(columns: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
    """``[n, 2]`` as DALI wants it: packed in memory."""
    return np.ascontiguousarray(columns, dtype=dtype)


def _converted(source: Source, index: int, data: bytes) -> tuple[bytes, JpegHeader]:
    """Whatever format it has, as one that DALI reads to the same pixels. Raises ImageError."""
    image = decode_sample(source, index, data)
    height, width = image.shape[1:]
    return as_ppm(width, height, image.permute(1, 2, 0).contiguous().numpy().tobytes()), JpegHeader(width, height)
