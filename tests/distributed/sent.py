"""Train in a network namespace of its own, so that all bytes on its loopback are the workers': a process of the test.

    unshare --net python -m tests.distributed.sent FOLDER

Prints, for each case, what the workers counted and what the loopback carried in four steps, in MB.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from imgnet.config import (
    AllReduceConfig,
    AveragingConfig,
    Compression,
    DecentralizedConfig,
    ModelConfig,
    RunConfig,
    TopologyConfig,
    WireDtype,
)
from imgnet.parallel.averaging.methods.local import LocalStepsConfig
from imgnet.parallel.averaging.methods.push_sum import PushSumConfig
from imgnet.parallel.averaging.methods.streaming import StreamingConfig
from tests.distributed.models import SGD, synthetic
from tests.distributed.test_resume import configuration, make, on_four

WORKERS = 4
STEPS = (4, 8)
STREAMING = StreamingConfig(name="streaming_diloco", every=4, fragments=2, delay_steps=1)
CASES: dict[str, tuple[TopologyConfig, AveragingConfig]] = {
    "allreduce": (AllReduceConfig(name="allreduce"), AveragingConfig()),
    "allreduce bf16": (AllReduceConfig(name="allreduce", compression=Compression.bf16), AveragingConfig()),
    "powersgd": (
        AllReduceConfig(name="allreduce", compression=Compression.powersgd, powersgd_start_step=2),
        AveragingConfig(),
    ),
    "exp": (DecentralizedConfig(name="exp"), AveragingConfig()),
    "exp bf16": (DecentralizedConfig(name="exp", wire_dtype=WireDtype.bf16), AveragingConfig()),
    "complete": (DecentralizedConfig(name="complete"), AveragingConfig()),
    "complete bf16": (DecentralizedConfig(name="complete", wire_dtype=WireDtype.bf16), AveragingConfig()),
    "local": (DecentralizedConfig(name="complete"), LocalStepsConfig(name="local", every=2)),
    "streaming": (DecentralizedConfig(name="complete"), STREAMING),
    "push_sum": (DecentralizedConfig(name="directed-exp"), PushSumConfig(name="push_sum")),
    "push_sum bf16": (
        DecentralizedConfig(name="directed-exp", wire_dtype=WireDtype.bf16),
        PushSumConfig(name="push_sum"),
    ),
}


def case(topology: TopologyConfig, averaging: AveragingConfig, steps: int) -> RunConfig:
    config = configuration("ring", SGD)
    return replace(
        config,
        epochs=1,
        model=ModelConfig(name="resnet18"),
        data=synthetic(config.global_batch_size * steps, 8),
        topology=topology,
        averaging=averaging,
    )


def carried_mb() -> float:
    """What the loopback of this process's namespace has carried, headers and all (``proc_pid_net(5)``)."""
    (line,) = (line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9]) / 1e6


def measured(folder: Path, config: RunConfig) -> tuple[float, float]:
    """What all workers counted in a run, and what the loopback carried, in MB."""
    before = carried_mb()
    on_four(make(folder), config, None, workers=WORKERS)
    carried = carried_mb() - before
    return WORKERS * float(pd.read_csv(folder / "metrics.csv")["sent_mb"].iloc[-1]), carried


def main(folder: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    found = {}
    for name, chosen in CASES.items():
        few, many = (measured(folder / f"{name} {steps}", case(*chosen, steps)) for steps in STEPS)
        # The difference: beginning, evaluation and end are the same in both.
        found[name] = (many[0] - few[0], many[1] - few[1])
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
