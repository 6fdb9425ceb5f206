"""Keys that had other names, so that what was made before can still be read, compared and submitted again."""

from typing import Any

from omegaconf import DictConfig

from imgnet.suggest import RENAMED

_MINUTES = "cluster.notice_min"
_FIRST = {new: old for old, new in RENAMED.items() if old != _MINUTES}


def rename(saved: DictConfig) -> None:
    """Give the values of a saved configuration the names that their keys have now."""
    cluster = saved["cluster"]
    for old, new in RENAMED.items():
        name = old.removeprefix("cluster.")
        if name in cluster:
            cluster[new.removeprefix("cluster.")] = _value(old, cluster.pop(name))


def renamed(override: str) -> str:
    """The same of what was typed, such as ``cluster.max_requeues=3``. Anything else stays as it is."""
    word, _, value = override.partition("=")
    key = word.lstrip("+~")
    for old, new in RENAMED.items():
        if key != old and not key.startswith(f"{old}."):
            continue
        written = word.replace(old, new, 1)
        if "=" not in override:
            return written
        if old == _MINUTES and value.isdecimal():
            return f"{written}={60 * int(value)}"
        is_flag = key.startswith("cluster.sbatch.") and value in ("", "''", '""')
        return f"{written}={'true' if is_flag else value}"
    return override


def first_name(key: str) -> str:
    """What a key was called when runs were first given their identities."""
    return _FIRST.get(key, key)


def _value(old: str, value: Any) -> Any:
    if old == _MINUTES:
        return 60 * value
    if old == "cluster.sbatch":
        return {name: word or True for name, word in value.items()}  # an option without a value had an empty one
    return value
