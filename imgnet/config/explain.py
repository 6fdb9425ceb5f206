"""What Hydra and OmegaConf say of a mistake, in one line and in the user's words."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import conf as hydra_schemas
from hydra.errors import OverrideParseException

from imgnet.config import schemas
from imgnet.config.groups import PLUG_INS, group_schemas
from imgnet.config.ranges import declared
from imgnet.config.schemas import GROUP_SCHEMAS, STUDIES, RunConfig
from imgnet.suggest import did_you_mean, nearest, unknown_key


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf, with the nearest known name where one was mistyped."""
    text = _whole_text(error)
    for pattern, say in _EXPLANATIONS:
        found = re.search(pattern, text, re.DOTALL)
        if found:
            return say(found)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, and quote values with spaces or brackets"
    return " ".join(_SEARCH_PATH.sub("", text).split())


def _whole_text(error: BaseException | None) -> str:
    chain: list[BaseException] = []
    while error is not None and error not in chain:  # under a tracer OmegaConf links errors in a circle
        chain.append(error)
        error = error.__cause__
    return "\n".join(map(str, chain))


def _unknown_key(found: re.Match[str]) -> str:
    key = found["key"]
    if "/" in key:
        return f"there is no group {key!r}; {nearest(key, (*GROUP_SCHEMAS, STUDIES, *_GROUPS_OF_HYDRA))}"
    if key.startswith(("hydra.launcher.", "hydra.sweeper.")):
        return f"{unknown_key(key, ())}; cluster.<key> says how a run is started"
    if found["schema"] == "dict":
        return f"{key}: there is no such entry yet; a + before the word makes it"
    return unknown_key(key, _keys(found["schema"]))


def _keys(schema: str) -> list[str]:
    """The keys of a schema, of this package's or of Hydra's own; a study is chosen beside those of a run."""
    known = _type_of(schema) or getattr(hydra_schemas, schema, None)
    return [entry.name for entry in fields(known)] + [STUDIES] * (known is RunConfig) if known else []


def _type_of(name: str) -> Any:
    """A schema, or the choices of one of its keys, by the name of its class."""
    plugged_in = [schema for group in PLUG_INS for schema in group_schemas()[group].values()]
    choices = [kind.plain for schema in plugged_in for kind in declared(schema).values()]
    return getattr(schemas, name, None) or next((one for one in plugged_in + choices if one.__name__ == name), None)


def _unknown_option(found: re.Match[str]) -> str:
    group, option = found["group"], found["path"].removeprefix(f"{found['group']}/")
    known = sorted({line.strip() for line in found["known"].splitlines() if line.strip()} | _nested(group, found))
    close = did_you_mean(option, known)
    said = f"{group}={option}: there is no such {group.removesuffix('s')}; "
    return f"{said}{close + ' ' if close else ''}known: {', '.join(known)}"


def _nested(group: str, found: re.Match[str]) -> set[str]:
    """Options in folders of a group, which Hydra does not list: ``digits_topologies/study``."""
    folders = [Path(path, group) for path in re.findall(r"provider=main, path=file://(.+)", found.string)]
    return {str(file.relative_to(one).with_suffix("")) for one in folders for file in one.rglob("*.yaml")}


def _twice(found: re.Match[str]) -> str:
    group = found["group"]
    return f"{group} is chosen twice; choose it once{', without a +' if group in GROUP_SCHEMAS else ''}"


def _no_word(_: re.Match[str]) -> str:
    typed = [word for word in sys.argv[1:] if word.lstrip("+").partition("=")[0] in (*GROUP_SCHEMAS, STUDIES)]
    return f"{' '.join(typed)}: an option is a word; one that reads as a number needs quotes, as in cluster=\\'4\\'"


def _not_added(found: re.Match[str]) -> str:
    return f"{found['line'][1:]}: no run has one by itself; write {found['line']}"


def _wrong_type(found: re.Match[str]) -> str:
    kind = _KINDS.get(found["kind"].lower(), found["kind"])
    return f"{found['key']}={found['value']}: must be {kind}"


def _no_list(found: re.Match[str]) -> str:
    return f"{found['key']} must be a list, such as {found['key']}=[1,2]"


def _wrong_choice(found: re.Match[str]) -> str:
    known = [word.strip() for word in found["known"].split(",")]
    return f"{found['key']}={found['value']}: no such choice; {nearest(found['value'], known)}"


def _other_than_a_choice(found: re.Match[str]) -> str:
    choices = _type_of(found["schema"]) or ()
    known = ", ".join(sorted(choice.name for choice in choices))
    return f"{found['key']}={found['value']}: no such choice; known: {known}"


def _no_text(found: re.Match[str]) -> str:
    return f"{found['key']}={found['value']}: must be text"


def _null(found: re.Match[str]) -> str:
    return f"{found['key']}=null: a value is needed"


def _refers_to_nothing(found: re.Match[str]) -> str:
    return f"{found['key']}: there is no key {found['other']!r} to take its value from"


_GROUPS_OF_HYDRA = ("hydra/launcher", "hydra/sweeper", "hydra/help")
_KINDS = {"integer": "a whole number", "float": "a number", "boolean": "true or false", "bool": "true or false"}

# Hydra and OmegaConf word these; the tests hold every line, so that a new wording shows.
NO_WORD = r"Config group override must be a string or a list"
_SEARCH_PATH = re.compile(r"\s*(Config s|S)earch path:(\s+provider=[^\n]*)*")
_EXPLANATIONS = (
    (
        r"Could not find '(?P<path>[^'\n]+)'\s+Available options in '(?P<group>[^']+)':\n(?P<known>(\t[^\n]*\n?)*)",
        _unknown_option,
    ),
    (r"Multiple values for (?P<group>\S+)\. To override", _twice),
    (r"No match in the defaults list\.\s+To append to your default list use (?P<line>\+[^\n]*)", _not_added),
    (
        r"Invalid value '(?P<value>[^']*)', expected one of \[(?P<known>[^\]]*)\]\s+full_key: (?P<key>\S+)",
        _wrong_choice,
    ),
    (
        r"Value '(?P<value>.*?)' (?:of type '[^']*' )?(?:could not be converted to|is not a valid) (?P<kind>\w+).*?"
        r"full_key: (?P<key>\S+)",
        _wrong_type,
    ),
    (
        r"Value (?P<value>.*) \(\w+\) is not a valid input for <enum '(?P<schema>\w+)'>\s+full_key: (?P<key>\S+)",
        _other_than_a_choice,
    ),
    (r"Cannot convert '\w+' to string: '(?P<value>.*)'\s+full_key: (?P<key>\S+)", _no_text),
    (r"field '[^']*' is not Optional\s+full_key: (?P<key>\S+)", _null),
    (r"Interpolation key '(?P<other>[^']*)' not found\s+full_key: (?P<key>\S+)", _refers_to_nothing),
    (NO_WORD, _no_word),
    (r"is not a ListConfig, list or tuple.*?full_key: (?P<key>\S+)", _no_list),
    (
        r"Key '[^']*' (?:is not in struct|not in '[^']*')\s+full_key: (?P<key>\S+)\s+(?:reference_type=[^\n]+\s+)?"
        r"object_type=(?P<schema>\w+)",
        _unknown_key,
    ),
)
