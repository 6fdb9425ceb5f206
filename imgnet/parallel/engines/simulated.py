"""Any number of workers in one process: they compute in turn, and their rounds are carried out in memory.

Each has parameters, optimizer state, buffers, images and random numbers of its own. What it computes is what a worker
that is a process computes, by the same code; only the messages are copies (:mod:`imgnet.parallel.wire.memory`).
Whoever reads a batch reads that of all workers: the parts of a global batch stand in it in the order of the ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from imgnet.optim.loss_scale import LossScaler
from imgnet.optim.restore import restore_optimizer
from imgnet.parallel.engines.decentralized import NUM_MEASURED_ROUNDS, Decentralized
from imgnet.parallel.engines.members import Member
from imgnet.parallel.engines.strategy import Average, Objective, OptimizerFactory, Strategy, set_learning_rate
from imgnet.parallel.topology import Group, Neighbours, Round, Schedule, all_reduce_bytes
from imgnet.profile.activity import Activity
from imgnet.profile.spans import span


@final
class SimulatedDecentralized(Strategy):
    """The strategies of all workers, one after the other.

    Args:
        members: all workers by rank, each with a :class:`Decentralized` of its own, over one network.
        average: a module of the same kind, which stands for their average.
        schedule: who averages with whom at which step.
    """

    def __init__(self, members: Sequence[Member], average: Module, schedule: Schedule) -> None:
        self._members = members
        self._average = average
        self._schedule = schedule

    def step(self, images: Tensor, targets: Tensor, lr: float, step: int) -> Tensor:
        """See :meth:`Strategy.step`; of the whole global batch, and the loss of each worker, ``[workers]``."""
        losses, number = [], len(self._members)
        for member, some, labels in zip(self._members, images.chunk(number), targets.chunk(number), strict=True):
            with member.turn():
                losses.append(member.strategy.step(some, labels, lr, step))
        return torch.stack(losses)

    @contextmanager
    def averaged(self, num_steps: int) -> Iterator[Average]:
        """See :meth:`Strategy.averaged`. The average stands in a module of its own; no worker's is touched."""
        put_average(self._average, [member.module for member in self._members])
        rounds = self._schedule.next_rounds(max(num_steps - 1, 0), NUM_MEASURED_ROUNDS)
        blocks, points = zip(*map(_blocks_and_points, self._members), strict=True)
        yield Average(self._average, _from_average(blocks, points), _between_neighbours(points, rounds))

    def state(self) -> None:
        """Each member has its own."""

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """Each member has its own."""

    def communication_wait_s(self) -> float:
        """0: nobody waits."""
        return 0.0

    @property
    def sent_bytes(self) -> float:
        """See :attr:`Strategy.sent_bytes`; the mean of the workers, each of which counts its own."""
        return sum(member.strategy.sent_bytes for member in self._members) / len(self._members)


