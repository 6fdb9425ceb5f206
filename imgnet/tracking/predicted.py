"""The time that a simulated run would have taken so far on the cluster that it stands for. Predicted, not measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imgnet import rundir

PREDICTED = "predicted_time_s"
"""The column of ``metrics.csv``. Training alone, as ``train_time_s``, without waiting for data."""


@dataclass(frozen=True)
class PredictedClock:
    """Seconds by optimizer steps.

    Attributes:
        num_steps: that are planned for the run.
        step_times: of each topology of the run, in their order, its share of ``num_steps`` and seconds of a step.
    """

    num_steps: int
    step_times: list[tuple[float, float]]

    @classmethod
    def of_run(cls, run_dir: Path, num_steps: int) -> Self | None:
        """That of a run for which a prediction was made; None for any other."""
        written = rundir.read_json(run_dir / rundir.PREDICTION)
        return cls(num_steps, written["step_times"]) if written else None

    def at(self, step: int) -> float:
        """Seconds of the first ``step`` steps."""
        seconds, left = 0.0, float(step)
        for share, step_s in self.step_times:
            here = min(left, share * self.num_steps)
            seconds += here * step_s
            left -= here
        return seconds
