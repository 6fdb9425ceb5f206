"""The training of one worker, from its configuration to its last step. The only training loop."""

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from imgnet import published, rundir
from imgnet.batch_norm import recalibrated
from imgnet.checkpoint.export import export_model, load_model
from imgnet.checkpoint.folder import read_average, read_worker
from imgnet.checkpoint.manifest import (
    Manifest,
    candidates,
    differences,
    refusal,
    remove_partial,
    trained_settings,
)
from imgnet.checkpoint.resume import newest_whole
from imgnet.checkpoint.writer import Writer
from imgnet.config import ConfigError, Mode, Precision, RunConfig, SimulatedConfig
from imgnet.data.backends.backend import Batch
from imgnet.data.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader, prepare_nodes
from imgnet.evaluate import AUTOCAST_DTYPES, Scores, autocast, evaluate
from imgnet.models.build import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.optim.schedule import rate_of
from imgnet.parallel.build import build_workers
from imgnet.parallel.collectives import sum_over_workers
from imgnet.parallel.engines.members import Member
from imgnet.parallel.engines.strategy import Objective, Strategy
from imgnet.parallel.hang import HangWatch
from imgnet.parallel.requests import NOTHING, Decision, Requests
from imgnet.profile import checks as profile
from imgnet.profile.activity import Activity
from imgnet.profile.spans import span
from imgnet.randomness import seed_all
from imgnet.runtime import Runtime
from imgnet.tracking.tracker import Tracker

EVAL_IMAGES_PER_BATCH = 256

log = logging.getLogger("imgnet")


def run(config: RunConfig, runtime: Runtime, run_dir: Path, stop: threading.Event, watch: HangWatch) -> None:
    """Train, or evaluate, as ``config`` says. Collective; rank 0 writes to the run directory.

    Args:
        config: the run.
        runtime: this worker.
        run_dir: the run's directory.
        stop: set, on any worker, when the run is to save its state and end as ``preempted``.
        watch: ends this process where another worker has come to a halt.
    """
    if isinstance(config.cluster, SimulatedConfig):
        number = config.cluster.num_workers
        runtime = replace(runtime, num_simulated=number, simulated_per_node=config.cluster.workers_per_node or number)
    prepare_nodes(config.data, runtime)
    seed_all(config.seed)
    _say_what_weights_want(config, runtime, run_dir)
    model = _model(config, runtime)
    status = "completed"
    if config.mode is Mode.evaluate:
        _evaluate_only(config, runtime, run_dir, model)
    else:
        status = _train(config, runtime, run_dir, model, stop, watch)
    if runtime.is_main:
        rundir.finish(run_dir, status)


def _say_what_weights_want(config: RunConfig, runtime: Runtime, run_dir: Path) -> None:
    """Every worker fails here where they do not fit: before anything is downloaded."""
    line = published.said(config)
    if runtime.is_main and line is not None:
        print(line, flush=True)
        rundir.write_run(run_dir, images=line)


def _model(config: RunConfig, runtime: Runtime) -> nn.Module:
    model = build_model(
        config.model,
        config.data.num_classes,
        device=runtime.device,
        channels_last=config.channels_last,
        compiled=config.compile,
    )
    if config.model.weights is not None:
        load_model(Path(config.model.weights), model)
    return model


def _evaluate_only(config: RunConfig, runtime: Runtime, run_dir: Path, model: nn.Module) -> None:
    with closing(_eval_loader(config, runtime)) as loader, _measured_on_its_own(config, model, runtime):
        scores = _scores(config, model, loader, runtime)
    if runtime.is_main:
        rundir.write_summary(run_dir, vars(scores) | {"weights": config.model.weights})


def _scores(config: RunConfig, module: nn.Module, loader: EvalLoader, runtime: Runtime) -> Scores:
    return evaluate(module, loader, runtime.device, _eval_precision(config), config.evaluate_label_smoothing)


