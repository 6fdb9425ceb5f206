"""Record the first minute with imgnet as an SVG that plays by itself: what a real run printed, when it did.

python docs/record.py -o docs/first_minute.svg

Runs the quickstart and looks at what came out. The recording plays faster than the run was, and says by how much.
"""

import argparse
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PLAYS_S = 16
COLUMNS = 112
LINE_PX, LETTER_PX, MARGIN_PX = 18, 7.85, 16
MOST_BYTES = 300_000
STYLE = """
  text { font: 13px "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d7dde4; white-space: pre; }
  .typed { fill: #8fd3a9; }
  .said { fill: #8b96a3; }
  @media (prefers-reduced-motion: no-preference) { .line { opacity: 0; animation: show 1ms forwards; } }
  @keyframes show { to { opacity: 1; } }
"""


class Line(NamedTuple):
    """What stood on the terminal.

    Attributes:
        at_s: seconds after the beginning.
        text: without what a terminal would obey.
        kind: ``typed``, ``said`` (by this script) or empty.
    """

    at_s: float
    text: str
    kind: str = ""


def main() -> None:
    """Record, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "first_minute.svg")
    out = parser.parse_args().out
    picture = drawn(list(recorded()))
    assert len(picture.encode()) <= MOST_BYTES, len(picture)
    out.write_text(picture, encoding="utf-8")
    print(f"{out}: {len(picture.encode()):,} bytes")


def recorded() -> Iterator[Line]:
    """Run both commands and note when each line came."""
    start, lines = time.perf_counter(), []
    for line in ran(["run.py", "+experiments=quickstart"], "python run.py +experiments=quickstart", start):
        lines.append(line)
        yield line
    run = next(line.text.split()[-1] for line in lines if line.text.startswith("results:"))
    yield from ran(["-m", "imgnet", "results", run], f"imgnet results {run}", start)


def ran(words: list[str], typed: str, start: float) -> Iterator[Line]:
    """One command, as it is typed, and its output."""
    yield Line(time.perf_counter() - start, f"$ {typed}", "typed")
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": str(COLUMNS)}
    command = [sys.executable, *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.rstrip())
            for part in textwrap.wrap(plain, COLUMNS, drop_whitespace=False, replace_whitespace=False) or [""]:
                yield Line(time.perf_counter() - start, part)
    if process.returncode:
        sys.exit(f"{typed}: exit status {process.returncode}")


def drawn(lines: list[Line]) -> str:
    """The lines as an SVG in which each appears when its time has come."""
    seconds = lines[-1].at_s
    faster = max(1.0, seconds / PLAYS_S)
    lines = [
        *lines,
        Line(seconds, f"({seconds:.0f} seconds on {os.cpu_count()} cores, played {faster:.1f} times as fast)", "said"),
    ]
    width = MARGIN_PX * 2 + LETTER_PX * max(len(line.text) for line in lines)
    height = MARGIN_PX * 2 + LINE_PX * len(lines)
    shown = "\n".join(_row(number, line, faster) for number, line in enumerate(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img" aria-label="A recording of imgnet\'s quickstart">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="#15191e"/>\n{shown}\n</svg>\n'
    )


def _row(number: int, line: Line, faster: float) -> str:
    top = MARGIN_PX + LINE_PX * (number + 0.75)
    kind = f"line {line.kind}".strip()
    delay = f"animation-delay: {line.at_s / faster:.2f}s"
    place = f'x="{MARGIN_PX}" y="{top:.1f}" xml:space="preserve"'
    return f'<text class="{kind}" style="{delay}" {place}>{escape(line.text)}</text>'


if __name__ == "__main__":
    main()
