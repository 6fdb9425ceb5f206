"""Everything that can be said against a run before a process is started, in one list and in the user's words.

Each domain checks its own part beside its code; here they are put together, with what concerns the machines.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from imgnet import published
from imgnet.checkpoint import checks as checkpoint
from imgnet.config import ConfigError, Mode, Precision, RunConfig, SimulatedConfig, SlurmConfig
from imgnet.config.ranges import wrong_values
from imgnet.data import checks as data
from imgnet.launch import together
from imgnet.launch.slurm import batch
from imgnet.layout import Layout, layout_of
from imgnet.models import checks as models
from imgnet.optim import checks as optim
from imgnet.parallel import checks as parallel
from imgnet.parallel import shape
from imgnet.profile import checks as profile
from imgnet.runtime import Placement, has_compiler
from imgnet.tracking import checks as tracking

Check: TypeAlias = tuple[set[str], Callable[[], Iterable[str]]]

BATCHES = {"data", "global_batch_size", "num_accumulation_steps"}
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
GPUS_WITHOUT_BF16 = ("T4", "V100", "P100", "RTX2080")
LONGEST_NAME = 200
"""Bytes: it is a part of a folder's name, which may have 255."""


def check(config: RunConfig, placement: Placement | None = None, elsewhere: Layout | None = None) -> Layout:
    """Accept a run, or refuse it with every problem at once.

    Args:
        config: the run.
        placement: where torchrun or srun put this process; None where the run starts its own workers.
        elsewhere: where another launcher of Hydra's will put the workers; None where ``config.cluster`` says it.

    Raises:
        ConfigError: one line for each problem.
    """
    wrong = wrong_values(config)
    unsound = {key.partition(".")[0] for key in wrong}
    problems = [*wrong.values()]
    layout = None
    if "cluster" not in unsound:
        try:
            layout = elsewhere or layout_of(config.cluster, placement)
        except ConfigError as error:
            problems += error.problems
    for reads, find in _checks(config, layout, on_this_machine=placement is not None):
        if unsound.isdisjoint(reads):
            problems += find()
    if problems:
        raise ConfigError(problems)
    assert layout is not None
    return layout


def _checks(config: RunConfig, layout: Layout | None, *, on_this_machine: bool) -> Iterator[Check]:
    """What each domain has to say, and the keys and groups whose values must be in their ranges for it to be asked."""
    cluster = config.cluster
    here = on_this_machine or not isinstance(cluster, SlurmConfig)
    yield {"name"}, lambda: _name_problems(config.name)
    yield {"on_sweep_end"}, lambda: together.problems(config)
    passes = config.num_accumulation_steps * (layout.world_size if layout else 0)
    one_by_one = config.mode is Mode.train and config.global_batch_size == passes
    yield {"model", "data"}, lambda: _model_problems(config, one_by_one)
    yield {"data"}, lambda: data.problems(config.data, on_this_machine=here)
    yield {"optimizer", "epochs"}, lambda: optim.problems(config.optimizer, config.epochs)
    yield {"tracking"}, lambda: tracking.problems(config.tracking)
    yield {"profile", "epochs", "max_steps", *BATCHES}, lambda: profile.problems(config)
    if config.compile and here and not has_compiler():
        yield set(), lambda: ["compile=true needs a C++ compiler (g++ or clang++), and this machine has none"]
    if isinstance(cluster, SimulatedConfig):
        yield {"cluster"}, lambda: _simulated_problems(config)
        shaped = {"cluster", "topology", "averaging", "optimizer", "epochs", *BATCHES}
        yield shaped, lambda: _likeness_problems(config, cluster)
    if isinstance(cluster, SlurmConfig):
        yield {"cluster"}, lambda: _slurm_problems(config, cluster)
    if layout is not None:
        sizes = layout.world_size, layout.workers_per_node
        yield BATCHES, lambda: shape.batch_problems(config, layout.world_size)
        yield {"topology", "averaging", "optimizer", "epochs"}, lambda: parallel.problems(config, *sizes)
        yield {"checkpoint"}, lambda: checkpoint.problems(config, *sizes)


def _model_problems(config: RunConfig, one_by_one: bool) -> list[str]:
    found = [*models.problems(config.model, config.data, config.mode, one_by_one=one_by_one)]
    return found or published.problems(config)


def _name_problems(name: str) -> Iterator[str]:
    if not name or not name.isprintable() or name.startswith(".") or any(letter in name for letter in "/\\"):
        yield f"name={name!r} names a folder; use letters, digits, '.', '_' and '-'"
    elif len(name.encode()) > LONGEST_NAME:
        yield f"name={name[:20]}... names a folder, and has more than {LONGEST_NAME} bytes; use a shorter one"


def _simulated_problems(config: RunConfig) -> Iterator[str]:
    """What workers that take turns cannot do."""
    if config.precision is Precision.fp16:
        yield "precision=fp16: simulated workers take turns, and cannot agree on a loss scale; use bf16 or fp32"
    if config.compile:
        yield "compile=true would compile the model of each simulated worker; leave it out with cluster=simulated"


def _likeness_problems(config: RunConfig, cluster: SimulatedConfig) -> Iterator[str]:
    """What stands against a prediction for the cluster that the workers stand for."""
    if cluster.like is not None:
        from imgnet.plan.forecast import problems_of_likeness  # numpy, which no other run waits for

        yield from problems_of_likeness(config, cluster)
    elif cluster.images_per_s is not None:
        yield f"cluster.images_per_s={cluster.images_per_s:g} needs cluster.like=<a cluster>, whose GPUs it is told of"


def _slurm_problems(config: RunConfig, cluster: SlurmConfig) -> Iterator[str]:
    if cluster.max_num_timeout and cluster.signal_delay_s >= 60 * cluster.timeout_min:
        yield (
            f"cluster.signal_delay_s={cluster.signal_delay_s} leaves nothing of cluster.timeout_min="
            f"{cluster.timeout_min}; cluster.max_num_timeout=0 gives no notice"
        )
    yield from batch.problems(cluster)
    for name in cluster.env:
        if any(word in name.upper() for word in SECRET_WORDS):
            yield f"cluster.env.{name}: a secret would be written to the run directory; export it in your shell instead"
    for key in ("precision", "evaluate_precision"):
        if getattr(config, key) is Precision.bf16 and cluster.gpu_type in GPUS_WITHOUT_BF16:
            yield f"{key}=bf16: {cluster.gpu_type} has no bf16 arithmetic; use {key}=fp16"
