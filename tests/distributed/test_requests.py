"""What one worker is asked for, all do after the same step, and soon."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from imgnet.parallel import requests
from imgnet.parallel.requests import Decision, Requests
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers

STEP_S = 0.3
"""On the clock that the workers look at; the steps themselves take no time."""
ASKED_AFTER = 5


def ask_rank_1_to_stop(runtime: Runtime, first_step: int) -> int | None:
    """After how many steps this worker stops; None where it does not within 100."""
    made = [0]
    requests.time = SimpleNamespace(monotonic=lambda: 1000.0 + STEP_S * made[0])  # type: ignore[assignment]
    stop = threading.Event()
    asked = Requests(stop, None, runtime.rank)
    for made[0] in range(1, 100):
        if made[0] == ASKED_AFTER and runtime.rank == 1:
            stop.set()
        if asked.after_step(first_step + made[0]) == Decision(stop=True):
            return made[0]
    return None


@pytest.mark.parametrize("first_step", [0, 1_000_000])
def test_a_run_that_resumed_late_stops_as_soon_as_one_that_began(first_step: int, tmp_path: Path) -> None:
    stopped = on_workers(ask_rank_1_to_stop, 3, tmp_path, first_step)
    assert stopped == [stopped[0]] * 3
    assert stopped[0] is not None
    assert stopped[0] * STEP_S <= ASKED_AFTER * STEP_S + 3 * requests.PERIOD_S
