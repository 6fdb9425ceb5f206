"""A refused command gets one clear line for each problem, no traceback, and exit status 2."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from imgnet.config import ConfigError
from imgnet.config.explain import NO_WORD, explain
from imgnet.launch.causes import RunFailed
from imgnet.refuse import refuse_without_directory
from imgnet.runtime import leave_errors_to_us, shows_full_errors

FAILED = 1
REFUSED = 2
INTERRUPTED = 130
ENDLESS = r"=-?\d{308}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around Hydra's ``main``: turn what a user's mistake raises into lines that say what would be right.

    ``HYDRA_FULL_ERROR=1`` shows the traceback instead.
    """
    if shows_full_errors():
        yield
        return
    refuse_without_directory()
    leave_errors_to_us()
    try:
        yield
        sys.stdout.flush()
    except ConfigError as error:
        _refuse(error.problems)
    except (HydraException, OmegaConfBaseException) as error:
        _refuse([explain(error)])
    except (ValueError, OverflowError) as error:
        if not (lines := _of_a_word(error)):
            raise
        _refuse(lines)
    except RunFailed as failure:
        sys.stderr.write(f"{failure}\n")
        sys.exit(FAILED)
    except BrokenPipeError:
        _end_without_reader()
    except KeyboardInterrupt as interruption:
        sys.stderr.write(f"{interruption or 'interrupted'}\n")
        sys.exit(INTERRUPTED)


def _end_without_reader() -> NoReturn:
    """As other commands do where nobody reads what they say (``... | head``): without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what was not yet written would raise at the end
    sys.exit(128 + signal.SIGPIPE)


def _refuse(problems: list[str]) -> None:
    for problem in dict.fromkeys(problems):
        sys.stderr.write(f"{problem}\n")
    sys.exit(REFUSED)


def _of_a_word(error: Exception) -> list[str]:
    """What a word that was typed has to do with an error that names none; nothing where it is another error."""
    if isinstance(error, OverflowError):
        endless = [word for word in sys.argv[1:] if re.search(ENDLESS, word)]
        return [f"{word[: word.index('=') + 9]}... has more digits than any number may have" for word in endless]
    return [explain(error)] if re.match(NO_WORD, str(error)) else []
