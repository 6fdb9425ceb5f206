"""Which worker does not come, when the others have waited for it too long.

A worker that is stopped, or that waits for a file system that has gone, holds up all others inside a collective, whose
own time limit says who noticed first and not who is late. So each worker gives signs of life from a thread, which a
stopped process does not, whatever it was about; and it watches its own progress. When nothing has happened for too
long, who has given no sign is stopped or gone. Where all live, and a step is due, each leaves a word where all can read
it: who is alone in not waiting for anybody is stuck where its word says.
"""

import atexit
import json
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path

import torch.distributed as dist

from imgnet.runtime import Placement, node_name, node_of

GRACE_S = 10.0
"""How long the word of another worker is waited for, beyond a tenth of the time limit; its clock may be that late."""
LOOK_S = 0.25
STORE_LATE_S = 2.0
"""How much longer than it was told to a store may wait for a worker."""
PERIOD_S = 2.0
"""Between two signs of life of a worker."""
SILENT = 0.4
"""A worker is silent that gave no sign for this part of the time limit, while the one that listens made no step for all
of it. A process that holds Python's lock, in a library, is silent as well; none does for that long."""
SLEPT_S = 1.0
"""More than that between two looks is time in which this process was stopped itself, with all others perhaps."""
SLOW_STEPS = 5
"""A step may take so many times as long as the longest before it, whatever the time limit."""
WITHDRAWN = "-"
"""In the place of a word that holds no longer."""
WAITING = (str(Path("imgnet", "parallel")), str(Path("torch", "distributed")))
"""Code in which a worker waits for others."""
GONE = "is gone"
_STATES = {"T": "is stopped (SIGSTOP)", "t": "is stopped by a debugger", "D": "waits for a disk", "Z": GONE}
_CAUSES = (*_STATES.values(), GONE)
"""What the system says of a process that is the reason by itself."""


@dataclass(frozen=True)
class Member:
    """A worker's process."""

    rank: int
    node: str
    machine: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}"


@dataclass(frozen=True)
class Word:
    """What a worker says that has waited too long."""

    step: int
    """Steps that it has made."""
    waits: bool
    """Whether it waits for other workers, and not for anything of its own."""
    stack: str
    """Where its main thread is, the innermost call last."""


@dataclass(frozen=True)
class _Mark:
    """Where this worker is."""

    step: int
    since: float
    is_resting: bool
    """No step is due."""


class Silence:
    """For how long each worker has given no sign of life, in time during which this one could have heard it."""

    def __init__(self, world_size: int) -> None:
        self._last: Sequence[bytes] = ()
        self._silent_s = [0.0] * world_size

    def hear(self, signs: Sequence[bytes], passed_s: float) -> None:
        """Compare the signs of all workers, by rank, with those ``passed_s`` ago."""
        for rank, (before, sign) in enumerate(zip(self._last, signs, strict=False)):
            self._silent_s[rank] = self._silent_s[rank] + passed_s if before == sign else 0.0
        self._last = signs

    def forget(self) -> None:
        """Nobody is listened to any more."""
        self._last = ()
        self._silent_s = [0.0] * len(self._silent_s)

    def longer_than(self, limit_s: float) -> list[int]:
        """Ranks that were silent for so long."""
        return [rank for rank, silent_s in enumerate(self._silent_s) if silent_s > limit_s]


