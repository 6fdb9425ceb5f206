"""Kill a run of the digits at random moments, start it again each time, and compare it with an undisturbed one.

    python -m tests.kill_and_resume [--kills 30] [--seed 0] [--epochs 250] [averaging=outer ...]

By turns one worker, all processes, and the launcher get SIGKILL. Checkpoints are made several times a second, so that
some kills fall into the writing of one. At the end every worker's parameters, buffers, optimizer and random states, and
the rows of metrics.csv, must equal those of the undisturbed run bit for bit. Some 5 minutes on two cores; run by hand.
"""

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from imgnet.rundir import read_json
from tests.commands import start_run_py
from tests.distributed.test_resume import assert_same
from tests.test_launch_processes import children_of, is_alive, worker_pids

VICTIMS = ("worker", "all", "launcher")


def start(cwd: Path, epochs: int, words: list[str]) -> subprocess.Popen[str]:
    """The command that is typed again and again."""
    often = ["checkpoint.every_min=0.003", "checkpoint.keep_last=2"]
    return start_run_py("+experiments=quickstart", f"epochs={epochs}", "data.root=../digits", *often, *words, cwd=cwd)


def run_dir_in(cwd: Path) -> Path | None:
    """The directory of the only run there."""
    found = [file.parent for file in cwd.glob("multirun_outputs/*/*/*/run.json")]
    assert len(found) <= 1, f"it must go on in one directory, not in {found}"
    return found[0] if found else None


def kill_somewhere(
    process: subprocess.Popen[str], cwd: Path, victim: str, delay_s: float, *, inside_write: bool
) -> bool:
    """Wait until workers are there, then a random while, then kill. False where the run ended before.

    ``inside_write``: wait further until a checkpoint is being written.
    """
    while not (workers := worker_pids(children_of(process.pid))):
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    end = time.monotonic() + delay_s
    while time.monotonic() < end or (inside_write and not list(cwd.glob("multirun_outputs/*/*/*/checkpoints/.step*"))):
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    everybody = [process.pid, *children_of(process.pid)]
    targets = {"worker": [random.choice(workers)], "all": everybody, "launcher": [process.pid]}[victim]
    for pid in targets:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(is_alive(pid) for pid in everybody):
        time.sleep(0.02)
    return True


def compare(disturbed: Path, undisturbed: Path) -> int:
    """Assert that both ended with the same bits; returns the number of steps."""
    leftovers = [file.name for file in (disturbed / "checkpoints").iterdir() if file.name.startswith(".")]
    assert not leftovers, leftovers
    return assert_same(disturbed, undisturbed)


def main() -> None:
    """Kill, start again, compare, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("words", nargs="*", help="overrides of both runs")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, rough = Path(folder) / "calm", Path(folder) / "rough"
        calm.mkdir()
        rough.mkdir()
        assert start(calm, options.epochs, options.words).wait() == 0, (calm / "out.txt").read_text()
        counts: Counter[str] = Counter()
        num_inside = 0
        while counts.total() < options.kills:
            victim = VICTIMS[counts.total() % len(VICTIMS)]
            process = start(rough, options.epochs, options.words)
            every_second = bool(counts.total() % 2)
            if not kill_somewhere(process, rough, victim, random.uniform(0, 4), inside_write=every_second):
                break
            counts[victim] += 1
            run_dir = run_dir_in(rough)
            if run_dir and read_json(run_dir / "run.json").get("status") == "completed":
                break  # the kill came after the end; the same command would begin another run
            inside = bool(run_dir and list(run_dir.glob("checkpoints/.*")))
            num_inside += inside
            print(
                f"kill {counts.total():2d}: {victim:9s}", "inside a checkpoint's writing" if inside else "", flush=True
            )
        else:
            assert start(rough, options.epochs, options.words).wait() == 0, (rough / "out.txt").read_text()
        calm_dir, rough_dir = run_dir_in(calm), run_dir_in(rough)
        assert calm_dir
        assert rough_dir
        steps = compare(rough_dir, calm_dir)
        print(f"{counts.total()} kills ({dict(counts)}, {num_inside} inside a checkpoint's writing), {steps} steps:")
        print("every bit equals the undisturbed run")


if __name__ == "__main__":
    main()
