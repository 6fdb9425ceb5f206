"""How long tables, pictures and a report of many runs take, each as the command that a user types.

    python -m benchmarks.results --runs 500 --epochs 90

The run directories are made up, and as large as real ones: 500 runs are 100 topologies of five seeds, then 500
topologies of one, for the cost of pictures goes with the number of curves. Beside each time stands what is wanted.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.spread import spread
from tests.run_directories import write_imagenet_like_sweep

COMMANDS = {
    "results": ([], 3.0),
    "results --baseline --target": (["--baseline", "topology=t0", "--target", "75"], 3.0),
    "plot, overview": (["-o", "out.png"], 5.0),
    "plot --y val_acc1, svg": (["--y", "val_acc1", "-o", "out.svg"], 5.0),
    "report": (["-o", "out.html"], 20.0),
}
"""What is added to the command, and the seconds that are wanted of 500 runs of 90 epochs."""


def main() -> None:
    """Print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=3, help="of each command")
    options = parser.parse_args()
    table = Table("command", "groups x seeds", "s", "of CPU", "wanted", "MB", box=box.SIMPLE_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for num_seeds in (5, 1):
            sweep = Path(folder) / f"of_{num_seeds}"
            topologies = [f"t{number}" for number in range(options.runs // num_seeds)]
            write_imagenet_like_sweep(sweep, topologies, range(num_seeds), epochs=options.epochs)
            for name, (words, wanted) in COMMANDS.items():
                command = [sys.executable, "-m", "imgnet", name.split()[0].rstrip(","), str(sweep), *words]
                seconds, cpu = map(
                    spread, zip(*(_seconds(command, Path(folder)) for _ in range(options.rounds)), strict=True)
                )
                size = _size(Path(folder) / words[-1]) if "-o" in words else "-"
                table.add_row(name, f"{len(topologies)} x {num_seeds}", seconds, cpu, f"{wanted:g}", size)
    Console(width=120).print(table)


def _seconds(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds until the command ends, and those that it computes, which other work on the machine changes less."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f}"


if __name__ == "__main__":
    main()
