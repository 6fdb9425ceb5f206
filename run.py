"""Compose a run from ``conf/``, check it, and train: ``python run.py topology=ring cluster=local``.

The route to the training loop: ``main`` -> ``imgnet.launch.launch`` -> ``imgnet.train.run`` on every worker.
"""

import signal

import hydra
from omegaconf import DictConfig

from imgnet.config import register_schemas
from imgnet.launch import launch
from imgnet.launch.commandline import first_run_shown_to_hydra
from imgnet.launch.refusal import one_line_errors

register_schemas()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Carry out one composed run; for a sweep Hydra calls this once for each (``hydra_plugins/``).

    Returns:
        The last validation top-1 accuracy in percent, for sweepers that search.
    """
    return launch(config)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's notice: nobody dies of it who cannot save yet
    with one_line_errors(), first_run_shown_to_hydra():
        main()
