"""A refused command gets one clear line for each problem, no traceback, and exit status 2."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from imgnet import config as schemas
from imgnet.config import ConfigError, RunConfig
from imgnet.runtime import leave_errors_to_us, shows_full_errors

REFUSED = 2
INTERRUPTED = 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around Hydra's ``main``: turn what a user's mistake raises into lines that say what would be right.

    ``HYDRA_FULL_ERROR=1`` shows the traceback instead.
    """
    if shows_full_errors():
        yield
        return
    leave_errors_to_us()
    try:
        yield
    except ConfigError as error:
        _refuse(error.problems)
    except (HydraException, OmegaConfBaseException) as error:
        _refuse([explain(error)])
    except KeyboardInterrupt as interruption:
        sys.stderr.write(f"{interruption or 'interrupted'}\n")
        sys.exit(INTERRUPTED)


def _refuse(problems: list[str]) -> None:
    for problem in dict.fromkeys(problems):
        sys.stderr.write(f"{problem}\n")
    sys.exit(REFUSED)


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf, with the nearest known name where one was mistyped."""
    text = _whole_text(error)
    for pattern, say in _EXPLANATIONS:
        found = re.search(pattern, text, re.DOTALL)
        if found:
            return say(found)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, and quote values with spaces or brackets"
    return " ".join(text.split())


def _whole_text(error: BaseException | None) -> str:
    chain: list[BaseException] = []
    while error is not None and error not in chain:  # under a tracer OmegaConf links errors in a circle
        chain.append(error)
        error = error.__cause__
    return "\n".join(map(str, chain))


def nearest(name: str, known: list[str]) -> str:
    """`` did you mean 'x'?`` or the known names, for the end of a line that refuses ``name``."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def _unknown_key(found: re.Match[str]) -> str:
    key = found["key"]
    schema = getattr(schemas, found["schema"], RunConfig)
    parent, _, name = key.rpartition(".")
    known = [entry.name for entry in fields(schema)]
    close = nearest(name, known)
    return f"unknown key {key!r}; {f'in {parent}, ' if parent else ''}{close}"


def _unknown_option(found: re.Match[str]) -> str:
    group, _, option = found["path"].rpartition("/")
    known = [line.strip() for line in found["known"].splitlines() if line.strip()]
    return f"{group}={option}: there is no such {group}; {nearest(option, known)}"


def _wrong_type(found: re.Match[str]) -> str:
    kind = _KINDS.get(found["kind"].lower(), found["kind"])
    return f"{found['key']}={found['value']}: must be {kind}"


def _no_list(found: re.Match[str]) -> str:
    return f"{found['key']} must be a list, such as {found['key']}=[1,2]"


def _wrong_choice(found: re.Match[str]) -> str:
    known = [word.strip() for word in found["known"].split(",")]
    return f"{found['key']}={found['value']}: no such choice; {nearest(found['value'], known)}"


_KINDS = {"integer": "a whole number", "float": "a number", "boolean": "true or false", "bool": "true or false"}

# Hydra and OmegaConf word these; the tests hold every line, so that a new wording shows.
_EXPLANATIONS = (
    (r"Could not find '(?P<path>[^'\n]+/[^'\n/]+)'\s+Available options in '[^']+':\n(?P<known>.*)", _unknown_option),
    (
        r"Invalid value '(?P<value>[^']*)', expected one of \[(?P<known>[^\]]*)\]\s+full_key: (?P<key>\S+)",
        _wrong_choice,
    ),
    (
        r"Value '(?P<value>.*?)' (?:of type '[^']*' )?(?:could not be converted to|is not a valid) (?P<kind>\w+).*?"
        r"full_key: (?P<key>\S+)",
        _wrong_type,
    ),
    (r"is not a ListConfig, list or tuple.*?full_key: (?P<key>\S+)", _no_list),
    (
        r"Key '[^']*' (?:is not in struct|not in '[^']*')\s+full_key: (?P<key>\S+)\s+(?:reference_type=\S+\s+)?"
        r"object_type=(?P<schema>\w+)",
        _unknown_key,
    ),
)
