"""How the command ``imgnet`` says no: one line on stderr, and exit status 2."""

import sys
from typing import NoReturn


def refuse(line: str) -> NoReturn:
    """End the process over a mistake of the user."""
    sys.stderr.write(f"{line}\n")
    sys.exit(2)