@final
class SimulatedAllReduce(Strategy):
    """Workers that hold the same parameters: their gradients add up in one place, and one update is made for all.

    Args:
        modules: of all workers by rank, with the same :class:`torch.nn.Parameter` objects and buffers of their own.
        average: one more of them.
        objective: the loss.
        make_optimizer: called once, with all parameters.
        num_accumulation_steps: passes in one step.
        max_grad_norm: largest Euclidean norm of the averaged gradient; None for no clipping.
        scaler: not enabled; a checkpoint has its state.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        average: Module,
        objective: Objective,
        make_optimizer: OptimizerFactory,
        *,
        num_accumulation_steps: int,
        max_grad_norm: float | None,
        scaler: LossScaler,
    ) -> None:
        self.members: list[Member] = []
        """All workers by rank, each with this strategy; they take their turns in each step."""
        self._modules = modules
        self._average = average
        self._objective = objective
        self._optimizer = make_optimizer(modules[0].named_parameters())
        self._parameters = [parameter for parameter in modules[0].parameters() if parameter.requires_grad]
        self._num_sums = 0
        self._gradient_bytes = sum(parameter.nbytes for parameter in self._parameters)
        self._num_accumulation_steps = num_accumulation_steps
        self._max_grad_norm = max_grad_norm
        self._scaler = scaler

    def step(self, images: Tensor, targets: Tensor, lr: float, step: int) -> Tensor:
        """See :meth:`Strategy.step`; of the whole global batch, and the loss of each worker, ``[workers]``."""
        set_learning_rate([self._optimizer], lr)
        losses, number = [], len(self.members)
        for member, some, labels in zip(self.members, images.chunk(number), targets.chunk(number), strict=True):
            with member.turn():
                losses.append(self._accumulate_gradients(member.module, some, labels))
        self._num_sums += 1
        with span(Activity.update):
            self._update(number)
        return torch.stack(losses)

    def _update(self, number: int) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_div_(gradients, float(number))  # pyright: ignore[reportPrivateImportUsage]
        if self._max_grad_norm is not None:
            clip_grads_with_norm_(self._parameters, self._max_grad_norm, get_total_norm(gradients))
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _accumulate_gradients(self, module: Module, images: Tensor, targets: Tensor) -> Tensor:
        passes = self._num_accumulation_steps
        total = torch.zeros((), device=images.device)
        for some, labels in zip(images.chunk(passes), targets.chunk(passes), strict=True):
            loss = self._objective(module, some, labels) / passes
            with span(Activity.backward):
                loss.backward()
            total += loss.detach()
        return total

    @contextmanager
    def averaged(self, num_steps: int) -> Iterator[Average]:
        """See :meth:`Strategy.averaged`. Parameters are equal already; batch norm's statistics are not."""
        put_average(self._average, self._modules, parameters=False)
        yield Average(self._average, consensus_distance=0.0, neighbour_distance=0.0)

    def state(self) -> dict[str, Any]:
        """See :meth:`Strategy.state`."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state()}

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Strategy.restore`."""
        restore_optimizer(self._optimizer, state["optimizer"])

    def communication_wait_s(self) -> float:
        """0: nobody waits."""
        return 0.0

    @property
    def sent_bytes(self) -> float:
        """See :attr:`Strategy.sent_bytes`; what each of them would send."""
        return all_reduce_bytes(self._num_sums * self._gradient_bytes, len(self._modules))


def copies_of(module: Module, number: int, *, share_parameters: bool) -> list[Module]:
    """``module`` and so many less one like it, with parameters of their own or the same ones, and own buffers."""
    shared = {id(parameter): parameter for parameter in module.parameters()} if share_parameters else {}
    return [module, *(deepcopy(module, dict(shared)) for _ in range(number - 1))]


@torch.no_grad()
def put_average(target: Module, modules: Sequence[Module], *, parameters: bool = True) -> None:
    """Give ``target`` the mean of all float buffers, and of the parameters, and the first one's other buffers.

    Sums are made in float64, so that they do not depend on how many there are.
    """
    of_target = [*(target.parameters() if parameters else ()), *target.buffers()]
    of_each = [[*(module.parameters() if parameters else ()), *module.buffers()] for module in modules]
    for into, *values in zip(of_target, *of_each, strict=True):
        into.copy_(_mean(values) if into.is_floating_point() else values[0])


def _mean(values: Sequence[Tensor]) -> Tensor:
    total = values[0].double()
    for value in values[1:]:
        total += value
    return total / len(values)


def _blocks_and_points(member: Member) -> tuple[Tensor, Tensor]:
    """All trained parameters of a worker, 1-D, and what it takes gradients at."""
    assert isinstance(member.strategy, Decentralized)
    return torch.cat(member.strategy.blocks), torch.cat(list(member.strategy.points))


def _from_average(blocks: Sequence[Tensor], points: Sequence[Tensor]) -> float:
    mean = _mean(blocks)
    squares = sum(float((point - mean).square().sum()) for point in points)
    return (squares / len(blocks)) ** 0.5


def _between_neighbours(points: Sequence[Tensor], rounds: Sequence[Round]) -> float:
    """``sqrt(mean |x_i - x_j|^2)`` over the pairs that average with each other, once for each round."""
    pairs = [pair for round_ in rounds for pair in _pairs(round_, len(points))]
    if not pairs:
        return 0.0
    distances = {pair: float((points[pair[0]] - points[pair[1]]).double().square().sum()) for pair in set(pairs)}
    return (sum(distances[pair] for pair in pairs) / len(pairs)) ** 0.5


def _pairs(round_: Round, world_size: int) -> Iterator[tuple[int, int]]:
    for rank in range(world_size):
        part = round_.part(rank)
        if isinstance(part, Group):
            if rank == part.ranks[0]:
                yield from combinations(part.ranks, 2)
        elif isinstance(part, Neighbours):
            yield from ((rank, peer) for peer, _ in part.peers if rank < peer)
        elif part is not None:
            yield from ((rank, receiver) for receiver, _ in part.receivers)
