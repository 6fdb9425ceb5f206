"""The commands ``imgnet predict`` and ``imgnet measure``. Each imports what it needs when it runs."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgnet.config import ConfigError
from imgnet.refuse import refuse

if TYPE_CHECKING:
    from imgnet.plan.computation import Computation
    from imgnet.plan.predict import Prediction
    from imgnet.plan.timeline.stragglers import Stragglers

app = typer.Typer(pretty_exceptions_enable=False)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="As for run.py: topology=ring,exp cluster=8xA40,32xT4 model=resnet50 ...")
]
Measured = Annotated[Path | None, typer.Option(help="What `imgnet measure` wrote.")]
ImagesPerS = Annotated[
    float | None, typer.Option(help="Or the images that one GPU of relative speed 1 trains in a second.")
]


@app.command()
def predict(
    overrides: Overrides = None,
    measured: Measured = None,
    images_per_s: ImagesPerS = None,
    step_spread: Annotated[
        float | None, typer.Option(help="Deviation of a worker's pass over its mean; as measured if not given.")
    ] = None,
    worker_spread: Annotated[float, typer.Option(help="The same between workers, which stay as they are.")] = 0.0,
    slow: Annotated[
        list[str] | None, typer.Option(metavar="RANK:FACTOR", help="A worker that always computes so much longer.")
    ] = None,
    hiccup: Annotated[float, typer.Option(help="One worker in each step, drawn anew, computes so much longer.")] = 1.0,
    steps_of: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Draw from the steps that this run logged.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Finished runs: prediction beside measurement.")
    ] = None,
    num_train: Annotated[int | None, typer.Option(min=1, help="Training images, where the data does not say.")] = None,
    num_steps: Annotated[int, typer.Option(min=12, help="Steps that are replayed, at most.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Predict seconds per step, per epoch and hours of runs on described clusters, and what bounds them.

    Nothing is run: the engine's order of events is replayed with measured or given times (docs/planning.md).
    """
    from imgnet.plan import show

    try:
        stragglers = _stragglers(step_spread, worker_spread, slow or [], hiccup, steps_of or [])
        if against:
            _compare(against, measured, images_per_s, stragglers)
            return
        predictions, about = _predictions(
            overrides or [], measured, images_per_s, stragglers, step_spread, num_train, num_steps
        )
    except ConfigError as error:
        refuse(str(error))
    if as_json:
        typer.echo(show.as_json(predictions, about))
    elif as_csv:
        typer.echo(show.as_csv(predictions), nl=False)
    else:
        show.show(predictions, about)


@app.command()
def measure(
    overrides: Overrides = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one worker in a pass.")] = 32,
    num_steps: Annotated[int, typer.Option(min=3, help="Passes that are timed, for each of two batch sizes.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a CPU; all cores if not given.")] = None,
    network: Annotated[bool, typer.Option("--network", help="The links between workers instead.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=2, help="With --network: started here; in a job of torchrun or srun its own.")
    ] = None,
    cpu: Annotated[bool, typer.Option(help="Leave the GPUs alone.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; where `imgnet predict` looks.")] = None,
) -> None:
    """Measure what a prediction needs: one worker's computation, or with --network the links between workers.

    The computation: a forward and a backward pass, when each gradient is there, updates, their spread.
    The links: messages of 1 KB to 64 MB, within a node and, in a job on several nodes, between them.
    """
    try:
        if network:
            _measure_network(workers, out, cpu=cpu)
        else:
            _measure_computation(overrides or [], batch_size, num_steps, threads, out, cpu=cpu)
    except ConfigError as error:
        refuse(str(error))


def _measure_network(workers: int | None, out: Path | None, *, cpu: bool) -> None:
    from imgnet.plan.measure_network import measure_here
    from imgnet.plan.source import MEASUREMENTS
    from imgnet.runtime import placement_from_environment, visible_gpus

    gpus = 0 if cpu else visible_gpus()
    placement = placement_from_environment()
    if placement is None and gpus and (workers or gpus) > gpus:
        raise ConfigError([f"--workers {workers}: this machine offers {gpus} GPUs; --cpu measures without"])
    if (placement.world_size if placement else workers or gpus or 2) < 2:
        raise ConfigError(["a network is between workers, and here is one; start the command with torchrun or srun"])
    measure_here(placement, workers or gpus or 2, out or MEASUREMENTS / "network.json", use_gpu=gpus > 0)


def _measure_computation(
    overrides: Sequence[str], batch_size: int, num_steps: int, threads: int | None, out: Path | None, *, cpu: bool
) -> None:
    from imgnet.plan.compose import composed_runs
    from imgnet.plan.source import usual_place
    from imgnet.runtime import visible_gpus

    configs = composed_runs(overrides)
    if len(configs) > 1:
        raise ConfigError([f"`imgnet measure` measures one run; these are {len(configs)}"])
    import torch

    from imgnet.plan.computation import save
    from imgnet.plan.measure import measure_computation

    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if visible_gpus() and not cpu else "cpu")
    computation, settings = measure_computation(configs[0], device, batch_size, num_steps)
    path = out or usual_place(configs[0])
    save(path, computation, settings)
    typer.echo(_describe(computation, batch_size))
    typer.echo(f"written: {path}")