@contextmanager
def _measured_on_its_own(config: RunConfig, model: nn.Module, runtime: Runtime) -> Iterator[None]:
    """Where nothing else needs training images."""
    if config.evaluate_recalibrate_bn == 0:
        yield
        return
    with closing(_train_loader(config, runtime)) as loader, _measured_again(config, model, runtime, loader, 0):
        yield


def _measured_again(
    config: RunConfig, module: nn.Module, runtime: Runtime, loader: TrainLoader, epoch: int
) -> AbstractContextManager[None]:
    """Batch norm's statistics over the first ``evaluate_recalibrate_bn`` batches of an epoch, in passes of training."""
    if config.evaluate_recalibrate_bn == 0:
        return nullcontext()
    batches = islice(loader.batches(epoch), config.evaluate_recalibrate_bn)
    passes = config.num_accumulation_steps * len(runtime.ranks)
    images = (some for batch in batches for some in batch.images.chunk(passes))
    return recalibrated(module, images, runtime.device, config.precision)


def _eval_precision(config: RunConfig) -> Precision:
    return config.precision if config.evaluate_precision is None else config.evaluate_precision


def _eval_loader(config: RunConfig, runtime: Runtime) -> EvalLoader:
    return build_eval_loader(
        published.shown(config),
        local_batch_size=EVAL_IMAGES_PER_BATCH,
        channels_last=config.channels_last,
        worker=runtime,
        dtype=AUTOCAST_DTYPES.get(_eval_precision(config), torch.float32),
    )


def _train_loader(config: RunConfig, runtime: Runtime) -> TrainLoader:
    return build_train_loader(
        published.shown(config),
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        channels_last=config.channels_last,
        worker=runtime,
        dtype=AUTOCAST_DTYPES.get(config.precision, torch.float32),
    )


def _train(
    config: RunConfig,
    runtime: Runtime,
    run_dir: Path,
    model: nn.Module,
    stop: threading.Event,
    watch: HangWatch,
) -> str:
    make_optimizer = partial(build_optimizer, config=config.optimizer)
    with closing(_train_loader(config, runtime)) as train_loader, closing(_eval_loader(config, runtime)) as eval_loader:
        per_epoch = train_loader.steps_per_epoch
        if too_long := [*profile.problems(config, per_epoch)]:
            raise ConfigError(too_long)
        objective = objective_of(config)
        strategy, members = build_workers(config, model, objective, make_optimizer, runtime, per_epoch)
        requests = Requests(stop, config.checkpoint.every_min, runtime.rank)
        loop = Loop(config, runtime, run_dir, strategy, members, train_loader, eval_loader, watch)
        loop.resume()
        with Tracker(config, runtime, run_dir, per_epoch, loop.progress.step) as tracker:
            return loop.run(tracker, requests)


def objective_of(config: RunConfig) -> Objective:
    """Cross entropy with label smoothing, the forward pass in the run's precision and the loss in fp32."""

    def objective(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with span(Activity.forward):
            with autocast(images.device, config.precision):
                logits = module(images)
            return functional.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)

    return objective


