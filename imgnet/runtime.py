"""Who this process is among the workers, and what it runs on. The only reader of the process environment.

torch is imported inside functions, because a command that is refused should not wait for it.
"""

import os
import re
import resource
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

SLURM_RENDEZVOUS_PORTS = range(20000, 30000)
RUN_DIR, CLAIM, STORE_FILE = "IMGNET_RUN_DIR", "IMGNET_CLAIM", "IMGNET_STORE_FILE"
"""What the first process of a submitted job tells the job's tasks, each of which is a worker."""
_notice = threading.Event()


@dataclass(frozen=True)
class Placement:
    """The place of a worker in its job, as its launcher states it. Ranks of a node are contiguous."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def node(self) -> int:
        """Index of this worker's node, from 0."""
        return self.rank // self.local_world_size


@dataclass(frozen=True)
class Runtime:
    """A worker that has joined its process group."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: "torch.device"
    num_threads: int
    """This worker's share of the cores that its node lends to the job."""
    num_simulated: int = 0
    """Workers that this process stands for, one after the other; 0: it is one itself."""
    simulated_per_node: int = 0
    """Of which so many count as a node."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes what the run has in common."""
        return self.rank == 0

    @property
    def ranks(self) -> range:
        """The workers that this process is, or stands for."""
        return range(self.num_simulated) if self.num_simulated else range(self.rank, self.rank + 1)

    @property
    def num_workers(self) -> int:
        """Workers of the run."""
        return self.num_simulated or self.world_size

    @property
    def workers_per_node(self) -> int:
        """Workers that share a node."""
        return self.simulated_per_node or self.local_world_size


def placement_from_environment(environment: Mapping[str, str] | None = None) -> Placement | None:
    """The place that ``torchrun`` or ``srun`` gave to this process, or None where nobody did.

    ``srun`` counts only for a step of several tasks: in a batch script, or under ``srun -n1``, the command starts its
    own workers as on any machine. A task of a job that this package submitted is a worker, also where it is the only
    one.

    Raises:
        ValueError: ranks of a node are not contiguous, or nodes hold different numbers of workers.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env and not _is_task_of_ours(env):
        world_size = int(env["WORLD_SIZE"])
        return _checked(
            Placement(
                rank=int(env["RANK"]),
                world_size=world_size,
                local_rank=int(env.get("LOCAL_RANK", env["RANK"])),
                local_world_size=int(env.get("LOCAL_WORLD_SIZE", world_size)),
            )
        )
    num_tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if "SLURM_PROCID" in env and (num_tasks > 1 or _is_task_of_ours(env)):
        per_node = env.get("SLURM_STEP_TASKS_PER_NODE", str(num_tasks))
        counts = set(re.sub(r"\(x\d+\)", "", per_node).split(","))
        if len(counts) > 1:
            raise ValueError(f"srun gives nodes different numbers of tasks ({per_node}); use --ntasks-per-node")
        return _checked(
            Placement(
                rank=int(env["SLURM_PROCID"]),
                world_size=num_tasks,
                local_rank=int(env["SLURM_LOCALID"]),
                local_world_size=int(counts.pop()),
            )
        )
    return None


def _is_task_of_ours(env: Mapping[str, str]) -> bool:
    return RUN_DIR in env and "SLURM_PROCID" in env


def _checked(placement: Placement) -> Placement:
    if placement.rank % placement.local_world_size != placement.local_rank:
        raise ValueError(
            f"rank {placement.rank} has local rank {placement.local_rank} of {placement.local_world_size}: "
            "the ranks of a node must be contiguous (srun --distribution=block)"
        )
    return placement


def visible_gpus() -> int:
    """GPUs that this process may use, counted without the driver: device files that CUDA's variable does not hide."""
    files = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in Path("/dev").glob("nvidia*"))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return files
    return min(files, len([device for device in chosen.split(",") if device.strip() not in ("", "-1")]))


def available_cores() -> int:
    """Cores that this process may run on (its affinity mask, which Slurm and containers set)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_peak_mb() -> float:
    """The most memory that this process has held, in 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def has_compiler() -> bool:
    """Whether torch finds what it compiles models with."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def path_of_commands() -> str:
    """Where commands are looked for: the user's path, and behind it the folder of this Python, which has ``imgnet``."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


