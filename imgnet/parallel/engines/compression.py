"""Gradients made smaller before AllReduce sends them: torch's own hooks for ``DistributedDataParallel``."""

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future

from imgnet.config import AllReduceConfig, Compression
from imgnet.parallel.schedule import powersgd_start_step


class Compressor(ABC):
    """Averages the gradients of a bucket over all workers, in the place of ``DistributedDataParallel``."""

    def __init__(self) -> None:
        self.handed_over = 0
        """Bytes that this worker gave to all-reduces so far."""

    @abstractmethod
    def begin_step(self, step: int) -> None:
        """Say which step of the run comes, before its gradients do."""

    @abstractmethod
    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Begin; what comes is the bucket's buffer, fp32, with the average in it. Collective."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs: dicts, lists, tensors and numbers. Tensors are the live ones."""

    @abstractmethod
    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on as if the steps that led to ``state`` had just been made here."""


@final
class Bf16(Compressor):
    """Messages in bf16. Each worker divides its gradient by their number first; partial sums are rounded as well."""

    def begin_step(self, step: int) -> None:
        """All steps are alike."""

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """See :meth:`Compressor.average`."""
        self.handed_over += bucket.buffer().numel() * torch.bfloat16.itemsize
        return bf16_compress_hook(all_workers(), bucket)

    def state(self) -> dict[str, Any]:
        """Nothing is carried from step to step."""
        return {}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Nothing to do."""


@final
class PowerSgd(Compressor):
    """PowerSGD (Vogels et al., NeurIPS 2019, arXiv 1905.13727) with error feedback and warm start.

    On worker i, with its gradient as a matrix that has a row for each output, and its error e_i so far::

        M_i = gradient_i + e_i;  P = orthogonal(mean M_i Q);  Q = mean M_i^T P;  gradient = P Q^T;  e_i = M_i - gradient

    Vectors, and matrices that would not become ``min_compression_rate`` times smaller, are averaged as they are. All is
    kept by the number of the bucket, so that buckets must be the same after a restart. The errors are one more copy of
    the model in memory.

    With a rank of 1 or 2 the hook orthogonalises without a guard, and a gradient that is zero on all workers becomes
    nan; from 3 on it uses a QR decomposition, which does not mind.

    Args:
        rank: columns of P and Q; fewer where a matrix has fewer rows or columns.
        start_step: steps before it are averaged as they are; 2 or more, for DDP forms its buckets anew after the first.
        min_compression_rate: see above.
    """

    def __init__(self, *, rank: int, start_step: int, min_compression_rate: float) -> None:
        super().__init__()
        self._hook = PowerSGDState(
            all_workers(),
            matrix_approximation_rank=rank,
            start_powerSGD_iter=start_step,
            min_compression_rate=min_compression_rate,  # type: ignore[arg-type]  (any number; its default is an int)
        )
        self._in_order = ThreadPoolExecutor(1, "powersgd")

    def begin_step(self, step: int) -> None:
        """See :meth:`Compressor.begin_step`. The hook counts for itself, from the start of the process."""
        self._hook.iter = step

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """See :meth:`Compressor.average`.

        The hook starts its second and third all-reduce from within callbacks. NCCL runs these at once, in the order of
        the buckets. gloo runs them in its own threads, whenever they come: with several buckets under way workers would
        start all-reduces in different orders, which takes the one for the other and ends the process. There a thread
        takes the buckets one after the other, behind the backward pass.
        """
        if bucket.buffer().device.type != "cpu":
            return self._begin(bucket)
        average: Future[Tensor] = Future()
        self._in_order.submit(self._finish, bucket, average)
        return average.then(lambda done: done.wait())  # DDP itself would take an error for the result

    def _begin(self, bucket: dist.GradBucket) -> Future[Tensor]:
        hook, sent_before = self._hook, self._hook.total_numel_after_compression
        is_compressed = hook.iter >= hook.start_powerSGD_iter
        average = powerSGD_hook(hook, bucket)
        num_values = hook.total_numel_after_compression - sent_before if is_compressed else bucket.buffer().numel()
        self.handed_over += num_values * bucket.buffer().element_size()
        return average

    def _finish(self, bucket: dist.GradBucket, average: Future[Tensor]) -> None:
        try:
            average.set_result(self._begin(bucket).wait())
        except Exception as error:  # raised again at the end of the backward pass
            average.set_exception(error)  # type: ignore[arg-type]  (annotated as if it were a result)

    def state(self) -> dict[str, Any]:
        """See :meth:`Compressor.state`."""
        hook = self._hook
        numbers = hook.rng.get_state(legacy=False)
        return {
            "errors": dict(hook.error_dict),
            "p": dict(hook.p_memory_dict),
            "q": dict(hook.q_memory_dict),
            "rng": {**numbers, "state": {**numbers["state"], "key": numbers["state"]["key"].tolist()}},
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """See :meth:`Compressor.restore`."""
        self._hook.error_dict = {index: values.to(device) for index, values in state["errors"].items()}
        self._hook.p_memory_dict = {index: values.to(device) for index, values in state["p"].items()}
        self._hook.q_memory_dict = {index: values.to(device) for index, values in state["q"].items()}
        self._hook.rng.set_state(state["rng"])


def build_compressor(config: AllReduceConfig, warmup_steps: int) -> Compressor | None:
    """What the configuration asks for; None where gradients go over the wire as they are.

    Args:
        config: of the topology.
        warmup_steps: steps in which the learning rate rises.
    """
    if config.compression is Compression.bf16:
        return Bf16()
    if config.compression is Compression.powersgd:
        return PowerSgd(
            rank=config.powersgd_rank,
            start_step=powersgd_start_step(config, warmup_steps),
            min_compression_rate=config.powersgd_min_compression_rate,
        )
    return None


def all_workers() -> dist.ProcessGroup:
    """The process group of everybody."""
    assert isinstance(dist.group.WORLD, dist.ProcessGroup)
    return dist.group.WORLD
