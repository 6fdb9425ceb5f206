"""Software, processors, GPUs and disks of this machine. Imports no torch."""

import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from imgnet.data.checks import dali_is_installed
from imgnet.doctor.verdict import Verdict
from imgnet.runtime import available_cores, visible_gpus

_SHOWN = ("torch", "torchvision", "timm", "decent-dp", "hydra-core", "submitit")
_GB = 10**9
_LITTLE_SPACE_GB = 10
"""Two checkpoints of 32 workers with ResNet-50 and Adam take as much."""
_TOO_LITTLE_SPACE_GB = 1
_SLOW_MB_S = 50
_WRITTEN_BYTES = 64 * 2**20
_SLURM_PATIENCE_S = 30


def versions() -> Verdict:
    """Whether every package that imgnet requires is here, in a version that it was made for."""
    wrong = [line for text in metadata.requires("imgnet") or [] if (line := _unmet(Requirement(text)))]
    if wrong:
        return Verdict.error("versions", "; ".join(wrong), "make .venv/installed, or pip install -e .")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in _SHOWN)
    return Verdict.ok("versions", f"Python {platform.python_version()}, {found}")


def _unmet(wanted: Requirement) -> str | None:
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return None
    try:
        here = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    is_right = wanted.specifier.contains(Version(here), prereleases=True)
    return None if is_right else f"{wanted.name} {here} is not {wanted.specifier}"


def cores(num_workers: int) -> Verdict:
    """The cores that this process really has, beside those of the machine.

    Args:
        num_workers: that a run starts here.
    """
    here, all_of_them = available_cores(), os.cpu_count() or 1
    found = f"{here} of the machine's {all_of_them}, for {num_workers} workers"
    if here >= num_workers:
        return Verdict.ok("cores", found)
    of_slurm = "in a job of Slurm ask for more (cluster.cpus_per_task); " if here < all_of_them else ""
    return Verdict.warning("cores", found, f"{of_slurm}fewer workers (cluster.cpu_workers_per_node) train as fast")


def gpus() -> Verdict:
    """GPUs and their driver, as NVIDIA's library tells; whether torch can use them is told by averaging on them."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if not visible_gpus():
            return Verdict.ok("GPUs", "none; runs use the CPU (gloo)")
        return Verdict.error("GPUs", f"{visible_gpus()}, but no driver: {error}", "install NVIDIA's driver")
    names = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    kinds = ", ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))
    found = f"{kinds or 'none'}, driver {pynvml.nvmlSystemGetDriverVersion()}"
    pynvml.nvmlShutdown()
    if names and not visible_gpus():
        return Verdict.warning("GPUs", f"{found}, all hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    return Verdict.ok("GPUs", found)


def dali() -> Verdict:
    """Who decodes images."""
    if dali_is_installed():
        return Verdict.ok("DALI", "installed; it decodes (data.backend=auto)")
    return Verdict.warning("DALI", "not installed; torchvision decodes, which is slower", "pip install 'imgnet[dali]'")


def slurm(is_needed: bool) -> Verdict:
    """Whether Slurm answers, and with which partitions.

    Args:
        is_needed: the run is one for Slurm; it is an error then that it cannot be had.
    """
    missing = Verdict.error if is_needed else Verdict.warning
    if shutil.which("sbatch") is None:
        if is_needed:
            return Verdict.error("Slurm", "not on this machine", "submit from a login node; cluster=local works here")
        return Verdict.ok("Slurm", "not on this machine; clusters are for a login node, cluster=local works")
    command = ["sinfo", "--noheader", "--format=%P %a %D"]
    remedy = "see `scontrol ping`, and ask who runs the cluster; cluster=local works without"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SLURM_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return missing("Slurm", f"sinfo did not answer in {_SLURM_PATIENCE_S} s", remedy)
    except OSError as error:
        return missing("Slurm", f"sbatch is here, but sinfo cannot be run: {error.strerror}", remedy)
    if done.returncode:
        return missing("Slurm", " ".join(done.stderr.split()), remedy)
    return _partitions([line.split() for line in done.stdout.splitlines()])


def _partitions(rows: list[list[str]]) -> Verdict:
    up = [f"{name} ({nodes} nodes)" for name, state, nodes in rows if state == "up"]
    if not up:
        return Verdict.error("Slurm", "it answers, and no partition is up", "ask who runs the cluster")
    return Verdict.ok("Slurm", f"answers; partitions {', '.join(up)}")


def disk(subject: str, folder: Path) -> Verdict:
    """Space and speed where runs are written.

    Args:
        subject: what the folder is for.
        folder: it, or what it will be made in.
    """
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    try:
        free = shutil.disk_usage(above).free / _GB
        speed = _write_speed(above)
    except OSError as error:
        return Verdict.error(
            subject, f"{above}: {(error.strerror or str(error)).lower()}", "free some space, or go elsewhere"
        )
    found = f"{above}: {free:,.1f} GB free, {speed:,.0f} MB/s written"
    if free < _TOO_LITTLE_SPACE_GB:
        return Verdict.error(subject, found, "free some space: a run keeps checkpoints of every worker")
    if free < _LITTLE_SPACE_GB:
        return Verdict.warning(
            subject, found, "little for checkpoints of many workers; checkpoint.keep_last=1 keeps fewer"
        )
    if speed < _SLOW_MB_S:
        return Verdict.warning(subject, found, "checkpoints take long; write them seldom (checkpoint.every_epochs)")
    return Verdict.ok(subject, found)


def _write_speed(folder: Path) -> float:
    """MB (10^6 bytes) in a second, to the disk and not to memory."""
    data = os.urandom(_WRITTEN_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".imgnet_doctor_") as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return len(data) / 1e6 / (time.perf_counter() - start)


def machine(num_workers: int, run_folder: Path, *, with_slurm: bool) -> Iterator[Verdict]:
    """All that concerns the machine."""
    yield versions()
    yield cores(num_workers)
    yield gpus()
    yield dali()
    yield slurm(with_slurm)
    yield disk("run directories", run_folder)
