"""Axes of a sweep that move together."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from imgnet.config import ConfigError
from imgnet.launch.commandline import runs_of


def _runs(*words: str) -> list[list[str]]:
    return runs_of(OverridesParser.create().parse_overrides(list(words)))


def test_values_move_together_and_others_with_each() -> None:
    runs = _runs("zip=[optimizer.lr,seed]", "optimizer.lr=0.1,0.2", "name=a,b", "seed=3,4")
    assert [sorted(run) for run in runs] == [
        ["name=a", "optimizer.lr=0.1", "seed=3"],
        ["name=b", "optimizer.lr=0.1", "seed=3"],
        ["name=a", "optimizer.lr=0.2", "seed=4"],
        ["name=b", "optimizer.lr=0.2", "seed=4"],
    ]


def test_without_zip_runs_are_those_of_hydras_sweeper() -> None:
    words = ["seed=1,2", "~tracking", "seed=3", "+extra=range(0,2)", "name=a"]
    overrides = OverridesParser.create().parse_overrides(words)
    assert [runs_of(overrides)] == BasicSweeper.split_arguments(overrides, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["zip=[seed,name]", "seed=1,2", "name=a,b,c"], "seed has 2, name has 3"),
        (["zip=[seed,name]", "seed=1,2"], "name has no values"),
        (["zip=[seed,name]", "seed=1,2", "name=a"], "name has no values"),
        (["zip=seed", "seed=1,2"], "must be a list of keys"),
        (["zip=[seed]", "seed=1,2"], "must be a list of keys"),
        (["zip=[seed,seed]", "seed=1,2"], "more than once"),
        (["zip=[seed,name]", "zip=[seed,lr]", "seed=1,2", "name=a,b", "lr=1,2"], "more than once"),
    ],
)
def test_what_cannot_move_together_is_refused_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        _runs(*words)
    assert len(str(refusal.value).splitlines()) == 1
