"""The training of one worker, from its configuration to its last step. The only training loop."""

import time
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from imgnet import rundir
from imgnet.checkpoint import export_model, load_model
from imgnet.config import Mode, RunConfig
from imgnet.data.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader, prepare_nodes
from imgnet.evaluate import AUTOCAST_DTYPES, Scores, autocast, evaluate
from imgnet.models import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.optim.schedule import learning_rate
from imgnet.parallel.build import build_strategy
from imgnet.parallel.collectives import sum_over_workers
from imgnet.parallel.strategy import Objective, Strategy
from imgnet.runtime import Runtime
from imgnet.tracking import Tracker

EVAL_IMAGES_PER_BATCH = 256


def run(config: RunConfig, runtime: Runtime, run_dir: Path) -> None:
    """Train, or evaluate, as ``config`` says. Collective; rank 0 writes to the run directory."""
    prepare_nodes(config.data, runtime)
    torch.manual_seed(config.seed)
    model = _model(config, runtime)
    if config.mode is Mode.evaluate:
        _evaluate_only(config, runtime, run_dir, model)
    else:
        _train(config, runtime, run_dir, model)
    if runtime.is_main:
        rundir.finish(run_dir, "completed")


def _model(config: RunConfig, runtime: Runtime) -> nn.Module:
    model = build_model(
        config.model,
        config.data.num_classes,
        device=runtime.device,
        channels_last=config.channels_last,
        compiled=config.compile,
    )
    if config.checkpoint is not None:
        load_model(Path(config.checkpoint), model)
    return model


def _evaluate_only(config: RunConfig, runtime: Runtime, run_dir: Path, model: nn.Module) -> None:
    with closing(_eval_loader(config, runtime)) as loader:
        scores = evaluate(model, loader, runtime.device, config.precision)
    if runtime.is_main:
        rundir.write_summary(run_dir, vars(scores) | {"checkpoint": config.checkpoint})


def _eval_loader(config: RunConfig, runtime: Runtime) -> EvalLoader:
    return build_eval_loader(
        config.data,
        local_batch_size=EVAL_IMAGES_PER_BATCH,
        channels_last=config.channels_last,
        worker=runtime,
        dtype=_image_dtype(config),
    )


def _image_dtype(config: RunConfig) -> torch.dtype:
    return AUTOCAST_DTYPES.get(config.precision, torch.float32)


def _train(config: RunConfig, runtime: Runtime, run_dir: Path, model: nn.Module) -> None:
    train_loader = build_train_loader(
        config.data,
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        channels_last=config.channels_last,
        worker=runtime,
        dtype=_image_dtype(config),
    )
    eval_loader = _eval_loader(config, runtime)
    make_optimizer = partial(build_optimizer, config=config.optimizer)
    strategy = build_strategy(config, model, objective_of(config), make_optimizer, runtime)
    torch.manual_seed(config.seed + 1_000_003 * (runtime.rank + 1))  # dropout differs between workers
    with (
        closing(train_loader),
        closing(eval_loader),
        Tracker(config, runtime, run_dir, train_loader.steps_per_epoch) as tracker,
    ):
        Loop(config, runtime, run_dir, strategy, train_loader, eval_loader, tracker).run()


