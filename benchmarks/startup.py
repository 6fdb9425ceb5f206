"""How long a user waits for ``--help``, for a refusal and for workers, beside the least that Python with Hydra takes.

python benchmarks/startup.py [--runs 5] [--workers 1 4 32]

Of workers: from the command to the first epoch's line, less the time of that epoch; and the part of a core that the
launching process uses while they train.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.spread import spread

WATCHED_S = 5.0
RUN = str(Path(__file__).parents[1] / "run.py")
COMMANDS = {
    "import hydra": [sys.executable, "-c", "import hydra"],
    "run.py --help": [sys.executable, RUN, "--help"],
    "run.py topolgy=ring (refused)": [sys.executable, RUN, "topolgy=ring"],
    "run.py +experiments=quickstart epochs=0 (refused)": [sys.executable, RUN, "+experiments=quickstart", "epochs=0"],
}


def seconds(command: list[str]) -> float:
    """Wall time of a command in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
        return time.perf_counter() - start


def start_of(workers: int) -> tuple[float, float]:
    """Seconds that workers on this machine take to start, and the launching process's share of a core."""
    sizes = [f"data.num_train={16 * workers}", f"data.num_val={workers}", f"global_batch_size={8 * workers}"]
    command = [sys.executable, RUN, "data=synthetic", "model=small_cnn", "topology=ring", "epochs=100000", *sizes]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, f"cluster.cpu_workers_per_node={workers}"], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith("epoch"))
            seconds = time.perf_counter() - start
            found = re.search(r"([\d.]+) s$", line.strip())
            assert found is not None, line
            return seconds - float(found[1]), cpu_share(process.pid)
        finally:
            process.terminate()
            process.communicate()


def cpu_share(pid: int) -> float:
    """Of a core, over some seconds."""
    start, before = time.perf_counter(), cpu_seconds(pid)
    time.sleep(WATCHED_S)
    return (cpu_seconds(pid) - before) / (time.perf_counter() - start)


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the median of each command with the least and the most, and its ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 32])
    options = parser.parse_args()
    runs = options.runs
    times = {name: [seconds(command) for _ in range(runs)] for name, command in COMMANDS.items()}
    least = median(times["import hydra"])
    for name, found in times.items():
        print(f"{name:52s} {spread(found)} s   {median(found) / least:4.1f} x")
    for workers in options.workers:
        starts, shares = zip(*(start_of(workers) for _ in range(runs)), strict=True)
        print(f"{f'{workers} workers have started':52s} {spread(starts)} s   launching process: ", end="")
        print(f"{spread(shares, '.1%')} of a core")


if __name__ == "__main__":
    main()
