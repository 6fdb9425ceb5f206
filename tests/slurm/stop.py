"""Stop a worker of the second node (SIGSTOP) on a real Slurm, at a random moment; see who is named, and when.

    python -m tests.slurm.stop [--count 5] [--seed 1] [--hang-timeout-min 0.5] [--only start,training]

Runs of two nodes of two workers, each stopped once: while it starts, while it trains, evaluates and saves, in turn, and
which worker and when is drawn from the seed. Violations are another rank or node in ``run.json``, and a job that is not
over within the time limit plus 30 s, both counted from the moment of the stop. Ends with 1 where there was one. About
two minutes for each; by hand.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgnet.data.sources.digits import ensure_digits
from imgnet.rundir import read_exit_records, read_json
from tests.slurm.conftest import User, job_id, wait_until
from tests.slurm.disturb import make_user, raw_states
from tests.slurm.private import PrivateSlurm, environment_of

OVER_WITHIN_S = 30.0
"""Beyond the time limit."""
TWO_NODES = ("topology=ring", "cluster=8xA40", "cluster.gpus_per_node=2")
ENDLESS = ("epochs=100000", "skip_completed=false")
MOMENTS = {
    "start": (),
    "training": ("evaluate_every_epochs=100",),
    "evaluation": ("max_steps=1000000", "global_batch_size=1400"),
    "checkpoint": ("evaluate_every_epochs=100000", "checkpoint.every_epochs=1", "global_batch_size=1400"),
}
"""What a run is made of most of the time, and the settings that make it so."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hang-timeout-min", type=float, default=0.5)
    parser.add_argument("--only", help="moments, as they are printed, separated by commas")
    options = parser.parse_args(arguments)
    draw = random.Random(options.seed)
    moments = options.only.split(",") if options.only else list(MOMENTS)
    print(f"seed {options.seed}, hang_timeout_min={options.hang_timeout_min:g}", flush=True)
    with tempfile.TemporaryDirectory() as name, PrivateSlurm() as slurm:
        os.environ["SLURM_CONF"] = slurm.environment["SLURM_CONF"]
        ensure_digits(Path(name) / "digits")
        user = make_user(slurm, Path(name) / "user", Path(name) / "digits")
        wrong = [
            stop_one(user, moments[number % len(moments)], draw, 60 * options.hang_timeout_min)
            for number in range(options.count)
        ]
    print(f"{sum(wrong)} violations")
    return 1 if any(wrong) else 0


def stop_one(user: User, moment: str, draw: random.Random, limit_s: float) -> bool:
    """Whether anything was not as it should be."""
    rank, delay_s = draw.choice([2, 3]), draw.uniform(0, 8 if moment == "start" else 4)
    run_dir = submit(user, *MOMENTS[moment], f"hang_timeout_min={limit_s / 60:g}")
    if moment != "start":
        wait_until(lambda: has_saved(run_dir) or has_rows(run_dir), "it trains")
    worker = the_worker(user.slurm, job_id(run_dir), rank)
    time.sleep(delay_s)
    stopped = time.monotonic()
    os.kill(worker, signal.SIGSTOP)
    named_s = seconds_until(lambda: any_word(run_dir) != "", stopped)
    over_s = seconds_until(lambda: raw_states(user.slurm).get(job_id(run_dir)) == "FAILED", stopped)
    said_s = seconds_until(lambda: read_json(run_dir / "run.json")["status"] == "failed", stopped)
    return report(run_dir, f"{moment} + {delay_s:.1f} s", rank, (named_s, over_s, said_s), limit_s)


def submit(user: User, *arguments: str) -> Path:
    before = set(user.runs())
    done = user.run_py("+experiments=quickstart", *TWO_NODES, *ENDLESS, *arguments)
    assert done.returncode == 0, done.stderr
    (run_dir,) = set(user.runs()) - before
    return run_dir


def has_rows(run_dir: Path) -> bool:
    file = run_dir / "metrics.csv"
    return file.is_file() and file.read_bytes().count(b"\n") > 3


def has_saved(run_dir: Path) -> bool:
    return len(list((run_dir / "checkpoints").glob("epoch*"))) > 1


def the_worker(slurm: PrivateSlurm, job: str, rank: int) -> int:
    """The process of a rank, when there is one."""
    marks = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SLURMD_NODENAME"}
    found: list[int] = []

    def there() -> bool:
        found[:] = [pid for pid in slurm.processes() if is_task(environment_of(pid), marks)]
        return bool(found)

    wait_until(there, f"rank {rank} is started")
    return found[0]


def is_task(environment: list[bytes], marks: set[bytes]) -> bool:
    there = {pair for pair in environment if pair in marks}
    return len(there) == len(marks) - 1 and any(pair.startswith(b"IMGNET_RUN_DIR=") for pair in environment)


def seconds_until(condition: Callable[[], bool], since: float) -> float:
    wait_until(condition, "it is so", timeout_s=900)
    return time.monotonic() - since


def any_word(run_dir: Path) -> str:
    """What the first worker said that had waited too long."""
    waited = [record for record in read_exit_records(run_dir).values() if record.how == "waited"]
    return min(waited, key=lambda record: record.time).error if waited else ""


def report(run_dir: Path, when: str, rank: int, seconds: tuple[float, float, float], limit_s: float) -> bool:
    times = "named after {:.1f} s, job over after {:.1f} s, run.json after {:.1f} s".format(*seconds)
    run: dict[str, Any] = read_json(run_dir / "run.json")
    wanted = f"because of rank {rank} on {run['hosts'][1]}"
    is_wrong = not re.search(rf"{wanted}\b", run["error"]) or max(seconds) > limit_s + OVER_WITHIN_S
    print(f"{when}: {times}, load {os.getloadavg()[0]:.0f}")
    print(f"  {run['status']}: {run['error']}")
    print(f"  stack: {where(run_dir, rank)}{'; VIOLATION' if is_wrong else ''}", flush=True)
    return is_wrong


def where(run_dir: Path, rank: int) -> str:
    """The innermost line of the package in the stack that the job's log shows of the stopped worker."""
    _, told, stack = (run_dir / "logs" / "slurm.log").read_text(errors="replace").rpartition(f"rank {rank} was in\n")
    frames = re.findall(r'File ".*/imgnet/(\S+)", line (\d+), in (\S+)', stack)
    return "{}:{}, {}".format(*frames[-1]) if told and frames else "none, it died of the signal"


if __name__ == "__main__":
    sys.exit(main())
