"""Which topology holds at which step: a run may begin with one and go over to another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imgnet.parallel.topology.period import Topology
from imgnet.parallel.topology.rounds import DirectedRound, Round


@dataclass(frozen=True)
class Phase:
    """A topology, from an optimizer step on. Its round 0 is the round of that step."""

    first_step: int
    topology: Topology


@dataclass(frozen=True)
class Schedule:
    """The topologies of a run, one after the other.

    The round of a step follows from the step alone, so that a run that resumes needs to know nothing else.
    """

    phases: tuple[Phase, ...]
    exact: Topology | None = None
    """All workers in one group, beside the phases: where the way to average asks for that now and then."""

    def __post_init__(self) -> None:
        starts = [phase.first_step for phase in self.phases]
        if not starts or starts[0] != 0:
            raise ValueError(f"phases begin at steps {starts}; the first must begin at step 0")
        if starts != sorted(set(starts)):
            raise ValueError(f"phases begin at steps {starts}; each must begin after the one before it")
        sizes = {phase.topology.world_size for phase in self.phases}
        if len(sizes) > 1:
            raise ValueError(f"phases are for {sorted(sizes)} workers; a run has one number of workers")

    @classmethod
    def constant(cls, topology: Topology) -> "Schedule":
        """One topology from the first step to the last."""
        return cls((Phase(0, topology),))

    def phase_at(self, step: int) -> Phase:
        """The phase of step 0, 1, 2, ..."""
        return next(phase for phase in reversed(self.phases) if phase.first_step <= step)

    def round_at(self, step: int) -> Round:
        """The round of step 0, 1, 2, ..."""
        phase = self.phase_at(step)
        return phase.topology.round_at(step - phase.first_step)

    def exact_round(self) -> Round:
        """The exact average of all workers."""
        assert self.exact is not None
        return self.exact.round_at(0)

    @property
    def topologies(self) -> tuple[Topology, ...]:
        """All that a run may need, in the order of the phases."""
        return tuple(phase.topology for phase in self.phases) + (() if self.exact is None else (self.exact,))

    @property
    def directed(self) -> Topology | None:
        """The first topology that is directed."""
        return next((phase.topology for phase in self.phases if phase.topology.is_directed), None)

    @property
    def has_arrows_alone(self) -> bool:
        """Whether all rounds in which somebody communicates are directed."""
        rounds = (round_ for topology in self.topologies for round_ in topology.rounds)
        return all(round_.is_idle or isinstance(round_, DirectedRound) for round_ in rounds)

    def communicators(self) -> tuple[tuple[int, ...], ...]:
        """Distinct groups of two or more ranks in all phases, in the order of first use."""
        return tuple(dict.fromkeys(ranks for topology in self.topologies for ranks in topology.communicators()))

    def next_rounds(self, step: int, limit: int) -> Sequence[Round]:
        """The distinct rounds of the period that begins at ``step`` in which somebody communicates, at most ``limit``.

        In the order in which they come; the phase is that of ``step``.
        """
        rounds: dict[Round, None] = {}
        for round_ in self._period(step):
            if not round_.is_idle and len(rounds) < limit:
                rounds.setdefault(round_)
        return list(rounds)

    def _period(self, step: int) -> Iterator[Round]:
        phase = self.phase_at(step)
        for offset in range(len(phase.topology.rounds)):
            yield phase.topology.round_at(step - phase.first_step + offset)
