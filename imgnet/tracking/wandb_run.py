"""A run of Weights & Biases."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from imgnet import rundir
from imgnet.config import TrackingConfig, WandbMode
from imgnet.tracking import wandb_file
from imgnet.tracking.sink import Kind, Sink


@final
class WandbRun(Sink):
    """One run there for all processes that work on the run here, one after the other; each row is in it once.

    ``auto`` is online where this user is logged in. The files go to ``<run_dir>/wandb``, a piece for each process; the
    API key stays where wandb keeps it. A process that goes on from a checkpoint makes steps again whose rows are there
    already: what earlier pieces hold is left out.

    Args:
        tracking: where to.
        about: the configuration, as it is shown there.
        run_dir: the run's directory.
        name: of the run.
    """

    def __init__(self, tracking: TrackingConfig, about: dict[str, Any], run_dir: Path, name: str) -> None:
        import wandb

        self._last = _last_steps(run_dir)
        known = rundir.read_json(run_dir / "run.json").get("wandb_id")
        self._run = wandb.init(
            id=known,
            resume="allow",
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group or sweep_of(run_dir),
            name=name,
            dir=run_dir,
            mode="online" if _is_online(tracking.wandb) else "offline",
            config=about,
            settings=wandb.Settings(git_commit=about["run"]["commit"]),
        )
        rundir.write_run(run_dir, wandb_id=self._run.id)
        if (run_dir / "code.diff").is_file():
            shutil.copyfile(run_dir / "code.diff", Path(self._run.dir) / "code.diff")  # sent with the run

    def log(self, kind: Kind, row: Mapping[str, float], step: int) -> None:
        """See :meth:`Sink.log`. What is logged of one step becomes one row."""
        if step > self._last[kind]:
            self._run.log({kind.value + key: value for key, value in row.items()}, step=step)

    def close(self, *, failed: bool) -> None:
        """See :meth:`Sink.close`. Waits for the process that writes the file, which ``finish`` alone does not."""
        import wandb

        self._run.finish(exit_code=1 if failed else 0)
        wandb.teardown()


def sweep_of(run_dir: Path) -> str:
    """The sweep that a run belongs to, by its folder: ``<date> <time>_<name>``."""
    *_, date, sweep, _ = ["", *run_dir.absolute().parts]
    return f"{date} {sweep}"[-128:]


def _is_online(mode: WandbMode) -> bool:
    import wandb

    return mode is WandbMode.online or (mode is WandbMode.auto and wandb.login(prompt=False))  # type: ignore[call-arg]


def _last_steps(run_dir: Path) -> dict[Kind, int]:
    """The last step of each kind of row that earlier pieces hold; -1 where there is none."""
    last = dict.fromkeys(Kind, -1)
    for piece in wandb_file.pieces(run_dir):
        for row in wandb_file.history(piece):
            for kind, name in ((Kind.epoch, "epoch"), (Kind.step, "step/step")):
                if name in row:
                    last[kind] = max(last[kind], row["_step"])
    return last | {Kind.system: max(last.values())}