def running_under_slurm() -> str | None:
    """The id of the Slurm job around this process, if there is one."""
    return os.environ.get("SLURM_JOB_ID")


@dataclass(frozen=True)
class Submitted:
    """What a task of a job that this package submitted is told by the job's first process."""

    run_dir: Path
    claim: int
    """Number of the job's claim to the directory."""
    store_file: Path | None
    """Through which the workers find each other on a job's only node; None: at ``MASTER_ADDR`` and ``MASTER_PORT``."""


def submitted() -> Submitted | None:
    """The run of which this process is a worker; None where this package did not submit the job around it."""
    env = os.environ
    if not _is_task_of_ours(env):
        return None
    return Submitted(Path(env[RUN_DIR]), int(env[CLAIM]), Path(env[STORE_FILE]) if STORE_FILE in env else None)


def environment_of_tasks(run_dir: Path, claim: int, meeting: Path | tuple[str, int]) -> dict[str, str]:
    """The environment for ``srun``, and so for every worker of the job around this process.

    Args:
        run_dir: of the run.
        claim: number of the job's claim to it.
        meeting: where the workers find each other: a file on the only node, or host and port.
    """
    where = {STORE_FILE: str(meeting)}
    if not isinstance(meeting, Path):
        where = {"MASTER_ADDR": meeting[0], "MASTER_PORT": str(meeting[1])}
    return _without_foreign_jobs() | {RUN_DIR: str(run_dir), CLAIM: str(claim)} | where


def _without_foreign_jobs() -> dict[str, str]:
    """This process's environment without what the task of a job hands to commands that are typed in it."""
    return {name: value for name, value in os.environ.items() if name not in (RUN_DIR, CLAIM, STORE_FILE)}


def remember_notice() -> None:
    """Let Slurm's notice ahead of a job's end (SIGUSR2) kill no process that cannot save yet, and be kept for later."""
    signal.signal(signal.SIGUSR2, lambda _number, _frame: _notice.set())


def notice_came() -> bool:
    """Whether it came before there was somebody to act on it."""
    return _notice.is_set()


def slurm_job_id() -> str:
    """The number of the job around this process.

    Raises:
        KeyError: there is none.
    """
    return os.environ["SLURM_JOB_ID"]


def num_slurm_nodes() -> int:
    """How many nodes the job around this process has.

    Raises:
        KeyError: there is none.
    """
    return int(os.environ["SLURM_JOB_NUM_NODES"])


@dataclass(frozen=True)
class SlurmJob:
    """A job of Slurm, as its user knows it."""

    name: str
    """``12``, or ``12_3`` in an array."""
    cluster: str
    """What its Slurm calls itself; empty where that is not known."""
    attempt: int = 0
    """How often Slurm has queued it again."""

    def __str__(self) -> str:
        return f"{self.name} of cluster {self.cluster}" if self.cluster else self.name


def slurm_job() -> SlurmJob:
    """The job around this process.

    Raises:
        KeyError: there is none.
    """
    env = os.environ
    in_array = "SLURM_ARRAY_TASK_ID" in env
    name = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}" if in_array else env["SLURM_JOB_ID"]
    return SlurmJob(name, env.get("SLURM_CLUSTER_NAME", ""), int(env.get("SLURM_RESTART_COUNT") or 0))


def slurm_hosts() -> list[str]:
    """Names of the nodes of the Slurm job around this process."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    return list(SlurmJobEnvironment().hostnames)


def node_name() -> str:
    """What Slurm calls this machine, or what it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def environment_for_sbatch() -> dict[str, str]:
    """This process's environment without what an enclosing Slurm job put there: sbatch would take it for options.

    ``SBATCH_*`` are a user's own defaults, and stay.
    """
    outside = _without_foreign_jobs().items()
    return {name: value for name, value in outside if name == "SLURM_CONF" or not name.startswith("SLURM_")}


def expand(path: str) -> Path:
    """A path in which ``~`` and variables such as ``$TMPDIR`` stand for what they are on this node.

    Raises:
        ValueError: a variable is not set.
    """
    expanded = os.path.expandvars(path)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ValueError(f"the variable {unset[1]} is not set on {socket.gethostname()}")
    return Path(expanded).expanduser()


def shows_full_errors() -> bool:
    """Whether the user asked for Python tracebacks of refused commands (Hydra's own switch)."""
    return os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")


