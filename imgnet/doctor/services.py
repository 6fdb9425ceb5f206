"""Data and accounts that a run needs. Imports no torch."""

from importlib.util import find_spec

from imgnet.config import DataConfig, DataKind
from imgnet.data import checks
from imgnet.doctor.verdict import Verdict


def data(config: DataConfig) -> Verdict:
    """Whether the images are where the configuration says, in all their classes. No image is read."""
    problems = checks.problems(config, on_this_machine=True)
    if problems:
        return Verdict.error(
            "data", "; ".join(problems), "data.root=FOLDER names another place; docs/data.md makes them"
        )
    if config.kind is DataKind.synthetic:
        return Verdict.ok("data", "synthetic, made in memory")
    place = f"data={config.name}: {config.root}, {config.num_classes} classes"
    if config.kind is DataKind.digits:
        return Verdict.ok("data", place)
    return Verdict.ok("data", f"{place}; `imgnet data verify {config.root}` reads every image")


def wandb_login() -> Verdict:
    """Whether ``tracking.wandb=auto`` would be online. Asks no network."""
    if find_spec("wandb") is None:
        return Verdict.ok("wandb", "not installed; tracking.wandb needs pip install 'imgnet[wandb]'")
    import wandb

    if wandb.login(prompt=False):  # type: ignore[call-arg]
        return Verdict.ok("wandb", "logged in")
    return Verdict.warning("wandb", "nobody is logged in; tracking.wandb=auto stays offline", "wandb login")