class HangWatch:
    """Ends a run in which a worker has come to a halt.

    Args:
        timeout_s: without a step for so long, a run hangs, unless its steps take long or none is expected; without a
            sign of life a worker hangs whatever it does. None: nobody watches.
        give_up: called from a thread with one line that names the worker and its node, and with all that was found
            out; it ends the process.
        placement: of this worker.
    """

    def __init__(self, timeout_s: float | None, give_up: Callable[[str, str], None], placement: Placement) -> None:
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._give_up = give_up
        self._placement = placement
        self._mark = _Mark(0, time.monotonic(), is_resting=True)
        self._quiet_s = 0.0
        self._longest_s = 0.0
        self._main = threading.get_ident()
        self._silence = Silence(placement.world_size)
        self._unanswered_s = 0.0
        self._has_spoken = False
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def meet(self, make_store: Callable[[], dist.Store]) -> dist.Store:
        """Wait until all workers are there, and watch from then on. Collective.

        Args:
            make_store: connects to what the workers share, which waits for rank 0.
        """
        if self._timeout_s == math.inf:
            return make_store()
        began = time.monotonic()
        with self._patience_with_rank_0():
            store = make_store()
            self._store = dist.PrefixStore("hang", store.clone())
            self._store.set_timeout(timedelta(seconds=GRACE_S))
            self._gather(began + self._timeout_s)
        atexit.register(self.part)
        for name, loop in {"signs of life": self._tell, "hang": self._watch}.items():
            self._threads.append(threading.Thread(target=loop, name=name, daemon=True))
            self._threads[-1].start()
        return store

    def part(self) -> None:
        """All workers are done; who ends from now on holds up nobody. At the latest when this process ends in order.

        Returns when the threads have ended: one that comes back from the store after Python has ended aborts the
        process ("terminate called without an active exception").
        """
        self._is_over.set()
        for thread in self._threads:
            thread.join(GRACE_S + STORE_LATE_S)

    def step_made(self, step: int) -> None:
        """From now on the next step is waited for."""
        before, self._mark = self._mark, _Mark(step, time.monotonic(), is_resting=False)
        if not before.is_resting:
            self._longest_s = max(self._longest_s, self._mark.since - before.since)

    def rest(self) -> None:
        """Until the next step is made nothing is expected: an evaluation and a checkpoint take what they take."""
        self._mark = _Mark(self._mark.step, time.monotonic(), is_resting=True)

    @contextmanager
    def _patience_with_rank_0(self) -> Iterator[None]:
        """Give up where it does not answer, which the store itself may wait for without end."""
        timer = threading.Timer(self._timeout_s + STORE_LATE_S, lambda: self._give_up(*self._without([0])))
        timer.daemon = True
        if self._placement.rank > 0:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _gather(self, end: float) -> None:
        """Learn who the workers are; give up on those that do not come before ``end``, of this worker's clock."""
        rank, ranks = self._placement.rank, range(self._placement.world_size)
        self._store.set(f"life/{rank}", "0")
        self._store.set(
            f"member/{rank}", json.dumps(asdict(Member(rank, node_name(), socket.gethostname(), os.getpid())))
        )
        try:
            self._store.wait(
                [f"member/{other}" for other in ranks], timedelta(seconds=max(LOOK_S, end - time.monotonic()))
            )
        except RuntimeError:
            self._give_up(*self._without([other for other in ranks if not self._store.check([f"member/{other}"])]))
        members = self._store.multi_get([f"member/{other}" for other in ranks])
        self._members = [Member(**json.loads(member)) for member in members]

    def _without(self, absent: Sequence[int]) -> tuple[str, str]:
        named = " and ".join(f"rank {rank} on {node_of(rank, self._placement)}" for rank in absent)
        return f"not all workers came within {self._timeout_s / 60:g} min, because of {named}", ""

    def _tell(self) -> None:
        """Give signs of life and, where nothing has happened for a while, look for those of the others."""
        period_s = min(PERIOD_S, self._timeout_s / 20)
        ranks = range(self._placement.world_size)
        looked = time.monotonic()
        with suppress(RuntimeError):  # rank 0 has ended, and nobody waits for anybody any more
            for number in count(1):
                self._store.set(f"life/{self._placement.rank}", str(number))
                before, looked = looked, time.monotonic()
                if self._quiet_s > self._timeout_s / 2:
                    passed_s = min(looked - before, 2 * period_s)  # as in _watch
                    self._silence.hear(self._store.multi_get([f"life/{rank}" for rank in ranks]), passed_s)
                else:
                    self._silence.forget()
                    self._withdraw()
                self._unanswered_s = 0.0
                if self._is_over.wait(period_s):
                    break
        self._unanswered_s = -math.inf

    def _withdraw(self) -> None:
        """A step was made after all; what was said meanwhile would mislead the next time."""
        if self._has_spoken:
            self._has_spoken = False
            self._store.set(f"word/{self._placement.rank}", WITHDRAWN)

    def _watch(self) -> None:
        before, looked = self._mark, time.monotonic()
        while not self._is_over.wait(min(LOOK_S, self._timeout_s / 4)):
            mark, now = self._mark, time.monotonic()
            passed_s = min(now - looked, SLEPT_S)  # it may be that this worker itself was stopped
            self._quiet_s = self._quiet_s + passed_s if mark is before else 0.0
            self._unanswered_s += passed_s
            before, looked = mark, now
            found = self._judge(mark)
            if found is not None and self._mark is mark and not self._is_over.is_set():
                self._give_up(*found)

    def _judge(self, mark: "_Mark") -> tuple[str, str] | None:
        """Who holds up this worker, if anybody does."""
        if self._quiet_s <= self._timeout_s:
            return None
        if self._unanswered_s > SILENT * self._timeout_s:
            return verdict(self._members, None, self._timeout_s)
        if silent := self._silence.longer_than(SILENT * self._timeout_s):
            return silence_of([self._members[rank] for rank in silent], self._timeout_s), ""
        limit_s = max(self._timeout_s, SLOW_STEPS * self._longest_s)
        if mark.is_resting or self._quiet_s <= limit_s:
            return None
        return verdict(self._members, self._words(mark.step), limit_s)

    def _words(self, step: int) -> dict[int, Word] | None:
        """What the workers say, by rank; None where the one that keeps the words, which is rank 0, does not answer."""
        found: list[dict[int, Word]] = []
        patience = GRACE_S + self._timeout_s / 10
        asking = threading.Thread(target=lambda: found.append(self._exchange(step, patience)), daemon=True)
        asking.start()
        asking.join(patience + GRACE_S)
        return found[0] if found else None

    def _exchange(self, step: int, patience: float) -> dict[int, Word]:
        rank, end = self._placement.rank, time.monotonic() + patience
        self._store.set(f"word/{rank}", json.dumps(asdict(_word(step, self._main))))
        self._has_spoken = True
        words: dict[int, Word] = {}
        while len(words) < len(self._members) and time.monotonic() < end and not self._is_over.is_set():
            keys = {member.rank: f"word/{member.rank}" for member in self._members if member.rank not in words}
            there = {other: self._store.get(key) for other, key in keys.items() if self._store.check([key])}
            words |= {other: Word(**json.loads(text)) for other, text in there.items() if text.decode() != WITHDRAWN}
            self._is_over.wait(LOOK_S)
        return words


