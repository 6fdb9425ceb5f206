"""Two workers that average, as the workers of a run do: ``python -m imgnet.doctor.averaging``."""

import subprocess
import sys
import tempfile
from pathlib import Path

from imgnet.doctor.verdict import Verdict
from imgnet.runtime import Placement, joined, prefer_loopback, visible_gpus

_PATIENCE_S = 240
_VALUES = (1.25, 2.5)


def averaging() -> Verdict:
    """Whether two workers come together, exchange tensors and agree: with NCCL on two GPUs, else with gloo."""
    backend = "NCCL" if visible_gpus() >= len(_VALUES) else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        workers = [_start(rank, folder, backend) for rank in range(len(_VALUES))]
        try:
            said = [worker.communicate(timeout=_PATIENCE_S)[0] for worker in workers]
        except subprocess.TimeoutExpired:
            return Verdict.error(backend, f"two workers did not come together in {_PATIENCE_S} s", _remedy(backend))
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    if any(worker.returncode for worker in workers):
        last_lines = [text.splitlines()[-1] for text in said if text.strip()] or ["no word was left"]
        return Verdict.error(backend, f"two workers did not average: {last_lines[0]}", _remedy(backend))
    return Verdict.ok(backend, f"two workers averaged; {said[0].strip()}")


def _start(rank: int, folder: str, backend: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "imgnet.doctor.averaging", str(rank), folder, backend]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _remedy(backend: str) -> str:
    if backend == "NCCL":
        return "NCCL_DEBUG=INFO says more; cluster.accelerator=cpu does without GPUs"
    return "a firewall, or an interface that is down; GLOO_SOCKET_IFNAME names another one"


def _average(rank: int, folder: Path, use_gpu: bool) -> str:
    import torch
    import torch.distributed as dist

    prefer_loopback()
    size = len(_VALUES)
    with joined(Placement(rank, size, rank, size), use_gpu, folder / "store", timeout_min=_PATIENCE_S / 60) as runtime:
        value = torch.tensor([_VALUES[rank]], device=runtime.device)
        dist.all_reduce(value)
        mean = float(value) / size
    if mean != sum(_VALUES) / size:
        raise RuntimeError(f"the mean of {_VALUES} is not {mean}")
    return f"torch {torch.__version__}, {'CUDA ' + str(torch.version.cuda) if use_gpu else 'CPU'}"


if __name__ == "__main__":
    print(_average(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "NCCL"))
