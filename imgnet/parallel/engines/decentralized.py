"""Parameters averaged with a few workers in each step, hidden behind the next forward and backward pass.

On worker ``i``, with ``W_t`` the mixing matrix of the topology's round ``t``, both counted from 0, and ``u``
the optimizer's update::

    x_i[t+1] = sum_j W_{t-1}[i, j] x_j[t] - lr * u(gradient at x_i[t])

The averaging of ``x[t]`` starts when it is computed and ends when the gradient at it is there, so that it costs time
only where it takes longer than a forward and a backward pass (arXiv 2410.11998). All of this is done for each bucket
of parameters by itself, as soon as the backward pass has that bucket's gradients. Other ways to average
(:mod:`imgnet.parallel.averaging`) start and end averages at other times.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from imgnet.config import WireDtype
from imgnet.optim.loss_scale import LossScaler
from imgnet.optim.restore import restore_optimizer
from imgnet.parallel.average import divided, float_buffers, neighbour_distance, standing_in
from imgnet.parallel.averaging.method import MakeMethod
from imgnet.parallel.averaging.methods.every_step import EveryStep
from imgnet.parallel.collectives import broadcast_from_first
from imgnet.parallel.engines.strategy import Average, Objective, OptimizerFactory, Strategy, set_learning_rate
from imgnet.parallel.flat import NamedParameter, flatten, split_into_buckets
from imgnet.parallel.mixing import Mixer, sums_over
from imgnet.parallel.topology import Schedule
from imgnet.parallel.wire import Wire
from imgnet.parallel.wire.processes import ProcessWire
from imgnet.profile.activity import Activity
from imgnet.profile.spans import span
from imgnet.runtime import Runtime

NUM_MEASURED_ROUNDS = 8
"""At most so many rounds of a topology are looked at for the distance between neighbours."""


class Bucket:
    """Parameters that are updated and averaged together: views of one ``block``, with an optimizer of their own."""

    def __init__(self, named_parameters: list[NamedParameter], make_optimizer: OptimizerFactory) -> None:
        self.parameters: list[Parameter] = [parameter for _, parameter in named_parameters]
        self.block = flatten(self.parameters)
        self.optimizer: Optimizer = make_optimizer(named_parameters)
        self.num_missing = len(self.parameters)
        """Gradients that this backward pass has not yet brought."""


@final
class Decentralized(Strategy):
    """Each worker has its own parameters, makes its own update, and averages with the peers of each round.

    With gradient clipping or a loss scale no update can start before the whole gradient is known, so updates then
    follow the backward pass; the averaging still hides behind the next step.

    Args:
        module: the model on its device; rank 0's values win.
        objective: the loss.
        make_optimizer: called once for each bucket.
        schedule: who averages with whom at which step.
        runtime: this worker.
        num_accumulation_steps: passes in one step.
        max_grad_norm: largest Euclidean norm of this worker's gradient over its whole model; None for no clipping.
        scaler: loss scaling.
        bucket_mb: size of a message, in 2^20 bytes.
        num_buckets: of smaller messages, where the model would have fewer.
        wire_dtype: numbers in the messages.
        make_method: how and when this worker averages.
        wire: to the other workers, whose models are the same; None: to the processes of the group, which get rank 0's.
    """

    def __init__(
        self,
        module: Module,
        objective: Objective,
        make_optimizer: OptimizerFactory,
        schedule: Schedule,
        runtime: Runtime,
        *,
        num_accumulation_steps: int,
        max_grad_norm: float | None,
        scaler: LossScaler,
        bucket_mb: int,
        num_buckets: int = 1,
        wire_dtype: WireDtype = WireDtype.fp32,
        make_method: MakeMethod = EveryStep,
        wire: Wire | None = None,
    ) -> None:
        self._module = module
        self._objective = objective
        self._num_accumulation_steps = num_accumulation_steps
        self._max_grad_norm = max_grad_norm
        self._scaler = scaler
        trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        parts = split_into_buckets(trained, bucket_mb * 2**20, num_buckets)
        self._buckets = [Bucket(part, make_optimizer) for part in parts]
        self._schedule = schedule
        self._rank = runtime.rank
        if wire is None:
            broadcast_from_first(self.blocks + list(module.buffers()))
            wire = ProcessWire(runtime.device, sums_over(schedule, wire_dtype))
        self._wire = wire
        self._mixer = Mixer(schedule, self.blocks, runtime.rank, wire_dtype, wire)
        self._method = make_method(self._mixer)
        self._next = 0
        self._last_pass = False
        self._update_in_backward = max_grad_norm is None and not scaler.enabled
        for index, bucket in enumerate(self._buckets):
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._gradient_arrived(index))

    @property
    def blocks(self) -> list[Tensor]:
        """The trained parameters, in a block for each bucket."""
        return [bucket.block for bucket in self._buckets]

    @property
    def points(self) -> Sequence[Tensor]:
        """What gradients are taken at, of the shapes of the blocks: these themselves, or new tensors."""
        return divided(self.blocks, self._method.weight)

    def step(self, images: Tensor, targets: Tensor, lr: float, step: int) -> Tensor:
        """See :meth:`Strategy.step`."""
        set_learning_rate((bucket.optimizer for bucket in self._buckets), lr)
        for bucket in self._buckets:
            bucket.num_missing = len(bucket.parameters)
        self._next = 0
        with torch.no_grad(), span(Activity.update):
            self._method.before_step(step, lr)
        loss = self._accumulate_gradients(images, targets)
        if not self._update_in_backward:
            with span(Activity.update):
                self._make_gradients_ready()
        self._update_buckets(len(self._buckets))  # those with a parameter that had no gradient are left
        self._scaler.update()
        return loss

    def _accumulate_gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        passes = self._num_accumulation_steps
        total = torch.zeros((), device=images.device)
        for number, (some, labels) in enumerate(zip(images.chunk(passes), targets.chunk(passes), strict=True), start=1):
            self._last_pass = number == passes
            loss = self._objective(self._module, some, labels) / passes
            with span(Activity.backward):
                self._scaler.scaled(loss).backward()
            total += loss.detach()
        self._last_pass = False
        return total

    def _gradient_arrived(self, index: int) -> None:
        """Hook of every parameter. Updates buckets in one order on all workers, so that their messages match."""
        if not (self._last_pass and self._update_in_backward):
            return
        self._buckets[index].num_missing -= 1
        ready = self._next
        while ready < len(self._buckets) and self._buckets[ready].num_missing == 0:
            ready += 1
        self._update_buckets(ready)

    def _update_buckets(self, end: int) -> None:
        while self._next < end:
            self._update(self._next)
            self._next += 1

    @torch.no_grad()
    def _update(self, index: int) -> None:
        """Make the local update of a bucket, between what the way to average does before and after it."""
        optimizer = self._buckets[index].optimizer
        with span(Activity.update):
            self._method.before_update(index)
            self._scaler.step(optimizer)
            optimizer.zero_grad()
            self._method.after_update(index)

    def _make_gradients_ready(self) -> None:
        # In the order of the model, so that the norm rounds as it does in plain training.
        parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._scaler.unscale(gradients)
        if self._max_grad_norm is not None:
            clip_grads_with_norm_(parameters, self._max_grad_norm, get_total_norm(gradients))

    @contextmanager
    def averaged(self, num_steps: int) -> Iterator[Average]:
        """See :meth:`Strategy.averaged`. Averages under way arrive first, and are taken in at the next step."""
        for averaging in self._method.averagings:
            averaging.settle()
        rounds = self._schedule.next_rounds(max(num_steps - 1, 0), NUM_MEASURED_ROUNDS)
        between_neighbours = neighbour_distance(self.points, rounds, self._rank, self._wire)
        with (
            standing_in(float_buffers(self._module)),
            standing_in(self.blocks, self._method.weight) as from_average,
        ):
            yield Average(self._module, from_average, between_neighbours)

    def state(self) -> dict[str, Any]:
        """See :meth:`Strategy.state`. Averages that are under way are left out: they follow from the parameters."""
        return {
            "optimizers": [bucket.optimizer.state_dict() for bucket in self._buckets],
            "scaler": self._scaler.state(),
            "averaging": self._method.state(),
        }

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Strategy.restore`. Starts the averages anew that were under way; the same numbers come of it."""
        self._scaler.restore(state["scaler"])
        for bucket, optimizer_state in zip(self._buckets, state["optimizers"], strict=True):
            restore_optimizer(bucket.optimizer, optimizer_state)
        with torch.no_grad():
            self._method.restore(state.get("averaging", {}), num_steps)

    def communication_wait_s(self) -> float:
        """See :meth:`Strategy.communication_wait_s`."""
        return self._mixer.clock.take()

    @property
    def sent_bytes(self) -> float:
        """See :attr:`Strategy.sent_bytes`. Counted when an average starts, with the padding between parameters."""
        return sum(averaging.sent_bytes for averaging in self._method.averagings)