def objective_of(config: RunConfig) -> Objective:
    """Cross entropy with label smoothing, the forward pass in the run's precision and the loss in fp32."""

    def objective(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with autocast(images.device, config.precision):
            logits = module(images)
        return functional.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)

    return objective


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
        train_loader: TrainLoader,
        eval_loader: EvalLoader,
        tracker: Tracker,
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.run_dir = run_dir
        self.strategy = strategy
        self.train_loader = train_loader
        self.eval_loader = eval_loader
        self.tracker = tracker
        self.step = 0
        """Optimizer steps made so far."""
        self.train_time_s = 0.0
        """Seconds of training so far, without evaluation."""
        self.best_acc1 = float("-inf")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        planned = self.config.epochs * self.train_loader.steps_per_epoch
        return min(planned, self.config.max_steps or planned)

    def run(self) -> None:
        """Train until the last step."""
        for epoch in range(self.config.epochs):
            if self.step >= self.num_steps:
                break
            row = self.train_epoch(epoch)
            is_last = self.step >= self.num_steps
            if is_last or (epoch + 1) % self.config.evaluate_every_epochs == 0:
                row |= self._evaluate(row)
            self.tracker.end_epoch(row)
            if not torch.isfinite(torch.tensor(row["train_loss"])):
                raise FloatingPointError(
                    f"the training loss is {row['train_loss']} in epoch {epoch + 1}; try a smaller optimizer.lr, a "
                    "longer optimizer.warmup_epochs or max_grad_norm"
                )

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Make the steps of an epoch, and return the training part of its row in ``metrics.csv``."""
        start, first_step = time.perf_counter(), self.step
        loss_sum = torch.zeros((), device=self.runtime.device)
        waited_for_data = 0.0
        batches = self.train_loader.batches(epoch)
        while self.step < self.num_steps:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited_for_data += time.perf_counter() - asked
            if batch is None:
                break
            lr = self._learning_rate()
            loss = self.strategy.step(batch.images, batch.targets, lr)
            loss_sum += loss
            self.step += 1
            self.tracker.advance()
            if self.step % self.config.log_every_steps == 0:
                self.tracker.log_step(
                    epoch=epoch + 1,
                    step=self.step,
                    loss=float(loss),
                    lr=lr,
                    data_wait_s=waited_for_data,
                    communication_wait_s=self.strategy.communication_wait_s(),
                )
                waited_for_data = 0.0
        num_steps = self.step - first_step
        (total,) = sum_over_workers([float(loss_sum)], self.runtime.device)  # waits for the last step on all workers
        seconds = time.perf_counter() - start
        self.train_time_s += seconds
        return {
            "epoch": epoch + 1,
            "step": self.step,
            "train_loss": total / num_steps / self.runtime.world_size,
            "train_time_s": self.train_time_s,
            "images_per_s": num_steps * self.config.global_batch_size / seconds,
            "lr": self._learning_rate(self.step - 1),
        }

    def _learning_rate(self, step: int | None = None) -> float:
        optimizer, per_epoch = self.config.optimizer, self.train_loader.steps_per_epoch
        return learning_rate(
            self.step if step is None else step,
            lr=optimizer.lr,
            min_lr=optimizer.min_lr,
            warmup_steps=round(optimizer.warmup_epochs * per_epoch),
            warmup_factor=optimizer.warmup_factor,
            total_steps=self.config.epochs * per_epoch,
        )

    def _evaluate(self, row: dict[str, float]) -> dict[str, float]:
        start = time.perf_counter()
        with self.strategy.averaged() as average:
            scores = evaluate(average.module, self.eval_loader, self.runtime.device, self.config.precision)
            if self.runtime.is_main:
                self._export(average.module, scores, row)
        return {
            "val_loss": scores.val_loss,
            "val_acc1": scores.val_acc1,
            "val_acc5": scores.val_acc5,
            "consensus_distance": average.consensus_distance,
            "eval_time_s": time.perf_counter() - start,
        }

    def _export(self, module: nn.Module, scores: Scores, row: dict[str, float]) -> None:
        about = {
            "model": self.config.model.name,
            "num_classes": self.config.data.num_classes,
            "data": self.config.data.name,
            "epoch": row["epoch"],
            "step": row["step"],
        } | vars(scores)
        folder = self.run_dir / "checkpoints"
        if scores.val_acc1 > self.best_acc1:
            self.best_acc1 = scores.val_acc1
            export_model(folder / "best.safetensors", module, about)
        if self.step >= self.num_steps:
            export_model(folder / "final.safetensors", module, about)
