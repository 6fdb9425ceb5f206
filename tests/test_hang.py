"""Who is late: a worker that has stopped, one that is stuck, and workers that all wait."""

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist

from imgnet.parallel.collectives import shared_store
from imgnet.parallel.hang import HangWatch, Member, Silence, Word, verdict
from imgnet.runtime import Placement, Runtime, node_name
from tests.distributed.harness import on_workers

HERE = socket.gethostname()
MEMBERS = [Member(rank, f"n{rank // 2 + 1}", "elsewhere", 1) for rank in range(4)]


def words(**changes: Word) -> dict[int, Word]:
    return {rank: changes.get(f"rank{rank}", Word(7, waits=True, stack="waiting")) for rank in range(4)}


def test_who_says_nothing_is_named_with_its_node() -> None:
    said = {rank: word for rank, word in words().items() if rank != 3}
    line, _ = verdict(MEMBERS, said, 300)
    assert line == (
        "no step for 5 min, because of rank 3 on n2: rank 3 on n2 does not answer (its process is stopped, or its node "
        "is gone)"
    )


def test_rank_0_is_named_where_it_keeps_the_words_and_does_not_answer() -> None:
    assert verdict(MEMBERS, None, 60)[0].startswith("no step for 1 min, because of rank 0 on n1: ")


@pytest.mark.parametrize("step", [6, 7])
def test_who_waits_for_nobody_is_named_with_its_stack(step: int) -> None:
    said = words(rank1=Word(step, waits=False, stack="reading a file"))
    assert verdict(MEMBERS, said, 60) == (
        f"no step for 1 min, because of rank 1 on n1: in step {step + 1}",
        "reading a file",
    )


def test_who_is_steps_behind_is_named() -> None:
    assert verdict(MEMBERS, words(rank2=Word(5, waits=True, stack="here")), 60)[0].endswith("rank 2 on n2: in step 6")


def test_nobody_is_named_where_all_wait() -> None:
    assert verdict(MEMBERS, words(), 60)[0] == "no step for 1 min, and all workers wait in step 8"


