"""Which cores a worker computes on: its share of the node's, those next to its GPU first."""

import os
from collections.abc import Sequence
from pathlib import Path


def stay_near_gpu(local_rank: int, num_workers: int) -> None:
    """Bind this process, and those it starts from now on, to its share of the cores. Worker ``k`` uses GPU ``k``.

    torch's own binding (``LaunchConfig.numa_options``) needs the program numactl on every node.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share_of_cores(allowed, [cores_near_gpu(gpu) for gpu in range(num_workers)])[local_rank])


def keep_to_share(run: str, together: Sequence[str]) -> None:
    """Bind this process to the cores of its run, of several that share a job: every so many-th, on every socket.

    Threads that wait for each other on a core that is another run's as well would cost more than they gain.

    Args:
        run: this one's name.
        together: names of all runs of the job.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(together) > 1:
        os.sched_setaffinity(0, cores_of_run(allowed, together.index(run), len(together)))


def cores_of_run(allowed: Sequence[int], index: int, num_runs: int) -> Sequence[int]:
    """The cores of one run of so many; one that it shares, where there are fewer cores than runs."""
    return allowed[index::num_runs] or [allowed[index % len(allowed)]]


def share_of_cores(allowed: set[int], near: Sequence[set[int]]) -> list[set[int]]:
    """Split cores evenly between workers, so that each has as many as possible of those near its GPU.

    Args:
        allowed: the cores of the job on this node.
        near: for each worker the cores near its GPU; empty where that is unknown.

    Returns:
        For each worker its own cores; all of them for everybody where there are fewer cores than workers.
    """
    size = len(allowed) // len(near)
    if size == 0:
        return [set(allowed) for _ in near]
    free, shares = set(allowed), []
    for wanted in near:
        shares.append(set(sorted(free & wanted)[:size]))
        free -= shares[-1]
    for share in shares:
        share |= (more := set(sorted(free)[: size - len(share)]))
        free -= more
    return shares


def cores_near_gpu(index: int) -> set[int]:
    """Cores on the GPU's own socket, as Linux states them; empty where it does not."""
    import torch

    gpu = torch.cuda.get_device_properties(index)
    name = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    try:
        return parse_core_list(Path(f"/sys/bus/pci/devices/{name}/local_cpulist").read_text(encoding="ascii"))
    except OSError:
        return set()


def parse_core_list(text: str) -> set[int]:
    """``0-3,8`` is cores 0, 1, 2, 3 and 8."""
    spans = [part.split("-") for part in text.strip().split(",") if part]
    return {core for span in spans for core in range(int(span[0]), int(span[-1]) + 1)}
