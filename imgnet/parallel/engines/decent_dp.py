"""``decent-dp`` as published, behind the same interface: the reference that our engine is compared with.

What it cannot do is refused before the start (``imgnet.launch.checks``). What is mended here, without touching it:
the rounds of a topology come from :mod:`imgnet.parallel.topology` and are carried out in order, each update has the
learning rate of its own step, and buffers are averaged for evaluation and handed back.

Its schedulers advance right after an update, in the backward pass, when the rate of the next step is not known yet.
So it is given none, and the rate is set on its optimizers between a forward and a backward pass.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from decent_dp.ddp import DecentralizedDataParallel
from decent_dp.topo import Edge, TopologyReg
from decent_dp.topo import Topology as DecentDpTopology
from loguru import logger
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from imgnet.parallel.average import float_buffers, neighbour_distance, standing_in
from imgnet.parallel.averaging.consensus import ConsensusFactor
from imgnet.parallel.collectives import broadcast_from_first
from imgnet.parallel.engines.strategy import Average, Objective, OptimizerFactory, Strategy, set_learning_rate
from imgnet.parallel.topology import Group, GroupRound, Topology, all_reduce_bytes
from imgnet.parallel.wire.processes import ProcessWire
from imgnet.profile.activity import Activity
from imgnet.profile.spans import span
from imgnet.runtime import Runtime


@final
class DecentDp(Strategy):
    """``DecentralizedDataParallel`` of decent-dp.

    It learns the order of the parameters in the first step, whose update follows at the beginning of the second: a run
    of N steps makes N updates for N of two or more, and an evaluation after the first step sees the start.

    Args:
        module: the model on its device; rank 0's values win.
        objective: the loss.
        make_optimizer: called once for each bucket.
        topology: rounds of disjoint groups of two or more.
        runtime: this worker.
        num_accumulation_steps: passes in one step.
        bucket_mb: size of a message, in 2^20 bytes.
        factor: share of an average that is taken in; None: all of it.
    """

    def __init__(
        self,
        module: Module,
        objective: Objective,
        make_optimizer: OptimizerFactory,
        topology: Topology,
        runtime: Runtime,
        *,
        num_accumulation_steps: int,
        bucket_mb: int,
        factor: ConsensusFactor | None = None,
    ) -> None:
        logger.remove()  # its messages repeat what the run directory says
        logger.add(sys.stderr, level="WARNING")
        self._module = module
        self._objective = objective
        self._make_optimizer = make_optimizer
        self._num_accumulation_steps = num_accumulation_steps
        self._topology = topology
        self._factor = factor
        self._rank = runtime.rank
        self._wire = ProcessWire(runtime.device)
        self._optimizers: list[Optimizer] = []
        self._lr_of_last_step = 0.0
        self._num_bytes = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
        self._sent_bytes = 0.0
        broadcast_from_first(list(module.buffers()))
        self._parallel = DecentralizedDataParallel(
            module,
            optim_fn=self._optimizer_of_bucket,  # type: ignore[arg-type]
            topology=_register(topology),
            bucket_size_in_mb=bucket_mb,
            _local_world_size=runtime.local_world_size,
        )

    def _optimizer_of_bucket(self, named_parameters: Iterable[tuple[str, Parameter]]) -> Optimizer:
        """Called in the second step's forward pass, which then makes the update of the first step."""
        optimizer = self._make_optimizer(named_parameters)
        set_learning_rate([optimizer], self._lr_of_last_step)
        self._optimizers.append(optimizer)
        return optimizer

    def step(self, images: Tensor, targets: Tensor, lr: float, step: int) -> Tensor:
        """See :meth:`Strategy.step`. The package counts steps itself, from its first one on; it never resumes."""
        passes = self._num_accumulation_steps
        if self._factor is not None:
            self._parallel.set_adaptive_factor(self._factor(step, lr))
        total = torch.zeros((), device=images.device)
        for number, (some, labels) in enumerate(zip(images.chunk(passes), targets.chunk(passes), strict=True), start=1):
            self._parallel.set_accumulate_grad(number < passes)
            loss = self._objective(self._parallel, some, labels) / passes
            set_learning_rate(self._optimizers, lr)  # the backward pass makes the update
            with span(Activity.backward):
                loss.backward()
            total += loss.detach()
        self._lr_of_last_step = lr
        if isinstance(part := self._topology.round_at(step).part(self._rank), Group):
            self._sent_bytes += all_reduce_bytes(self._num_bytes, len(part.ranks))
        return total

    @contextmanager
    def averaged(self, num_steps: int) -> Iterator[Average]:
        """See :meth:`Strategy.averaged`."""
        parameters = [parameter.data for parameter in self._module.parameters()]
        together = torch.cat([parameter.reshape(-1) for parameter in parameters])
        between_neighbours = neighbour_distance([together], self._topology.rounds, self._rank, self._wire)
        with standing_in(float_buffers(self._module)), standing_in(parameters) as from_average:
            yield Average(self._module, from_average, between_neighbours)

    def state(self) -> None:
        """None: the package has no state that could be saved and put back."""

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """Never called, for want of a state."""
        raise AssertionError(f"decent-dp cannot go on from {sorted(state)} after {num_steps} steps")

    def communication_wait_s(self) -> float:
        """0: the package does not say how long it waits."""
        return 0.0

    @property
    def sent_bytes(self) -> float:
        """See :attr:`Strategy.sent_bytes`. By the rounds; the package sends the first one's in the second step."""
        return self._sent_bytes


def _register(topology: Topology) -> str:
    """Make decent-dp know our rounds under a name of their own."""
    name = f"imgnet-{topology.name}"
    TopologyReg.registry.pop(name, None)

    @TopologyReg.register(name)
    class Registered(DecentDpTopology):
        """The rounds of ``topology``, one after the other.

        decent-dp asks for step 1 to start the first averaging, for step 2 to finish it, and for each later step both
        to start and to finish one; taken as it is, round 1 would come twice and round 0 late.
        """

        def _get_topo_edges(self) -> list[list[Edge]]:
            rounds = []
            for one_round in topology.rounds:
                assert isinstance(one_round, GroupRound)
                rounds.append([Edge(list(group.ranks), group.weight) for group in one_round.groups])
            return rounds

        def get_edge(self, step: int) -> Edge:
            return super().get_edge(max(step - 2, 0))

    return name