@pytest.mark.parametrize(("number", "state"), [("STOP", "is stopped (SIGSTOP)"), ("KILL", "is gone")])
def test_the_system_says_what_became_of_a_process_of_this_machine(number: str, state: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        subprocess.run(["kill", f"-{number}", str(process.pid)], check=True)
        wanted = f"rank 0 on n1 {state}"
        end = time.monotonic() + 10
        while not verdict([Member(0, "n1", HERE, process.pid)], {}, 60)[0].endswith(wanted):
            assert time.monotonic() < end
    finally:
        process.kill()
        process.communicate()


def test_who_is_stopped_is_named_alone_where_others_have_not_spoken_yet() -> None:
    stopped = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        subprocess.run(["kill", "-STOP", str(stopped.pid)], check=True)
        members = [Member(0, "n1", HERE, os.getpid()), Member(1, "n1", HERE, stopped.pid), *MEMBERS[2:]]
        end = time.monotonic() + 10
        while "SIGSTOP" not in (line := verdict(members, {3: words()[3]}, 60)[0]):
            assert time.monotonic() < end
        assert line == "no step for 1 min, because of rank 1 on n1: rank 1 on n1 is stopped (SIGSTOP)"
    finally:
        stopped.kill()
        stopped.communicate()


def _hang(runtime: Runtime, stuck: int) -> tuple[str, str]:
    """Steps are all-reduces; one worker stops making them for something of its own."""
    found: list[tuple[str, str]] = []
    over = threading.Event()

    def give_up(error: str, stack: str) -> None:
        found.append((error, stack))
        over.set()

    watch = HangWatch(0.5, give_up, Placement(runtime.rank, runtime.world_size, 0, 1))
    watch.meet(shared_store)
    for step in (1, 2):
        dist.all_reduce(torch.ones(1))
        watch.step_made(step)
    if runtime.rank == stuck:
        _read_from_a_server_that_is_gone(over)
    dist.all_reduce(torch.ones(1))
    assert over.wait(60)
    dist.barrier()  # all have read what the others say
    watch.rest()
    return found[0]


def _read_from_a_server_that_is_gone(over: threading.Event) -> None:
    over.wait(60)


def test_real_workers_agree_on_who_is_stuck(tmp_path: Path) -> None:
    for error, stack in on_workers(_hang, 3, tmp_path, 1):
        node = os.environ.get("SLURMD_NODENAME", HERE)
        assert re.fullmatch(rf"no step for \S+ min, because of rank 1 on {re.escape(node)}: in step 3", error)
        assert "_read_from_a_server_that_is_gone" in stack


def _stopped_while_no_step_is_due(runtime: Runtime, folder: Path, stopped: int) -> str:
    """All workers evaluate, for longer than the time limit; then one of them is stopped."""
    found: queue.Queue[str] = queue.Queue()
    watch = HangWatch(1.0, lambda error, _: found.put(error), Placement(runtime.rank, runtime.world_size, 0, 1))
    watch.meet(shared_store)
    watch.step_made(1)
    watch.rest()
    others = dist.new_group(list(range(stopped)))
    (folder / f"pid {runtime.rank}").write_text(str(os.getpid()))
    if runtime.rank == stopped:
        until((folder / "it may go on").exists)
        return ""
    with pytest.raises(queue.Empty):
        found.get(timeout=2.0)
    dist.all_reduce(torch.ones(1), group=cast("dist.ProcessGroup", others))
    os.kill(int((folder / f"pid {stopped}").read_text()), signal.SIGSTOP)
    error = found.get(timeout=60)
    dist.all_reduce(torch.ones(1), group=cast("dist.ProcessGroup", others))
    (folder / "it may go on").touch()
    os.kill(int((folder / f"pid {stopped}").read_text()), signal.SIGCONT)
    return error


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_worker_that_stops_while_no_step_is_due_is_named(tmp_path: Path) -> None:
    first, second, _ = on_workers(_stopped_while_no_step_is_due, 3, tmp_path, tmp_path, 2)
    for error in (first, second):
        assert re.search(r"because of rank 2 on (\S+): rank 2 on \1 is stopped \(SIGSTOP\)$", error)


def test_a_worker_that_does_not_come_is_named(tmp_path: Path) -> None:
    placement, found = Placement(0, 2, 0, 2), []

    def give_up(error: str, _: str) -> None:
        found.append(error)
        raise SystemExit

    with pytest.raises(SystemExit):
        HangWatch(0.3, give_up, placement).meet(lambda: dist.FileStore(str(tmp_path / "store"), 2))
    assert found == [f"not all workers came within 0.005 min, because of rank 1 on {node_name()}"]


def test_rank_0_is_named_where_it_serves_nothing() -> None:
    found, over = [], threading.Event()

    def give_up(error: str, _: str) -> None:
        found.append(error)
        over.set()

    def wait_for_rank_0() -> dist.Store:
        assert over.wait(60)
        raise RuntimeError("no rank 0")

    watch = HangWatch(0.3, give_up, Placement(1, 2, 0, 1))
    with pytest.raises(RuntimeError):
        watch.meet(wait_for_rank_0)
    assert found[0] == "not all workers came within 0.005 min, because of rank 0 on node 1"


def test_silence_counts_only_while_somebody_listens() -> None:
    silence = Silence(2)
    for number in (1, 2, 3):
        silence.hear([b"%d" % number, b"7"], 10.0)
    assert silence.longer_than(15.0) == [1]
    silence.forget()
    silence.hear([b"4", b"7"], 10.0)
    assert silence.longer_than(0.0) == []
    silence.hear([b"5", b"8"], 10.0)
    assert silence.longer_than(0.0) == []


def test_a_process_ends_in_order_while_its_threads_ask_the_store() -> None:
    """With signs of life so often that one is under way when Python ends."""
    script = """if True:
        import torch.distributed as dist
        from imgnet.parallel.hang import HangWatch
        from imgnet.runtime import Placement

        store = dist.TCPStore("127.0.0.1", 0, is_master=True)
        for _ in range(8):
            HangWatch(1e-4, lambda *_: None, Placement(0, 1, 0, 1)).meet(lambda: store)
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
