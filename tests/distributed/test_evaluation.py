"""Evaluation counts every image once and leaves every worker as it was."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from imgnet.config import Precision
from imgnet.data.loader import build_eval_loader, build_train_loader
from imgnet.evaluate import Scores, evaluate
from imgnet.optim.loss_scale import LossScaler
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.distributed.models import ADAM, make_model, make_optimizer, objective, synthetic

NUM_IMAGES = 359


def state_of(module: nn.Module) -> list[torch.Tensor]:
    tensors = [tensor.clone() for tensor in module.state_dict().values()]
    numpy_state = np.random.get_state()[1]  # the global state is what must not move
    python_state = torch.tensor([hash(random.getstate())])
    return [*tensors, torch.get_rng_state(), torch.from_numpy(np.array(numpy_state, dtype=np.int64)), python_state]


def train_then_evaluate(runtime: Runtime) -> tuple[Scores, float, bool, bool, bool]:
    model = make_model(batch_norm=True)
    schedule = Schedule.constant(build_topology("ring", runtime.world_size, runtime.world_size))
    strategy = Decentralized(
        model, objective, make_optimizer(ADAM), schedule, runtime,
        num_accumulation_steps=1, max_grad_norm=None, scaler=LossScaler(runtime.device, enabled=False), bucket_mb=1,
    )  # fmt: skip
    loader = build_train_loader(synthetic(), seed=3, global_batch_size=24, channels_last=True, worker=runtime)
    for step, batch in enumerate(loader.batches(epoch=0)):
        strategy.step(batch.images, batch.targets, 1e-2, step)
    before = state_of(model)
    was_training = model.training
    with strategy.averaged(loader.steps_per_epoch) as average:
        changed = any(not torch.equal(old, new) for old, new in zip(before, state_of(model), strict=True))
        val = build_eval_loader(synthetic(num_val=NUM_IMAGES), local_batch_size=50, channels_last=True, worker=runtime)
        scores = evaluate(average.module, val, runtime.device, Precision.fp32)
    same = all(torch.equal(old, new) for old, new in zip(before, state_of(model), strict=True))
    return scores, average.consensus_distance, changed, same, model.training == was_training


def test_three_workers_count_359_images_and_are_bit_for_bit_as_before(tmp_path: Path) -> None:
    results = on_workers(train_then_evaluate, 3, tmp_path)
    for scores, distance, changed, same, mode_kept in results:
        assert scores == results[0][0]
        assert scores.num_images == NUM_IMAGES
        assert distance > 0
        assert changed, "the average must differ from a worker's own model for the test to say anything"
        assert same
        assert mode_kept


def score_fixed_model(runtime: Runtime) -> Scores:
    model = make_model(batch_norm=True)
    loader = build_eval_loader(synthetic(num_val=NUM_IMAGES), local_batch_size=64, channels_last=True, worker=runtime)
    return evaluate(model, loader, runtime.device, Precision.fp32)


def test_scores_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    scores = []
    for world_size in (1, 3, 4):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        scores.append(on_workers(score_fixed_model, world_size, folder)[0])
    assert all(score.val_acc1 == scores[0].val_acc1 and score.val_acc5 == scores[0].val_acc5 for score in scores)
    assert all(abs(score.val_loss - scores[0].val_loss) < 1e-6 for score in scores)