def _export_if_there_is_room(path: Path, module: nn.Module, about: dict[str, Any]) -> None:
    """The best model so far: worth a warning where it cannot be written, and not the run."""
    try:
        export_model(path, module, about)
    except (OSError, SafetensorError) as error:
        log.warning("%s not written: %s; training goes on", path.name, error)


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: optimizer steps made.
        train_time_s: seconds of training, without evaluation, up to the start of this epoch.
        epoch_time_s: seconds of training in this epoch, before this process took over.
        loss_sum: sum of this worker's losses in this epoch, a scalar on the device; ``[workers]`` where this process
            stands for several.
        best_acc1: best validation top-1 so far, in percent.
    """

    step: int
    train_time_s: float
    epoch_time_s: float
    loss_sum: Tensor
    best_acc1: float


class Loop:
    """Epochs of steps, each followed by an evaluation of the averaged model.

    Metrics stay on the device until a step that logs, so that other steps wait for nothing but their data.
    """

    def __init__(
        self,
        config: RunConfig,
        runtime: Runtime,
        run_dir: Path,
        strategy: Strategy,
        members: Sequence[Member],
        train_loader: TrainLoader,
        eval_loader: EvalLoader,
        watch: HangWatch,
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.run_dir = run_dir
        self.strategy = strategy
        self.members = members
        self.train_loader = train_loader
        self.eval_loader = eval_loader
        self.watch = watch
        self.preprocessing = published.preprocessing_of(published.shown(config))
        self.writer = Writer(run_dir / "checkpoints", runtime.ranks, config.checkpoint.keep_last)
        self.progress = Progress(0, 0.0, 0.0, torch.zeros(len(runtime.ranks), device=runtime.device), float("-inf"))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.train_loader.steps_per_epoch

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        planned = self.config.epochs * self.steps_per_epoch
        return min(planned, self.config.max_steps or planned)

    def run(self, tracker: Tracker, requests: Requests) -> str:
        """Train until the last step, or until somebody asks to stop.

        Returns:
            ``completed`` or ``preempted``.
        """
        while self.progress.step < self.num_steps:
            decision = self.train_epoch(tracker, requests)
            if not self._at_end_of_epoch():
                return self._leave(row={})
            with span(Activity.between):
                row = self._end_epoch()
                tracker.end_epoch(row)
            self._check_loss(row)
            if decision.stop:
                return self._leave(row)
            if decision.save or self._saves_after(int(row["epoch"])):
                self._save(row, requests)
        self.writer.wait()
        return "completed"

    def train_epoch(self, tracker: Tracker, requests: Requests) -> Decision:
        """Make the steps of an epoch that are left, unless asked to stop.

        Returns:
            What was decided after the last step. A checkpoint at the end of an epoch is left to the caller, because it
            must hold that epoch's row.
        """
        progress, clock = self.progress, StepClock()
        epoch, first = divmod(progress.step, self.steps_per_epoch)
        batches = clock.timed(self.train_loader.batches(epoch, first))
        self._go_on(tracker, clock)
        decision = NOTHING
        for _, batch in zip(range(self._left_of_epoch()), batches, strict=False):
            lr = self._learning_rate(progress.step)
            loss = self.strategy.step(batch.images, batch.targets, lr, progress.step)
            progress.loss_sum += loss
            progress.step += 1
            self.watch.step_made(progress.step)
            tracker.advance()
            if progress.step % self.config.log_every_steps == 0:
                self._log_step(tracker, lr, loss, clock)
            decision = requests.after_step(progress.step)
            if decision.stop:
                break
            if decision.save and not self._at_end_of_epoch():
                progress.epoch_time_s += clock.lap_s()
                self._save({}, requests)
                self._go_on(tracker, clock)
        progress.epoch_time_s += clock.lap_s()
        return decision

    def _go_on(self, tracker: Tracker, clock: "StepClock") -> None:
        """Count times from here on: those of steps before a pause that no row was written of belong to none."""
        clock.take_data_wait_s()
        self.strategy.communication_wait_s()
        tracker.go_on(self.progress.step)

    def _left_of_epoch(self) -> int:
        return min(
            self.steps_per_epoch - self.progress.step % self.steps_per_epoch, self.num_steps - self.progress.step
        )

    def _at_end_of_epoch(self) -> bool:
        return self.progress.step % self.steps_per_epoch == 0 or self.progress.step >= self.num_steps

    def _log_step(self, tracker: Tracker, lr: float, loss: Tensor, clock: "StepClock") -> None:
        tracker.log_step(
            epoch=math.ceil(self.progress.step / self.steps_per_epoch),
            step=self.progress.step,
            loss=float(loss.flatten()[0]),
            lr=lr,
            data_wait_s=clock.take_data_wait_s(),
            communication_wait_s=self.strategy.communication_wait_s(),
        )

    def _learning_rate(self, step: int) -> float:
        return rate_of(self.config.optimizer, step, self.config.epochs, self.steps_per_epoch)

    def _end_epoch(self) -> dict[str, float]:
        """The row of the epoch that has just ended, with an evaluation where one is due."""
        progress, start = self.progress, time.perf_counter()
        self.watch.rest()
        num_steps = (progress.step - 1) % self.steps_per_epoch + 1
        # Waits for the device and for the last step of all workers, which belongs to the training time.
        sums = [float(progress.loss_sum.double().sum()), sum(member.sent_bytes for member in self.members)]
        loss, sent_bytes = sum_over_workers(sums, self.runtime.device)
        seconds = progress.epoch_time_s + time.perf_counter() - start
        progress.train_time_s += seconds
        progress.epoch_time_s = 0.0
        progress.loss_sum.zero_()
        row = {
            "epoch": math.ceil(progress.step / self.steps_per_epoch),
            "step": progress.step,
            "train_loss": loss / num_steps / self.runtime.num_workers,
            "train_time_s": progress.train_time_s,
            "images_per_s": num_steps * self.config.global_batch_size / seconds,
            "lr": self._learning_rate(progress.step - 1),
            "sent_mb": round(sent_bytes / self.runtime.num_workers) / 1e6,
        }
        is_due = row["epoch"] % self.config.evaluate_every_epochs == 0 or progress.step >= self.num_steps
        return row | self._evaluate(row) if is_due else row

    def _evaluate(self, row: dict[str, float]) -> dict[str, float]:
        start = time.perf_counter()
        with self.strategy.averaged(self.progress.step) as average, self._measured_again(average.module):
            scores = _scores(self.config, average.module, self.eval_loader, self.runtime)
            self._export(average.module, scores, row)
        return {
            "val_loss": scores.val_loss,
            "val_acc1": scores.val_acc1,
            "val_acc5": scores.val_acc5,
            "consensus_distance": average.consensus_distance,
            "neighbour_distance": average.neighbour_distance,
            "eval_time_s": time.perf_counter() - start,
            "num_val_images": scores.num_images,
        }

    def _measured_again(self, module: nn.Module) -> AbstractContextManager[None]:
        epoch = (self.progress.step - 1) // self.steps_per_epoch
        return _measured_again(self.config, module, self.runtime, self.train_loader, epoch)

    def _export(self, module: nn.Module, scores: Scores, row: dict[str, float]) -> None:
        """Write the averaged model where it is the best so far or the last. Rank 0 alone."""
        is_best = scores.val_acc1 > self.progress.best_acc1
        self.progress.best_acc1 = max(scores.val_acc1, self.progress.best_acc1)
        if not self.runtime.is_main:
            return
        about = {
            "settings": self._settings(),
            "preprocessing": self.preprocessing,
            "epoch": row["epoch"],
            "step": row["step"],
        } | vars(scores)
        folder = self.run_dir / "checkpoints"
        if is_best:
            _export_if_there_is_room(folder / "best.safetensors", module, about)
        if self.progress.step >= self.num_steps:
            export_model(folder / "final.safetensors", module, about)

    def _check_loss(self, row: dict[str, float]) -> None:
        if not math.isfinite(row["train_loss"]):
            raise FloatingPointError(
                f"the training loss is {row['train_loss']} in epoch {row['epoch']}; try a smaller optimizer.lr, a "
                "longer optimizer.warmup_epochs or max_grad_norm"
            )

    def _saves_after(self, epoch: int) -> bool:
        every = self.config.checkpoint.every_epochs
        return every is not None and (epoch % every == 0 or self.progress.step >= self.num_steps)

    def _settings(self) -> dict[str, Any]:
        return trained_settings(self.config, self.runtime.workers_per_node)

    def _leave(self, row: dict[str, float]) -> str:
        if self.progress.step < self.num_steps:
            self._save(row)
        self.writer.wait()
        return "preempted" if self.progress.step < self.num_steps else "completed"

    def _save(self, row: dict[str, float], requests: Requests | None = None) -> None:
        """Keep all that every worker needs to go on after this step. All workers must do it after the same one."""
        with span(Activity.between):
            is_written = self._write(row)
        if is_written and requests is not None:
            requests.saved()

    def _write(self, row: dict[str, float]) -> bool:
        """Whether there was something to write."""
        self.watch.rest()
        states = [
            state | {"progress": vars(replace(self.progress, loss_sum=loss_sum))}
            for member, loss_sum in zip(self.members, self.progress.loss_sum, strict=True)
            if (state := member.state()) is not None
        ]
        if not states:
            return False
        manifest = Manifest(
            step=self.progress.step,
            epoch=math.ceil(self.progress.step / self.steps_per_epoch),
            world_size=self.runtime.num_workers,
            trained=self._settings(),
            metrics=row,
            preprocessing=self.preprocessing,
        )
        self.writer.write(states, manifest)
        return True

    def resume(self) -> None:
        """Start from the newest whole checkpoint that there is, if there is one. Collective.

        The same settings on the same number of workers go on exactly. On another number every worker starts from the
        averaged model at the same step, with a new optimizer; with other settings, where that is allowed, at step 0.
        """
        found, passed_over = newest_whole(candidates(self.config, self.run_dir), self.runtime)
        if self.runtime.is_main:
            remove_partial(self.run_dir / "checkpoints")
        dist.barrier()
        lines = [f"checkpoint passed over: {damage}" for damage in passed_over]
        if found is not None:
            folder, manifest = found
            lines.append(f"resumed from {folder}, step {manifest.step}: {self._start_from(folder, manifest)}")
        if self.runtime.is_main and lines:
            print("\n".join(lines), flush=True)
            rundir.write_run(self.run_dir, resumed=lines)

    def _start_from(self, folder: Path, manifest: Manifest) -> str:
        different = differences(manifest, self.config, self.runtime.num_workers, self.runtime.workers_per_node)
        if different and not self.config.checkpoint.allow_differences:
            raise ConfigError([refusal(folder, different)])
        if different or manifest.world_size != self.runtime.num_workers:
            return self._start_from_average(folder, manifest, different)
        return self._restore(folder)

    def _restore(self, folder: Path) -> str:
        sums = []
        for member in self.members:
            state = read_worker(folder, member.rank)
            self.progress = Progress(**state["progress"])
            member.restore(state, self.progress.step)
            sums.append(self.progress.loss_sum)
        self.progress.loss_sum = torch.stack(sums).to(self.runtime.device)
        return "every worker goes on exactly"

    def _start_from_average(self, folder: Path, manifest: Manifest, different: list[str]) -> str:
        average = read_average(folder, manifest.world_size)
        for member in self.members:
            member.module.load_state_dict(average)
        if different:
            return f"its averaged model, from step 0, for the settings differ: {'; '.join(different)}"
        of_first = read_worker(folder, 0)
        for member in self.members:
            member.go_on_from(of_first.get("sent_bytes", 0.0))
        written = Progress(**of_first["progress"])
        self.progress.step = manifest.step - manifest.step % self.steps_per_epoch
        self.progress.train_time_s, self.progress.best_acc1 = written.train_time_s, written.best_acc1
        return (
            f"{manifest.world_size} workers wrote it, {self.runtime.num_workers} go on from their averaged model with "
            f"a new optimizer, at the beginning of epoch {self.progress.step // self.steps_per_epoch + 1}"
        )


class StepClock:
    """Where the seconds of an epoch went, on the host's clock."""

    def __init__(self) -> None:
        self._lap = time.perf_counter()
        self._data_wait_s = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each is waited for is counted."""
        while True:
            asked = time.perf_counter()
            with span(Activity.data):
                batch = next(batches, None)
            self._data_wait_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def take_data_wait_s(self) -> float:
        """Seconds waited for data since the last call."""
        seconds, self._data_wait_s = self._data_wait_s, 0.0
        return seconds

    def lap_s(self) -> float:
        """Seconds since the last call, or since the beginning."""
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds
