"""Gradients averaged over all workers in each step: ``DistributedDataParallel``."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from imgnet.optim.loss_scale import LossScaler
from imgnet.optim.restore import restore_optimizer
from imgnet.parallel.average import float_buffers, standing_in
from imgnet.parallel.engines.compression import Compressor, all_workers
from imgnet.parallel.engines.strategy import Average, Objective, OptimizerFactory, Strategy, set_learning_rate
from imgnet.parallel.topology import all_reduce_bytes
from imgnet.profile.activity import Activity
from imgnet.profile.spans import span
from imgnet.runtime import Runtime


@final
class AllReduce(Strategy):
    """All workers hold the same parameters, and update them with the same gradient.

    Batch norm's statistics are each worker's own while training, as in a decentralized run, and averaged to evaluate.

    Args:
        module: the model on its device; rank 0's values win.
        objective: the loss.
        make_optimizer: called once, with all parameters.
        runtime: this worker.
        num_accumulation_steps: passes in one step.
        max_grad_norm: largest Euclidean norm of the averaged gradient; None for no clipping.
        scaler: loss scaling.
        bucket_mb: size of a message, in 2^20 bytes.
        compressor: averages the gradients; None: DDP does, in fp32.
    """

    def __init__(
        self,
        module: Module,
        objective: Objective,
        make_optimizer: OptimizerFactory,
        runtime: Runtime,
        *,
        num_accumulation_steps: int,
        max_grad_norm: float | None,
        scaler: LossScaler,
        bucket_mb: int,
        compressor: Compressor | None = None,
    ) -> None:
        self._module = module
        self._objective = objective
        with warnings.catch_warnings():
            # From torch 2.15 the switch is called forward_sync_buffers; the old name is the one that 2.11 knows too.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self._parallel = DistributedDataParallel(
                module,
                device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
                broadcast_buffers=False,
                bucket_cap_mb=bucket_mb,
                gradient_as_bucket_view=True,
            )
        self._optimizer = make_optimizer(module.named_parameters())
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._num_accumulation_steps = num_accumulation_steps
        self._max_grad_norm = max_grad_norm
        self._scaler = scaler
        self._compressor = compressor
        self._num_workers = runtime.num_workers
        self._num_sums = 0
        self._gradient_bytes = sum(parameter.nbytes for parameter in self._parameters)
        self._is_first_step, self._rehearses = True, False
        if compressor is not None:
            self._parallel.register_comm_hook(None, self._average)

    def step(self, images: Tensor, targets: Tensor, lr: float, step: int) -> Tensor:
        """See :meth:`Strategy.step`."""
        set_learning_rate([self._optimizer], lr)
        if self._is_first_step and step > 0:
            self._rehearse(images, targets)
        self._is_first_step = False
        if self._compressor is not None:
            self._compressor.begin_step(step)
        loss = self._accumulate_gradients(images, targets)
        self._num_sums += 1
        with span(Activity.update):
            self._update()
        return loss

    def _update(self) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._scaler.unscale(gradients)
        if self._max_grad_norm is not None:
            clip_grads_with_norm_(self._parameters, self._max_grad_norm, get_total_norm(gradients))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()

    def _rehearse(self, images: Tensor, targets: Tensor) -> None:
        """A backward pass without effect, after which DDP forms its buckets anew, in the order of the gradients.

        DDP does that once, after its first step. A step that is made again with the first buckets would add up the
        same numbers in another order, and round them otherwise; and a compressor keeps what it knows bucket by bucket.
        """
        passes = self._num_accumulation_steps
        self._rehearses = True
        own = [buffer.clone() for buffer in self._module.buffers()]
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            self._objective(self._parallel, images.chunk(passes)[0], targets.chunk(passes)[0]).backward()
        self._optimizer.zero_grad()
        for buffer, before in zip(self._module.buffers(), own, strict=True):
            buffer.copy_(before)
        self._rehearses = False

    def _average(self, _: None, bucket: dist.GradBucket) -> Future[Tensor]:
        """Hook of DDP where there is a compressor, for each bucket when its gradients are there."""
        assert self._compressor is not None
        return allreduce_hook(all_workers(), bucket) if self._rehearses else self._compressor.average(bucket)

    def _accumulate_gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        passes = self._num_accumulation_steps
        total = torch.zeros((), device=images.device)
        for number, (some, labels) in enumerate(zip(images.chunk(passes), targets.chunk(passes), strict=True), start=1):
            with nullcontext() if number == passes else self._parallel.no_sync():
                loss = self._objective(self._parallel, some, labels) / passes
                with span(Activity.backward):
                    self._scaler.scaled(loss).backward()
            total += loss.detach()
        return total

    @contextmanager
    def averaged(self, num_steps: int) -> Iterator[Average]:
        """See :meth:`Strategy.averaged`. Parameters are equal already; batch norm's statistics are not."""
        with standing_in(float_buffers(self._module)):
            yield Average(self._module, consensus_distance=0.0, neighbour_distance=0.0)

    def state(self) -> dict[str, Any]:
        """See :meth:`Strategy.state`."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state(),
            "compressor": None if self._compressor is None else self._compressor.state(),
        }

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Strategy.restore`."""
        restore_optimizer(self._optimizer, state["optimizer"])
        self._scaler.restore(state["scaler"])
        if self._compressor is not None:
            self._compressor.restore(state["compressor"], self._parameters[0].device)

    def communication_wait_s(self) -> float:
        """0: DDP waits inside its own backward pass and does not say how long."""
        return 0.0

    @property
    def sent_bytes(self) -> float:
        """See :attr:`Strategy.sent_bytes`. What was given to all-reduces, times what a ring makes of it."""
        plain = self._num_sums * self._gradient_bytes
        given = plain if self._compressor is None else self._compressor.handed_over
        return all_reduce_bytes(given, self._num_workers)