def _word(step: int, thread: int) -> Word:
    frames = traceback.extract_stack(sys._current_frames().get(thread))
    waits = any(part in frame.filename for frame in frames for part in WAITING)
    return Word(step, waits, "".join(traceback.format_list(frames)))


def stack_of(thread: int) -> str:
    """Where a thread of this process is, the innermost call last."""
    return "".join(traceback.format_stack(sys._current_frames().get(thread)))


def verdict(members: list[Member], words: Mapping[int, Word] | None, timeout_s: float) -> tuple[str, str]:
    """Who is late, in one line, and what is known of it.

    Args:
        members: all workers, by rank.
        words: of those that said one; None where rank 0, which keeps them, does not answer.
        timeout_s: for how long no step was made.
    """
    silent = members[:1] if words is None else [member for member in members if member.rank not in words]
    if silent:
        return silence_of(silent, timeout_s), ""
    assert words is not None
    behind = min(word.step for word in words.values())
    late = [rank for rank, word in words.items() if word.step == behind]
    stuck = (
        [rank for rank in late if not words[rank].waits] or [rank for rank in words if not words[rank].waits] or late
    )
    since = _since(timeout_s)
    if len(stuck) == len(members):
        return f"{since}, and all workers wait in step {behind + 1}", words[0].stack
    names = " and ".join(str(members[rank]) for rank in stuck)
    return f"{since}, because of {names}: in step {words[stuck[0]].step + 1}", words[stuck[0]].stack


def silence_of(silent: Sequence[Member], timeout_s: float) -> str:
    """One line on workers of which nothing is heard."""
    states = {member: _process_state(member) for member in silent}
    # Others may not have waited for as long as this worker, and have nothing to say yet.
    named = {member: state for member, state in states.items() if state in _CAUSES} or states
    told = "; ".join(f"{member} {state}" for member, state in named.items())
    return f"{_since(timeout_s)}, because of {' and '.join(map(str, named))}: {told}"


def _since(timeout_s: float) -> str:
    return f"no step for {timeout_s / 60:g} min"


def _process_state(member: Member) -> str:
    """What the system says of a process; only its own machine can tell."""
    if member.machine != socket.gethostname():
        return "does not answer (its process is stopped, or its node is gone)"
    try:
        text = Path(f"/proc/{member.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return GONE
    return _STATES.get(text.rpartition(")")[2].split()[0], "does not answer")
