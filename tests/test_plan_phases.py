"""The parts of a run that are predicted by themselves, by hand; and what a prediction makes of them."""

import pytest
import torch
from torch import nn

from imgnet.config import ConfigError, RunConfig
from imgnet.optim.schedule import rate_of
from imgnet.parallel.averaging.intervals import intervals_of
from imgnet.parallel.averaging.methods.local import LocalStepsConfig
from imgnet.parallel.averaging.rhythm import Fragments, Rhythm
from imgnet.parallel.flat import split_into_buckets
from imgnet.plan.computation import from_images_per_s
from imgnet.plan.predict import predict, setting_of, step_times
from imgnet.plan.timeline.buckets import Gradient, by_registration
from imgnet.plan.timeline.phases import phases_of
from imgnet.plan.timeline.stragglers import Stragglers
from tests.composing import composed

STEPS_PER_EPOCH = 50
CLUSTER = ("cluster=8xA40", "data=synthetic", "model=resnet50")


def parts(*overrides: str) -> list[tuple[float, str, Rhythm]]:
    """Share of the epochs, topology and rhythm of each part."""
    found = phases_of(composed(*CLUSTER, "epochs=90", *overrides), 8, 4, lambda: STEPS_PER_EPOCH)
    return [(share, phase.schedule.phases[0].topology.name, phase.rhythm) for share, phase in found]


def test_the_rhythm_of_each_method() -> None:
    rhythms = {
        "every_step": Rhythm(),
        "adaptive": Rhythm(),
        "diloco": Rhythm(Fragments(1, 500), waits=True),
        "noloco": Rhythm(Fragments(1, 50), waits=True),
        "local": Rhythm(Fragments(1, 8), waits=True),
        "streaming_diloco": Rhythm(Fragments(4, 100, 5), waits=True),
    }
    for name, rhythm in rhythms.items():
        assert parts("topology=ring", f"averaging={name}") == [(1.0, "ring", rhythm)]
    words = ("averaging=local", "averaging.every=4", "averaging.overlap=true", "averaging.exact_every=3")
    assert parts("topology=ring", *words) == [(1.0, "ring", Rhythm(Fragments(1, 4), exact_every=3))]


def test_exact_averages_at_first_and_another_topology_later_are_parts_of_their_own() -> None:
    words = ("topology=ring", "topology.schedule=[{after_epochs: 30, topology: exp}]")
    found = parts(*words, "averaging=local", "averaging.start_epoch=9", "averaging.every=4")
    first, rest = Rhythm(waits=True, exact_every=1), Rhythm(Fragments(1, 4), waits=True)
    assert found == [
        (pytest.approx(0.1), "ring", first),
        (pytest.approx(21 / 90), "ring", rest),
        (pytest.approx(60 / 90), "exp", rest),
    ]


def test_intervals_by_the_quadratic_rule_are_parts_of_about_one_length() -> None:
    """At a rate that stays, (0.61 / 0.2)^2 = 9.3; under a cosine as many averages as the run makes."""
    rule = ("topology=complete", "averaging=local", "averaging.every=2", "averaging.qsr_alpha=0.61")
    constant = ("optimizer.lr=0.2", "optimizer.min_lr=0.2", "optimizer.warmup_epochs=0")
    assert parts(*rule, *constant) == [(1.0, "complete", Rhythm(Fragments(1, 9), waits=True))]
    falling = ("optimizer.lr=0.4", "optimizer.min_lr=0.01")
    found = parts(*rule, *falling)
    lengths = [rhythm.fragments.every for _, _, rhythm in found]
    assert lengths[0] == 2
    assert lengths == sorted(lengths)
    assert sum(share for share, _, _ in found) == pytest.approx(1.0)
    config = composed(*CLUSTER, "epochs=90", *rule, *falling)
    assert isinstance(config.averaging, LocalStepsConfig)
    by_parts = sum(share * 90 * STEPS_PER_EPOCH / length for (share, _, _), length in zip(found, lengths, strict=True))
    assert by_parts == pytest.approx(number_of_averages(config, config.averaging), rel=0.02)


def number_of_averages(config: RunConfig, averaging: LocalStepsConfig) -> int:
    intervals, step, number = intervals_of(averaging, config, STEPS_PER_EPOCH), 0, 0
    while step < intervals.num_steps:
        step += intervals.length(step, rate_of(config.optimizer, step, 90, STEPS_PER_EPOCH))
        number += 1
    return number


def predicted(*overrides: str, step_spread: float = 0.0) -> dict[str, float]:
    config = composed(*CLUSTER, *overrides)
    setting = setting_of(config, from_images_per_s("resnet50", 1000, 1000.0, ""), Stragglers(step_spread))
    found = predict(setting, num_train=1_281_167)
    return {"step": found.step_s, "waiting": found.latency_s + found.bandwidth_s, "message": found.message_s}


def test_what_waits_for_all_messages_waits_for_them_once_in_an_interval() -> None:
    """On slow links every_step takes what its messages take; H local steps a Hth of them, and the computation."""
    slow = ("topology=complete", "cluster.network.between_gbit_s=0.2")
    each = predicted(*slow)
    for every in (10, 500):
        local = predicted(*slow, "averaging=local", f"averaging.every={every}")
        assert local["message"] == pytest.approx(each["message"] / every)
        assert local["waiting"] == pytest.approx(each["message"] / every, rel=0.05)
    computation = each["step"] - each["waiting"]
    diloco, streaming = (predicted(*slow, f"averaging={name}") for name in ("diloco", "streaming_diloco"))
    assert computation < diloco["step"] < 1.2 * computation
    assert streaming["message"] == pytest.approx(each["message"] / 100, rel=1e-6), "H = 100"


def test_stragglers_cost_an_interval_less_than_a_step() -> None:
    quick = ("topology=complete", "cluster.network.between_gbit_s=1000")
    spread = [predicted(*quick, *words, step_spread=0.1)["step"] for words in ((), ("averaging=diloco",))]
    assert spread[1] < spread[0]


def test_a_run_whose_intervals_follow_the_rate_needs_the_number_of_its_images() -> None:
    config = composed(
        "cluster=8xA40", "topology=ring", "averaging=local", "averaging.qsr_alpha=0.1", "data.name=flowers"
    )
    setting = setting_of(config, from_images_per_s("resnet50", 1000, 1000.0, ""), Stragglers())
    with pytest.raises(ConfigError, match="how many training images there are is not known"):
        step_times(setting)


def test_directed_rounds_are_not_predicted() -> None:
    with pytest.raises(ConfigError, match="topology=directed-exp: predictions do not know directed rounds"):
        parts("topology=directed-exp", "averaging=push_sum")


def test_predicted_buckets_are_those_of_the_engine() -> None:
    sizes = [300, 7, 2000, 10, 5, 5, 800_000, 3, 400_000]
    named = [(str(place), nn.Parameter(torch.zeros(size))) for place, size in enumerate(sizes)]
    for fewest in (1, 2, 3, 5, 8, 9, 20):
        engine = split_into_buckets(named, 2**20, fewest)
        found = by_registration([Gradient(size, 1.0) for size in sizes], 1, fewest)
        assert [bucket.num_values for bucket in found] == [sum(one.numel() for _, one in bucket) for bucket in engine]
