"""Event files of TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from imgnet.tracking.sink import Kind, Sink


@final
class TensorBoardEvents(Sink):
    """A file in ``<run_dir>/tensorboard`` for each process that works on the run.

    TensorBoard drops what a later file says that it makes again, so that each row is shown once.

    Args:
        run_dir: the run's directory.
        about: the configuration, shown as text.
        done_steps: optimizer steps whose rows earlier files hold.
    """

    def __init__(self, run_dir: Path, about: dict[str, Any], done_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = done_steps + 1 if (run_dir / "tensorboard").exists() else None
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=again, flush_secs=10)
        self._writer.add_text("configuration", _code(json.dumps(about, indent=2)), done_steps + 1)
        if (run_dir / "code.diff").is_file():
            diff = (run_dir / "code.diff").read_text(encoding="utf-8")
            self._writer.add_text("changes to the commit", _code(diff), done_steps + 1)

    def log(self, kind: Kind, row: Mapping[str, float], step: int) -> None:
        """See :meth:`Sink.log`."""
        for key, value in row.items():
            self._writer.add_scalar((kind.value or "epoch/") + key, value, step)

    def close(self, *, failed: bool) -> None:
        """See :meth:`Sink.close`."""
        self._writer.close()


def _code(text: str) -> str:
    """As Markdown, which TensorBoard reads, shows text that it shall leave alone."""
    return "\n".join(f"    {line}" for line in text.splitlines())
