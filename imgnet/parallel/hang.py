"""Which worker does not come, when the others have waited for it too long.

A worker that is stopped, or that waits for a file system that has gone, holds up all others inside a collective, whose
own time limit says who noticed first and not who is late. So each worker watches its own progress from a thread. One
that has made no step for too long leaves a word where all can read it, and waits for the words of the others: who
leaves none is stopped or gone, and who is alone in not waiting for anybody is stuck where its word says. While steps
are made nothing is sent.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from imgnet.runtime import node_name

GRACE_S = 10.0
"""How long the word of another worker is waited for, beyond a tenth of the time limit; its clock may be that late."""
LOOK_S = 0.25
SLOW_STEPS = 5
"""A step may take so many times as long as the longest before it, whatever the time limit."""
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


class HangWatch:
    """Ends a run in which a worker has come to a halt. Making one is collective.

    Args:
        timeout_s: without a step for so long, a run hangs, unless its steps take long; None: nobody watches.
        give_up: called from a thread with one line that names the worker and its node, and with all that was found
            out; it ends the process.
    """

    def __init__(self, timeout_s: float | None, give_up: Callable[[str, str], None]) -> None:
        self._timeout_s = timeout_s
        self._give_up = give_up
        self._step = 0
        self._since: float | None = None
        self._longest_s = 0.0
        self._main = threading.get_ident()
        if timeout_s is None:
            return
        members: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(members, asdict(Member(dist.get_rank(), node_name(), socket.gethostname(), os.getpid())))
        self._members = [Member(**member) for member in members]
        self._store = dist.PrefixStore("hang", _get_default_store().clone())
        self._store.set_timeout(timedelta(seconds=GRACE_S))
        threading.Thread(target=self._watch, name="hang", daemon=True).start()

    def step_made(self, step: int) -> None:
        """From now on the next step is waited for."""
        now = time.monotonic()
        if self._since is not None:
            self._longest_s = max(self._longest_s, now - self._since)
        self._step, self._since = step, now

    def rest(self) -> None:
        """Until the next step is made nothing is expected: an evaluation and a checkpoint take what they take."""
        self._since = None

    def _watch(self) -> None:
        assert self._timeout_s is not None
        while True:
            since = self._since
            limit_s = max(self._timeout_s, SLOW_STEPS * self._longest_s)
            if since is not None and time.monotonic() - since > limit_s:
                words = self._words()
                if self._since == since:
                    self._give_up(*verdict(self._members, words, limit_s))
            time.sleep(min(LOOK_S, self._timeout_s / 4))

    def _words(self) -> dict[int, Word] | None:
        """What the workers say, by rank; None where the one that keeps the words, which is rank 0, does not answer."""
        assert self._timeout_s is not None
        found: list[dict[int, Word]] = []
        patience = GRACE_S + self._timeout_s / 10
        asking = threading.Thread(target=lambda: found.append(self._exchange(patience)), daemon=True)
        asking.start()
        asking.join(patience + GRACE_S)
        return found[0] if found else None

    def _exchange(self, patience: float) -> dict[int, Word]:
        rank, end = dist.get_rank(), time.monotonic() + patience
        self._store.set(str(rank), json.dumps(asdict(_word(self._step, self._main))))
        missing = {member.rank for member in self._members}
        while missing and time.monotonic() < end:
            missing -= {rank for rank in missing if self._store.check([str(rank)])}
            time.sleep(LOOK_S)
        there = [member.rank for member in self._members if member.rank not in missing]
        return {rank: Word(**json.loads(self._store.get(str(rank)))) for rank in there}


def _word(step: int, thread: int) -> Word:
    frames = traceback.extract_stack(sys._current_frames().get(thread))
    waits = any(part in frame.filename for frame in frames for part in WAITING)
    return Word(step, waits, "".join(traceback.format_list(frames)))


def verdict(members: list[Member], words: Mapping[int, Word] | None, timeout_s: float) -> tuple[str, str]:
    """Who is late, in one line, and what is known of it.

    Args:
        members: all workers, by rank.
        words: of those that said one; None where rank 0, which keeps them, does not answer.
        timeout_s: for how long no step was made.
    """
    silent = members[:1] if words is None else [member for member in members if member.rank not in words]
    since = f"no step for {timeout_s / 60:g} min"
    if silent:
        states = {member: _process_state(member) for member in silent}
        # Others may not have waited for as long as this worker, and have nothing to say yet.
        named = {member: state for member, state in states.items() if state in _CAUSES} or states
        told = "; ".join(f"{member} {state}" for member, state in named.items())
        return f"{since}, because of {' and '.join(map(str, named))}: {told}", ""
    assert words is not None
    behind = min(word.step for word in words.values())
    late = [rank for rank, word in words.items() if word.step == behind]
    stuck = (
        [rank for rank in late if not words[rank].waits] or [rank for rank in words if not words[rank].waits] or late
    )
    if len(stuck) == len(members):
        return f"{since}, and all workers wait in step {behind + 1}", words[0].stack
    names = " and ".join(str(members[rank]) for rank in stuck)
    return f"{since}, because of {names}: in step {words[stuck[0]].step + 1}", words[stuck[0]].stack


def _process_state(member: Member) -> str:
    """What the system says of a process; only its own machine can tell."""
    if member.machine != socket.gethostname():
        return "does not answer (its process is stopped, or its node is gone)"
    try:
        text = Path(f"/proc/{member.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return GONE
    return _STATES.get(text.rpartition(")")[2].split()[0], "does not answer")
