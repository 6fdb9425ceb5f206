"""How long a user waits for ``--help`` and for a refusal, beside the least that Python with Hydra takes.

python benchmarks/startup.py [--runs 5]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    """Print the median of each command, and its ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    medians = {name: statistics.median(seconds(command) for _ in range(runs)) for name, command in COMMANDS.items()}
    least = medians["import hydra"]
    for name, median in medians.items():
        print(f"{name:52s} {median:5.2f} s   {median / least:4.1f} x")


if __name__ == "__main__":
    main()
