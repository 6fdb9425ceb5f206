"""The question that a study asks, from the file that it was started with."""

import re
from collections.abc import Sequence
from pathlib import Path

import imgnet
from imgnet.results.files import printable
from imgnet.results.read import Run

STUDIES = Path(imgnet.__file__).parents[1] / "experiments"


def questions_of(runs: Sequence[Run], studies: Path = STUDIES) -> list[str]:
    """What the comments at the head of ``experiments/<name>.yaml`` ask, for each study of the runs that asks.

    Args:
        runs: started with ``+experiments=<name>``.
        studies: the folder of studies.
    """
    names = dict.fromkeys(run.overrides.get("experiments", "") for run in runs)
    return [question for name in names if name and (question := _question(studies, name))]


def _question(studies: Path, name: str) -> str:
    path = (studies / f"{name}.yaml").resolve()
    if not path.is_relative_to(studies.resolve()) or not path.is_file():  # the name is somebody's word
        return ""
    comments = [line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    found = re.search(r"^ Question: (.*?)(?=^ \w+: |\Z)", "\n".join(comments), re.MULTILINE | re.DOTALL)
    text = printable(" ".join(found[1].split())) if found else ""
    return text[:1].upper() + text[1:]
