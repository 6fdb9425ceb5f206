"""How the command ``imgnet`` says no: one line on stderr, and exit status 2."""

import sys
from pathlib import Path
from typing import NoReturn


def refuse(line: str) -> NoReturn:
    """End the process over a mistake of the user."""
    sys.stderr.write(f"{line}\n")
    sys.exit(2)


def refuse_without_directory() -> None:
    """End the process where it was started in a folder that is gone: nothing could be found, or written, from there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        refuse("the working directory is gone; go to one that exists, and type the command again")