def _describe(computation: "Computation", batch_size: int) -> str:
    whole = computation.pass_s(batch_size)
    first = min(gradient.ready for gradient in computation.gradients)
    return (
        f"{computation.about}\n"
        f"pass of {batch_size} images {1e3 * whole:.1f} ms ({batch_size / whole:,.0f} images/s), of which "
        f"{1e3 * computation.fixed_s:.1f} whatever their number; first gradient after {100 * first:.0f} %, "
        f"spread {100 * computation.step_spread:.1f} %\n"
        f"update {1e3 * computation.update_s:.1f} ms, averaging "
        f"{1e3 * computation.mixing_s['fp32']:.1f} ms (bf16 {1e3 * computation.mixing_s['bf16']:.1f})"
    )


def _stragglers(
    step_spread: float | None, worker_spread: float, slow: Sequence[str], hiccup: float, steps_of: Sequence[Path]
) -> "Stragglers":
    """What the options say."""
    from imgnet.plan.timeline.stragglers import Stragglers, samples_of

    for name, value in (("--step-spread", step_spread or 0.0), ("--worker-spread", worker_spread)):
        if not 0 <= value < 1:
            raise ConfigError([f"{name} {value}: must be from 0 to below 1, a deviation over the mean such as 0.05"])
    if not (isfinite(hiccup) and hiccup > 0):
        raise ConfigError([f"--hiccup {hiccup}: must be a factor above 0, such as 2"])
    if steps_of and step_spread is not None:
        raise ConfigError(["--steps-of contradicts --step-spread: give one of them"])
    samples = samples_of([run / "steps.jsonl" for run in steps_of])
    return Stragglers(step_spread or 0.0, worker_spread, dict(map(_slow, slow)), hiccup, samples)


def _slow(written: str) -> tuple[int, float]:
    rank, _, factor = written.partition(":")
    try:
        pair = int(rank), float(factor)
    except ValueError:
        pair = -1, 0.0
    if pair[0] < 0 or not (isfinite(pair[1]) and pair[1] > 0):
        raise ConfigError([f"--slow {written}: write RANK:FACTOR, such as 0:2 for a rank 0 that takes twice as long"])
    return pair


def _predictions(
    overrides: Sequence[str],
    measured: Path | None,
    images_per_s: float | None,
    stragglers: "Stragglers",
    step_spread: float | None,
    num_train: int | None,
    num_steps: int,
) -> "tuple[list[Prediction], str]":
    """All runs that the overrides describe, and where their computation comes from."""
    from imgnet.plan.compose import composed_runs
    from imgnet.plan.predict import predict as predict_one
    from imgnet.plan.predict import setting_of
    from imgnet.plan.source import computation_of

    settings = []
    for config in composed_runs(overrides):
        computation = computation_of(config, measured, images_per_s)
        settings.append(setting_of(config, computation, _with_spread(stragglers, step_spread, computation)))
    about = "; ".join(dict.fromkeys(setting.computation.about for setting in settings))
    return [predict_one(setting, num_train, num_steps) for setting in settings], about


def _with_spread(stragglers: "Stragglers", step_spread: float | None, computation: "Computation") -> "Stragglers":
    """The spread that was measured, where the command gives none."""
    is_given = step_spread is not None or stragglers.samples
    return stragglers if is_given else replace(stragglers, step_spread=computation.step_spread)


def _compare(runs: Sequence[Path], measured: Path | None, images_per_s: float | None, stragglers: "Stragglers") -> None:
    from imgnet.plan.against import compare, measured_run
    from imgnet.plan.show import show_comparison

    show_comparison(compare([measured_run(run) for run in runs], measured, images_per_s, stragglers))
