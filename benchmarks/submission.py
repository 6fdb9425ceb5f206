"""How long a user of Slurm waits for a sweep: submitted, typed again, looked at and cancelled.

    python -m benchmarks.submission [--runs 300] [--rounds 3]

A Slurm of its own on this machine (the Debian packages slurm-wlm and munge); the jobs are held, so that they take
nothing. The peers, in the same Slurm: as many empty jobs of hydra-submitit-launcher as published, whose command ends
when they are queued (it would wait for them), and ``squeue`` for all of them.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from imgnet.data.sources.digits import ensure_digits
from tests.commands import ROOT
from tests.slurm.conftest import User, wait_until
from tests.slurm.private import PrivateSlurm

SWEEP = ("+experiments=quickstart", "cluster=4xA40", "+cluster.additional_parameters.hold=true")
PEER = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(config):
    pass
main()
"""


def main() -> None:
    """Print the median of each, and its ratio to the peer's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, PrivateSlurm() as slurm:
        data = Path(folder, "data")
        ensure_digits(data / "digits")
        rounds = [_round(slurm, Path(folder, str(number)), data, arguments.runs) for number in range(arguments.rounds)]
    _show(rounds, arguments.runs)


def _round(slurm: PrivateSlurm, folder: Path, data: Path, runs: int) -> dict[str, float]:
    """Seconds of each command, in an empty folder."""
    folder.mkdir()
    (folder / "data").symlink_to(data)
    user, sweep = User(slurm, folder, ROOT), (*SWEEP, f"seed=range(1,{runs + 1})")
    found = {"the plugin as published, until all are queued": _peer(slurm, folder, runs)}
    found["submitted"] = _seconds(lambda: user.run_py(*sweep), "submitted job")
    found["typed again"] = _seconds(lambda: user.run_py(*sweep), "skipped")
    found["imgnet status"] = _seconds(lambda: user.imgnet("status", "--last", str(runs)), "JobHeldUser")
    found["squeue"] = _seconds(lambda: _squeue(slurm), "JobHeldUser")
    found["cancelled"] = _seconds(lambda: user.imgnet("cancel", str(user.runs()[0].parent)), "cancelled:")
    wait_until(lambda: not slurm.ask("squeue", "-h"), "the queue is empty")
    return found


def _seconds(command: Callable[[], "subprocess.CompletedProcess[str]"], word: str) -> float:
    start = time.perf_counter()
    done = command()
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr[-2000:]
    assert word in done.stdout, done.stdout[-2000:]
    return seconds


def _squeue(slurm: PrivateSlurm) -> "subprocess.CompletedProcess[str]":
    command = ["squeue", "-r", "-t", "all", "-o", "%i %T %r"]
    return subprocess.run(command, env=slurm.environment, capture_output=True, text=True, check=False)


def _peer(slurm: PrivateSlurm, folder: Path, runs: int) -> float:
    script = folder / "peer.py"
    script.write_text(PEER)
    later = "+hydra.launcher.additional_parameters.begin=now+1hour"
    settings = ["hydra/launcher=submitit_slurm", later, f"+seed=range({runs})"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(script), "-m", *settings], cwd=folder, env=os.environ | slurm.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: slurm.ask("squeue", "-h", "-r", "-o", "%i").count("\n") >= runs, "all are queued")
        return time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        slurm.ask("scancel", "--me")
        wait_until(lambda: not slurm.ask("squeue", "-h"), "the queue is empty")


def _show(rounds: list[dict[str, float]], runs: int) -> None:
    print(f"{runs} runs, median of {len(rounds)} rounds (least to most), load {os.getloadavg()[0]:.1f}")
    for name in rounds[0]:
        seconds = [found[name] for found in rounds]
        print(f"{name:48s} {statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    for name, peer in (("submitted", "the plugin as published, until all are queued"), ("imgnet status", "squeue")):
        ratio = statistics.median(found[name] / found[peer] for found in rounds)
        print(f"{name} over {peer}: {ratio:.2f}")


if __name__ == "__main__":
    main()
