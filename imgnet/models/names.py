"""Which classifiers there are, and what timm says of them: read in the sources of torchvision and timm.

Neither is imported, for that would import torch: a name is accepted or refused in a few hundredths of a second, also on
a machine where torch is slow to start or not to be had.
"""

import __future__

import ast
import copy
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imgnet.suggest import did_you_mean, nearest

Library: TypeAlias = Literal["imgnet", "torchvision", "timm"]
OURS = "small_cnn"
INCEPTIONS = ("googlenet", "inception_v3")
"""Of torchvision. They have auxiliary outputs in training unless told otherwise; with published weights they also
change how their inputs are normalised, from ImageNet's mean and std to 0.5, which no ``state_dict`` tells. Here they do
neither."""

_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.MULTILINE | re.DOTALL)
_OLD_AND_NEW = re.compile(r"""['"](\w+)['"]\s*:\s*(?:None|['"]([\w.]+)['"])""")


@dataclass(frozen=True)
class Pretrained:
    """What timm says of the weights of a tag, or of an architecture that has none."""

    exist: bool
    num_classes: int
    px: int
    """Side of the images that they were trained on."""
    fixed_px: bool
    """Whether the architecture may take no others. Not all for which timm says so do refuse them."""


def library_of(name: str) -> Library | None:
    """Who has a model of this name; the first where several do. None: nobody."""
    if name == OURS:
        return "imgnet"
    if name in torchvision_names():
        return "torchvision"
    return "timm" if _is_in_timm(name) else None


def unknown(name: str) -> str:
    """A line for a name that nobody has."""
    architecture, dot, tag = name.partition(".")
    if dot and architecture in timm_files():
        known = [one for one in timm_weights(architecture) if one]
        return f"model.name={name}: timm's {architecture} has no weights {tag!r}; {nearest(tag, known)}"
    asked = did_you_mean(name, [OURS, *torchvision_names()]), did_you_mean(name, [*timm_files(), *_renamed_in_timm()])
    close = " or ".join(dict.fromkeys(one.removeprefix("did you mean ").removesuffix("?") for one in asked if one))
    advice = f"did you mean {close}?" if close else "timm.list_models() and torchvision.models.list_models() list them"
    return f"model.name={name}: neither torchvision nor timm has it; {advice}"


@cache
def torchvision_names() -> frozenset[str]:
    """Names of torchvision's classifiers."""
    return frozenset(name for file in _files("torchvision") for name in _REGISTERED.findall(_text(file)))


@cache
def timm_files() -> dict[str, Path]:
    """Architectures of timm, each with the file that defines it."""
    return {name: file for file in _files("timm") for name in _REGISTERED.findall(_text(file))}


@cache
def timm_weights(architecture: str) -> dict[str, Pretrained]:
    """What timm publishes for one of its architectures, by tag; the first is the one that it takes without a tag."""
    of_tags = {
        key.partition(".")[2]: values
        for key, values in _default_cfgs(timm_files()[architecture]).items()
        if key.partition(".")[0] == architecture
    }
    return {tag.strip("*"): _pretrained(of_tags[tag]) for tag in sorted(of_tags, key=lambda tag: _rank(tag, of_tags))}


def pretrained_of(name: str) -> Pretrained | None:
    """What timm says of one of its names, with or without a tag; None where that cannot be told from its source."""
    architecture, _, tag = _renamed_in_timm().get(name, name).partition(".")
    if architecture not in timm_files():
        return None
    weights = timm_weights(architecture)
    return weights.get(tag) if tag else next(iter(weights.values()), None)


def _is_in_timm(name: str) -> bool:
    architecture, dot, tag = name.partition(".")
    if not dot:
        return architecture in timm_files() or architecture in _renamed_in_timm()
    if architecture not in timm_files():
        return False
    weights = timm_weights(architecture)
    return bool(tag) and (tag in weights or not weights)


@cache
def _renamed_in_timm() -> dict[str, str]:
    """Earlier names that timm still takes, with what it takes them for."""
    texts = (table for file in _files("timm") for table in _RENAMED.findall(_text(file)))
    return {old: new for table in texts for old, new in _OLD_AND_NEW.findall(table) if new}


def _files(library: Library) -> Iterator[Path]:
    spec = find_spec(library)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted((Path(folder) / "models").glob("*.py"))


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def _default_cfgs(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """The table ``default_cfgs`` of one of timm's files, made by its own statements.

    These are lists of constants and functions that fill them in. What needs more than that, such as a layer, is left
    out; a table that is written in another way is empty, and then nothing is known.
    """
    names = {"generate_default_cfgs": dict, "copy": copy, **vars(typing)}
    for source in (file.parent.parent / "data" / "constants.py", file):
        for statement in ast.parse(_text(source)).body if source.is_file() else []:
            if _may_be_of_the_table(statement):
                code = compile(ast.Module([statement], []), file, "exec", __future__.annotations.compiler_flag)
                with suppress(Exception):
                    exec(code, names)  # noqa: S102  (an installed package's own, which every worker executes)
    table = names.get("default_cfgs")
    return table if isinstance(table, dict) else {}


def _may_be_of_the_table(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef):
        return "cfg" in statement.name and not statement.decorator_list
    return isinstance(statement, ast.Assign | ast.AnnAssign | ast.For)


def _rank(tag: str, of_tags: Mapping[str, Mapping[str, Any]]) -> tuple[bool, bool, bool]:
    """The order of timm: weights without a tag, then a tag with a star, then the first with weights."""
    exist = _exist(of_tags[tag])
    return not (exist and not tag), not tag.endswith("*"), not exist


def _exist(values: Mapping[str, Any]) -> bool:
    return any(values.get(place) for place in ("url", "file", "hf_hub_id"))


def _pretrained(values: Mapping[str, Any]) -> Pretrained:
    px = values.get("input_size", (3, 224, 224))[-1]
    return Pretrained(_exist(values), values.get("num_classes", 1000), px, bool(values.get("fixed_input_size")))
