"""Which runs belong together, what they are called, and which of them a user means."""

from pathlib import Path

import pytest

from imgnet.results.files import Problems
from imgnet.results.groups import Choice, Group, UnknownChoiceError, chosen, group_runs, natural
from imgnet.results.read import Run, read_runs
from tests.run_directories import write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "study"


def read(folder: Path) -> list[Run]:
    problems = Problems()
    runs = read_runs([folder], problems)
    assert problems.lines() == []
    return runs


def names(groups: list[Group]) -> list[str]:
    return [group.name for group in groups]


def test_runs_that_differ_in_their_seed_alone_are_a_group(folder: Path) -> None:
    for number, (topology, seed) in enumerate([("ring", 2), ("exp", 1), ("ring", 1), ("exp", 2)]):
        write_run(folder / str(number), topology=topology, seed=seed)
    ring, exp = group_runs(read(folder))
    assert names([ring, exp]) == ["topology=ring", "topology=exp"]
    assert [run.seed for run in ring.runs] == [1, 2]


def test_what_all_share_is_no_part_of_a_name(folder: Path) -> None:
    for seed in (1, 2):
        write_run(folder / str(seed), seed=seed, typed=["+experiments=a", "epochs=3"])
    (group,) = group_runs(read(folder))
    assert (group.name, group.labels) == ("all", {})


def test_what_was_not_typed_but_differs_tells_groups_apart(folder: Path) -> None:
    """The same command before and after somebody changed a file in ``conf/``."""
    for number, lr in enumerate((0.1, 0.2)):
        write_run(folder / str(number), settings={"optimizer": {"name": "adam", "lr": lr}})
    assert names(group_runs(read(folder))) == ["optimizer.lr=0.1", "optimizer.lr=0.2"]


def test_what_is_typed_and_what_is_the_default_are_the_same(folder: Path) -> None:
    write_run(folder / "0", seed=1, typed=["optimizer.lr=0.001"])
    write_run(folder / "1", seed=2)
    write_run(folder / "2", seed=2, topology="exp")
    assert names(group_runs(read(folder))) == ["topology=ring", "topology=exp"]


@pytest.mark.parametrize(
    "settings",
    [{"tracking": {"wandb": "offline"}}, {"cluster": {"partition": "long"}}, {"log_every_steps": 1}, {"new_key": None}],
)
def test_what_has_no_part_in_the_result_parts_no_group(settings: dict, folder: Path) -> None:
    write_run(folder / "0", seed=1)
    write_run(folder / "1", seed=2, settings=settings)
    assert len(group_runs(read(folder))) == 1


def test_the_number_of_workers_parts_groups_though_no_key_says_it(folder: Path) -> None:
    for seed, workers in ((1, 4), (2, 8)):
        write_run(folder / str(seed), seed=seed, about={"world_size": workers})
    assert names(group_runs(read(folder))) == ["workers=4", "workers=8"]


def test_runs_of_two_experiments_stand_side_by_side(folder: Path) -> None:
    write_run(folder / "0", typed=["+experiments=quickstart"], settings={"epochs": 20})
    write_run(folder / "1", topology="exp", typed=["+experiments=study"], settings={"model": {"name": "vit_b_16"}})
    assert names(group_runs(read(folder))) == [
        "topology=ring experiments=quickstart",
        "topology=exp experiments=study",
    ]


def test_a_seed_that_failed_and_was_made_again_counts_once(folder: Path) -> None:
    write_run(folder / "0", seed=1, status="failed", about={"start": "2026-03-01T10:00:00+00:00"})
    write_run(folder / "1", seed=1, about={"start": "2026-03-01T11:00:00+00:00"})
    write_run(folder / "2", seed=1, status="running", about={"start": "2026-03-01T12:00:00+00:00"})
    (group,) = group_runs(read(folder))
    assert [run.path.name for run in group.runs] == ["1"]
    assert sorted(run.path.name for run in group.repeats) == ["0", "2"]


def test_a_repeated_seed_is_no_further_evidence(folder: Path) -> None:
    for number in range(3):
        write_run(folder / str(number), seed=1, about={"start": f"2026-03-01T1{number}:00:00+00:00"})
    (group,) = group_runs(read(folder))
    assert [run.path.name for run in group.completed] == ["2"]


def test_each_run_by_itself_has_its_seed_as_a_label(folder: Path) -> None:
    for number, (topology, seed) in enumerate([("ring", 1), ("ring", 2), ("exp", 1)]):
        write_run(folder / str(number), topology=topology, seed=seed)
    assert names(group_runs(read(folder), each=True)) == [
        "topology=ring seed=1",
        "topology=ring seed=2",
        "topology=exp seed=1",
    ]


def test_runs_without_a_readable_configuration_are_told_by_their_overrides(folder: Path) -> None:
    for number, (topology, seed) in enumerate([("ring", 1), ("ring", 2), ("exp", 1)]):
        write_run(folder / str(number), topology=topology, seed=seed)
        (folder / str(number) / ".hydra" / "config.yaml").unlink()
    groups = group_runs(read_runs([folder], Problems()))
    assert [(group.name, len(group.runs)) for group in groups] == [("topology=ring", 2), ("topology=exp", 1)]


def test_a_choice_takes_values_of_groups_settings_and_overrides(folder: Path) -> None:
    for number, topology in enumerate(["ring", "exp", "allreduce"]):
        write_run(folder / str(number), topology=topology, typed=["+experiments=a"])
    runs = read(folder)

    def found(*written: str) -> list[str]:
        return [run.path.name for run in chosen(runs, [Choice.parse(one) for one in written])]

    assert found("topology=ring,exp") == ["0", "1"]
    assert found("topology.name=exp", "experiments=a", "optimizer=adam", "seed=1") == ["1"]


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("topology=rng", "topology=rng: no run has it; there are exp, ring"),
        ("topolgy=ring", "topolgy=ring: no run has a setting 'topolgy'; did you mean 'topology'?"),
        ("ring", "ring: write key=value, such as topology=ring"),
        ("=ring", "=ring: write key=value, such as topology=ring"),
    ],
)
def test_a_choice_of_what_is_not_there_is_refused_with_what_is(written: str, line: str, folder: Path) -> None:
    for number, topology in enumerate(["ring", "exp"]):
        write_run(folder / str(number), topology=topology)
    with pytest.raises(UnknownChoiceError) as refused:
        chosen(read(folder), [Choice.parse(written)])
    assert str(refused.value) == line


def test_choices_that_no_run_fits_together_are_refused(folder: Path) -> None:
    for number, topology in enumerate(["ring", "exp"]):
        write_run(folder / str(number), topology=topology, seed=number)
    with pytest.raises(UnknownChoiceError, match="no run is topology=ring and seed=1 at once"):
        chosen(read(folder), [Choice.parse("topology=ring"), Choice.parse("seed=1")])


def test_numbers_are_sorted_as_numbers() -> None:
    assert sorted(["0.01", "1e-3", "10", "9"], key=natural) == ["1e-3", "0.01", "9", "10"]
    assert sorted(["ring10", "ring2", "5"], key=natural) == ["5", "ring2", "ring10"]
