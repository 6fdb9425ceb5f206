"""The batches of one worker: sample order in, images on the device out."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist

from imgnet.config import ConfigError, DataBackend, DataConfig, DataKind
from imgnet.data.backends.backend import Backend, Batch, BatchKey, Finisher
from imgnet.data.backends.bad_images import BadImages
from imgnet.data.backends.pieces import Reader
from imgnet.data.backends.pool import PoolBackend
from imgnet.data.backends.raw_parts import RawParts
from imgnet.data.checks import chosen_backend
from imgnet.data.sampling import order
from imgnet.data.sampling.view import EvalView, Resizing, TrainView, View
from imgnet.data.sources.digits import ensure_digits
from imgnet.data.sources.folder import FolderSource, Split
from imgnet.data.sources.shards import ShardSource
from imgnet.data.sources.source import Source
from imgnet.data.staging import stage, staged_root
from imgnet.runtime import Runtime

_NO_EPOCH = 0
_GRACE = timedelta(minutes=1)  # between rank 0's verdict on a node and that of the others
_POOL_SEEDS: dict[Split, int] = {"train": 0, "val": 1}


@final
class TrainLoader:
    """Training batches of one worker. It keeps no position: epoch and step are the whole state of the data."""

    def __init__(self, backend: Backend, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> None:
        self._backend = backend
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._rank, self._world_size = rank, world_size
        if self.steps_per_epoch == 0:
            raise ConfigError([f"global_batch_size={global_batch_size} exceeds the {self.num_samples} training images"])

    @property
    def num_samples(self) -> int:
        """Training images, over all workers."""
        return self._backend.num_samples

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return order.steps_per_epoch(self.num_samples, self._global_batch_size)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from ``start_step`` on, each ``global_batch_size // world_size`` images.

        They are those of a run that came there from step 0. Finish or drop one iterator before the next is started.
        """
        return self._backend.batches(self._keys(epoch, start_step))

    def close(self) -> None:
        """End the threads of the data."""
        self._backend.close()

    def _keys(self, epoch: int, start_step: int) -> Iterator[BatchKey]:
        samples = order.epoch_order(self._seed, epoch, self.num_samples)
        for step in range(start_step, self.steps_per_epoch):
            yield BatchKey(
                epoch, order.step_indices(samples, step, self._global_batch_size, self._rank, self._world_size)
            )


@final
class EvalLoader:
    """Validation batches of one worker. Over all workers each image exactly once, so they may differ by one image."""

    def __init__(self, backend: Backend, *, local_batch_size: int, rank: int, world_size: int) -> None:
        self._backend = backend
        self._local_batch_size = local_batch_size
        self._rank, self._world_size = rank, world_size

    @property
    def num_samples(self) -> int:
        """Validation images, over all workers."""
        return self._backend.num_samples

    def batches(self) -> Iterator[Batch]:
        """This worker's images, ``local_batch_size`` at a time; the last batch holds the rest, if any."""
        indices = order.evaluation_indices(self.num_samples, self._rank, self._world_size)
        size = self._local_batch_size
        return self._backend.batches(
            BatchKey(_NO_EPOCH, indices[at : at + size]) for at in range(0, len(indices), size)
        )

    def close(self) -> None:
        """End the threads of the data."""
        self._backend.close()


def prepare(config: DataConfig) -> None:
    """Make the digits, copy shards to this node. Call it on each node, before the loaders; more often does no harm.

    Raises:
        ConfigError: the shards cannot be copied.
    """
    if config.kind is DataKind.digits:
        ensure_digits(data_root(config))
    elif config.stage_to is not None and config.root is not None:
        stage(Path(config.root).expanduser(), config.stage_to)


def prepare_nodes(config: DataConfig, worker: Runtime) -> None:
    """:func:`prepare` on every node, in one of its workers. Collective; returns when all nodes are ready.

    Raises:
        RuntimeError: a node was not ready after ``data.stage_timeout_min``; rank 0, which raises first, names its rank.
    """
    # The timeout of other collectives is too short for a node that copies while the copies of others are warm. NCCL
    # would hold the GPU meanwhile, so that this one is gloo's.
    timeout = timedelta(minutes=config.stage_timeout_min)
    patience = timeout if worker.is_main else timeout + _GRACE  # only rank 0 learns who is late
    group = dist.new_group(backend="gloo", timeout=timeout + _GRACE) if config.stage_to is not None else None
    if worker.local_rank == 0:
        prepare(config)
    if group is None:
        dist.barrier()
    else:
        assert isinstance(group, dist.ProcessGroup), "every worker is in the group"
        try:
            dist.monitored_barrier(group, patience, wait_all_ranks=True)
        except RuntimeError as error:
            late = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"data.stage_to={config.stage_to}: a node was not ready after data.stage_timeout_min="
                f"{config.stage_timeout_min} minutes: {late}"
            ) from None
        dist.destroy_process_group(group)