def leave_errors_to_us() -> None:
    """Make Hydra raise what it would print, so that a refused command gets one line and no traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"


def prefer_loopback() -> None:
    """Keep the sockets of gloo and NCCL on this machine. For jobs of one node that this package starts."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    # torch's agent would offer its own store to the workers, and that listens on every interface.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"


def quiet_profiler() -> None:
    """Keep what torch's profiler says of a machine without GPUs off the terminal. Before it is first used."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def share_threads(num_threads: int) -> None:
    """Bound the thread pools of libraries that this process, and those it starts, load from now on."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, str(num_threads))


class Meeting(Protocol):
    """How workers come together, and leave."""

    def meet(self, make_store: "Callable[[], dist.Store]") -> "dist.Store":
        """Connect to the store that all workers share, and wait for all of them. Collective."""
        ...

    def part(self) -> None:
        """Called when all workers are done."""
        ...


def node_of(rank: int, placement: Placement) -> str:
    """The node of another worker, as :func:`node_name` has it; its number where Slurm does not say more.

    Args:
        rank: of the other.
        placement: of this worker.
    """
    number = rank // placement.local_world_size
    if number == placement.node:
        return node_name()
    hosts = slurm_hosts() if running_under_slurm() else []
    return hosts[number] if number < len(hosts) else f"node {number + 1}"


@contextmanager
def joined(
    placement: Placement,
    use_gpu: bool,
    store_file: Path | None,
    timeout_min: float = 10.0,
    meeting: Meeting | None = None,
) -> Iterator[Runtime]:
    """Join the process group of this job, and leave it at the end, unless that is an error. Collective.

    Args:
        placement: where this worker stands.
        use_gpu: one GPU for each worker and NCCL; the CPU and gloo where false.
        store_file: the file through which workers of one machine find each other; None: ``MASTER_ADDR`` and
            ``MASTER_PORT``, which ``torchrun`` sets and which follow from the job under ``srun``.
        timeout_min: how long a collective may wait for a missing worker.
        meeting: where workers wait for all others before they form the group; None: they wait in it. Not under
            ``torchrun``, whose agent has a store of its own.
    """
    import torch
    import torch.distributed as dist

    num_threads = max(1, available_cores() // placement.local_world_size)
    torch.set_num_threads(num_threads)
    device = torch.device("cuda", placement.local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if store_file is None:
        _name_the_first_host(placement)
    timeout = timedelta(minutes=timeout_min)
    make_store = partial(_store, placement, store_file, timeout)
    store = meeting.meet(make_store) if meeting is not None else make_store() if store_file is not None else None
    dist.init_process_group(
        backend="nccl" if use_gpu else "gloo",
        store=store,
        rank=placement.rank,
        world_size=placement.world_size,
        timeout=timeout,
        device_id=device if use_gpu else None,
    )
    yield Runtime(
        placement.rank,
        placement.world_size,
        placement.local_rank,
        placement.local_world_size,
        device,
        num_threads,
    )
    dist.barrier()  # who leaves closes connections, on which a slower worker may still have to send
    if meeting is not None:
        meeting.part()
    # Not after an error: the group's end would reach the others, and fail them, before this worker has said why.
    dist.destroy_process_group()


def _store(placement: Placement, store_file: Path | None, timeout: timedelta) -> "dist.Store":
    """What all workers write to and read from; rank 0 serves it where it is no file, and waits for nobody."""
    import torch.distributed as dist

    if store_file is not None:
        return dist.FileStore(str(store_file), placement.world_size)
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        placement.world_size,
        is_master=placement.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
    )


def _name_the_first_host(placement: Placement) -> None:
    """``srun`` names no meeting point: take the job's first host, and a port that follows from the job and step."""
    if "MASTER_ADDR" in os.environ:
        return
    one_node = placement.world_size == placement.local_world_size
    os.environ["MASTER_ADDR"] = "127.0.0.1" if one_node else _first_host()
    step = 100 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ.get("SLURM_STEP_ID", "0"))
    os.environ["MASTER_PORT"] = str(SLURM_RENDEZVOUS_PORTS[step % len(SLURM_RENDEZVOUS_PORTS)])
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(placement.rank), str(placement.world_size)


def _first_host() -> str:
    """The job's first host. Its name may mean something to Slurm alone: then the address where ``srun`` was started."""
    name = slurm_hosts()[0]
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", name)  # of the first node in a batch script
    return name
