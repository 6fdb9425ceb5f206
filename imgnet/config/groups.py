"""The schemas of every group, those of plug-ins included."""

from functools import cache
from importlib import import_module

from imgnet.config.schemas import GROUP_SCHEMAS

PLUG_INS = {"averaging": "imgnet.parallel.averaging.registry"}
"""Groups whose options bring schemas of their own: the module that has collected them.

``SCHEMAS`` has them by the names that ``conf/`` knows them by, ``OPTIONS`` by option. It is named here, and imported
when it is asked for: it stands above this package and builds on it.
"""


@cache
def group_schemas() -> dict[str, dict[str, type]]:
    """The schemas that the options of each group in ``conf/`` start from, by ``/hydra/schema/<group>/<name>``."""
    plugged_in: dict[str, dict[str, type]] = {group: import_module(place).SCHEMAS for group, place in PLUG_INS.items()}
    return {group: schemas | plugged_in.get(group, {}) for group, schemas in GROUP_SCHEMAS.items()}


def schema_of_option(group: str, name: str | None) -> type | None:
    """The schema of an option that says so itself; None: its keys must tell."""
    return import_module(PLUG_INS[group]).OPTIONS.get(name) if group in PLUG_INS else None