def build_train_loader(
    config: DataConfig,
    *,
    seed: int,
    global_batch_size: int,
    channels_last: bool,
    worker: Runtime,
    dtype: torch.dtype = torch.float32,
) -> TrainLoader:
    """Training batches of ``worker``, which has ``global_batch_size // world_size`` images in each.

    On a GPU the images have ``dtype``; on a CPU they are float32.

    Raises:
        ConfigError: the folder is not as it should be, or holds fewer images than one global batch.
    """
    return TrainLoader(
        _backend(config, "train", seed=seed, channels_last=channels_last, worker=worker, dtype=dtype),
        seed=seed,
        global_batch_size=global_batch_size,
        rank=worker.rank,
        world_size=worker.world_size,
    )


def build_eval_loader(
    config: DataConfig,
    *,
    local_batch_size: int,
    channels_last: bool,
    worker: Runtime,
    dtype: torch.dtype = torch.float32,
) -> EvalLoader:
    """Validation batches of ``worker``.

    On a GPU the images have ``dtype``; on a CPU they are float32.

    Raises:
        ConfigError: the folder is not as it should be.
    """
    return EvalLoader(
        _backend(config, "val", seed=0, channels_last=channels_last, worker=worker, dtype=dtype),
        local_batch_size=local_batch_size,
        rank=worker.rank,
        world_size=worker.world_size,
    )


def _backend(
    config: DataConfig, split: Split, *, seed: int, channels_last: bool, worker: Runtime, dtype: torch.dtype
) -> Backend:
    """Who makes the batches of a split. A back end that decodes elsewhere is chosen here."""
    if config.kind is DataKind.synthetic:
        return _synthetic_backend(config, split, channels_last, worker)
    view, source = _view(config, split, seed), open_source(config, split)
    finish = Finisher(
        source.labels,
        BadImages(config.on_bad_image, config.max_bad_images, split),
        config.mean,
        config.std,
        device=worker.device,
        channels_last=channels_last,
        dtype=dtype,
    )
    num_workers = worker.num_threads - 1 if config.num_workers is None else config.num_workers
    num_threads = max(1, num_workers)
    if worker.device.type == "cuda" and chosen_backend(config) is DataBackend.dali:
        from imgnet.data.backends.dali import DaliBackend

        return DaliBackend(source, view, finish, num_threads=num_threads, device=worker.device)
    return PoolBackend(source, view, finish, _make_reader(config, source, view), num_threads=num_threads)


def _make_reader(config: DataConfig, source: Source, view: View) -> Callable[[], Reader]:
    """Who makes pixels of files. Imported here, because torchvision and DALI take seconds that others do without."""
    if source.pixels is not None:
        return partial(RawParts, source, source.pixels, view)
    if chosen_backend(config) is DataBackend.dali:
        from imgnet.data.backends.dali import DaliParts

        return partial(DaliParts, source, view)
    from imgnet.data.backends.decode import DecodedParts

    return partial(DecodedParts, source, view)


def _view(config: DataConfig, split: Split, seed: int) -> View:
    resizing = Resizing(config.interpolation, config.antialias)
    if split == "val":
        return EvalView(config.eval_px, config.eval_resize_px, config.eval_squash, resizing)
    return TrainView(
        config.train_px,
        seed,
        config.crop_scale,
        config.crop_ratio,
        config.flip_probability,
        config.crop_attempts,
        resizing,
    )


def open_source(config: DataConfig, split: Split) -> Source:
    """The images of a split. Raises ConfigError where the folder is not as it should be."""
    root = data_root(config)
    if config.kind is DataKind.shards:
        return ShardSource(root, split, config.num_classes)
    return FolderSource(root, split, config.num_classes)


def _synthetic_backend(config: DataConfig, split: Split, channels_last: bool, worker: Runtime) -> Backend:
    from imgnet.data.backends.synthetic import SyntheticBackend

    num_samples, px = (config.num_train, config.train_px) if split == "train" else (config.num_val, config.eval_px)
    if not num_samples:
        raise ConfigError([f"data.num_{split}={num_samples} must be 1 or more with data.kind=synthetic"])
    return SyntheticBackend(
        num_samples,
        config.num_classes,
        px,
        pool_seed=_POOL_SEEDS[split],
        channels_last=channels_last,
        device=worker.device,
    )


def data_root(config: DataConfig) -> Path:
    """The folder that images are read from on this node: the staged one, where they are staged."""
    if config.root is None:
        raise ConfigError([f"data.root is not set, but data.kind={config.kind.name} needs a folder"])
    root = Path(config.root).expanduser()
    return root if config.stage_to is None else staged_root(root, config.stage_to)
