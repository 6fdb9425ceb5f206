"""Compose a run from ``conf/``, check it, and train: ``python run.py topology=ring cluster=local``.

The route to the training loop: ``main`` -> ``imgnet.launch.launch`` -> ``imgnet.train.run`` on every worker.
"""

from imgnet.runtime import remember_notice

remember_notice()  # before the other imports, which take a second

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from imgnet.config import register_schemas  # noqa: E402
from imgnet.launch import launch  # noqa: E402
from imgnet.launch.commandline import first_run_shown_to_hydra  # noqa: E402
from imgnet.launch.refusal import one_line_errors  # noqa: E402

register_schemas()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Carry out one composed run; for a sweep Hydra calls this once for each (``hydra_plugins/``).

    Returns:
        The last validation top-1 accuracy in percent, for sweepers that search.
    """
    return launch(config)


if __name__ == "__main__":
    with one_line_errors(), first_run_shown_to_hydra():
        main()
