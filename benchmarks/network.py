"""Seconds per step on slow links: AllReduce beside decentralized topologies, on four hosts of one machine.

    sudo python -m benchmarks.network            # about 30 minutes; --help for less

Needs root and iproute2. Four hosts are network namespaces behind a switch, a fifth one; every link is limited in both
directions. Nothing outside these namespaces is changed. They are removed at the end, or, where this command was killed,
when it starts the next time.

What is real: the strategies, their messages (gloo over TCP), optimizer and averaging, with the parameters of ResNet-50
in their true sizes and order. What is not: the computation. Each layer pauses for its share of a stated time, forward
and backward, as a host does whose accelerator computes; four real ones would fight for the cores of this machine.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

HOSTS = 4
METHODS = ("allreduce", "complete", "ring", "exp", "alternating-exp-ring")
WAYS = {
    "no-averages": ("topology=complete", "averaging=local", "averaging.every=1000000"),
    "powersgd-4": ("topology=allreduce", "topology.compression=powersgd", "topology.powersgd_start_step=2"),
    "local-8": ("topology=complete", "averaging=local", "averaging.every=8"),
    "local-8-overlapped": ("topology=complete", "averaging=local", "averaging.every=8", "averaging.overlap=true"),
    "local-8-fragments": (
        "topology=complete", "averaging=streaming_diloco", "averaging.every=8", "averaging.delay_steps=1",
        "averaging.lr=1", "averaging.momentum=0", "averaging.nesterov=false", "averaging.merge=delta",
    ),
    "diloco-50": ("topology=complete", "averaging=diloco", "averaging.every=50"),
    "streaming-diloco-40": ("topology=complete", "averaging=streaming_diloco", "averaging.every=40"),
}  # fmt: skip
"""Methods that are more than a topology, each as one would ask for it; not measured unless named. The first is pure
computation: passes and updates of workers that send nothing."""
WIRES = ("fp32", "bf16")
WORDS = ("method", "wire", "slow worker")
TIMEOUT_S = 1200
CONGESTION_CONTROLS = ("cubic", "reno")
"""Of the hosts' TCP: the first that this machine lets us choose, so that figures of different machines compare.
Linux's own default is cubic."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Case:
    """One measurement: a method, its messages, and whether one worker in each step takes twice as long to compute."""

    method: str
    wire: str
    straggler: bool


@dataclass(frozen=True)
class Result:
    """What came out; times in seconds per step, means over workers."""

    case: Case
    rate_mbit: int
    step_s: float
    least_s: float
    most_s: float
    """Of thirds of the steps: how far ``step_s`` can be trusted."""
    wait_s: float
    """Of the averaging; 0 for DDP, which does not say."""
    sent_mb: float
    """10^6 bytes that a worker sent in a step, by the counter of its network interface."""
    limit_s: float
    """max(compute, bytes / bandwidth), with the bytes of the values alone."""


class Network:
    """Hosts and their switch: namespaces named after this process."""

    def __init__(self) -> None:
        self.hosts = [f"imgnet-{os.getpid()}-{number}" for number in range(HOSTS)]
        self.switch = f"imgnet-{os.getpid()}-switch"
        self.congestion_control = ""

    def __enter__(self) -> "Network":
        """Make the namespaces and their links."""
        _remove_orphans()
        try:
            for name in [*self.hosts, self.switch]:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "bridge", "up")
            for number, host in enumerate(self.hosts):
                self._connect(host, number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self, host: str, number: int) -> None:
        port = f"port{number}"
        _ip("link", "add", "eth", "netns", host, "type", "veth", "peer", "name", port, "netns", self.switch)
        _ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", host, "addr", "add", f"{address(number)}/24", "dev", "eth")
        _ip("-n", host, "link", "set", "eth", "up")
        self.congestion_control = _choose_congestion_control(host)

    def limit(self, rate_mbit: int) -> None:
        """Let each host send, and receive, at this rate at most."""
        # 2 ms, and more than the kernel's largest segment (64 KiB and headers): the limiter cuts up every segment
        # that is larger than its burst, and cores that do this for eight links have no time left for the workers.
        burst = max(100_000, rate_mbit * 1_000_000 // 8 // 500)
        shape = ["root", "tbf", "rate", f"{rate_mbit}mbit", "burst", str(burst), "latency", "100ms"]
        for number, host in enumerate(self.hosts):
            _tc(host, "qdisc", "replace", "dev", "eth", *shape)
            _tc(self.switch, "qdisc", "replace", "dev", f"port{number}", *shape)

    def __exit__(self, *_: object) -> None:
        """Remove the namespaces, and with them all that is in them."""
        for name in [*self.hosts, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _remove_orphans() -> None:
    """Namespaces of a benchmark that was killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        match = re.match(r"imgnet-(\d+)-", line)
        if match and not Path(f"/proc/{match[1]}").exists():
            _ip("netns", "del", line.split()[0])


def _choose_congestion_control(host: str) -> str:
    key = "net.ipv4.tcp_congestion_control"
    for name in CONGESTION_CONTROLS:
        command = ["ip", "netns", "exec", host, "sysctl", "-qw", f"{key}={name}"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return name
    return Path(f"/proc/sys/{key.replace('.', '/')}").read_text(encoding="ascii").strip()


def address(host: int) -> str:
    """Of a host, in its namespaces only."""
    return f"10.77.0.{host + 1}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _tc(namespace: str, *arguments: str) -> None:
    subprocess.run(["tc", "-n", namespace, *arguments], check=True)


@app.command()
def main(
    rates: Annotated[list[int], typer.Option("--rate", help="Mbit/s of each link.")] = [1000, 400, 200],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Measured steps of each case, after two that are not.")] = 6,
    compute_s: Annotated[float, typer.Option(help="Time of a forward and a backward pass.")] = 2.3,
    bucket_mb: Annotated[int | None, typer.Option(help="Of all methods; as in a run where it is not given.")] = None,
    methods: Annotated[str, typer.Option(help=f"Which, with commas; beside those also {', '.join(WAYS)}.")] = ",".join(
        METHODS
    ),
    out: Annotated[Path | None, typer.Option(help="Results as JSON lines.")] = None,
) -> None:
    """Measure every method at every rate, and print the tables."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # the network is removed then, too
    if os.geteuid() != 0:
        raise typer.BadParameter("network namespaces need root")
    cases = cases_of(methods.split(","))
    if unknown := {case.method for case in cases} - {*METHODS, *WAYS}:
        raise typer.BadParameter(f"--methods {', '.join(sorted(unknown))}: known are {', '.join((*METHODS, *WAYS))}")
    results: list[Result] = []
    with Network() as network:
        for rate in rates:
            network.limit(rate)
            task = {"rate_mbit": rate, "steps": steps, "compute_s": compute_s, "bucket_mb": bucket_mb}
            results += [result_of(row) for row in run_on_hosts(network, cases, task)]
            title = f"{rate} Mbit/s, {compute_s} s of computation, TCP {network.congestion_control}"
            _print_table([result for result in results if result.rate_mbit == rate], title)
    if out is not None:
        out.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results), encoding="utf-8")


def cases_of(methods: Sequence[str]) -> list[Case]:
    """Each method with each kind of message that it has, then each that averages in every step with a slow worker."""
    plain = [Case(method, wire, straggler=False) for method, wire in product(methods, WIRES)]
    plain = [case for case in plain if case.wire == "fp32" or case.method not in ("no-averages", "powersgd-4")]
    return plain + [Case(method, "fp32", straggler=True) for method in methods if method not in WAYS]


def overrides_of(case: Case) -> list[str]:
    """What one would type for a run of this kind."""
    of_method = WAYS.get(case.method, (f"topology={case.method}",))
    if case.wire == "fp32":
        return [*of_method]
    is_allreduce = "topology=allreduce" in of_method
    return [*of_method, f"topology.{'compression' if is_allreduce else 'wire_dtype'}={case.wire}"]


def run_on_hosts(network: Network, cases: Sequence[Case], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the cases one after the other, with one worker on each host. Returns what rank 0 printed, line by line."""
    task = json.dumps({"cases": [asdict(case) for case in cases]} | settings)
    workers: list[subprocess.Popen[str]] = []
    try:
        for rank, host in enumerate(network.hosts):
            worker = [sys.executable, "-m", "benchmarks.network_worker", str(rank), task]
            # The hosts have no names; c10d would warn of it four times a rate.
            environment = os.environ | {
                "GLOO_SOCKET_IFNAME": "eth", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"
            }  # fmt: skip
            command = ["ip", "netns", "exec", host, *worker]
            workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        printed, _ = workers[0].communicate(timeout=TIMEOUT_S)
        if any(worker.wait(timeout=60) for worker in workers):
            raise RuntimeError("a worker failed; its traceback is above")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [json.loads(line) for line in printed.splitlines()]


def result_of(row: dict[str, Any]) -> Result:
    """A line of a worker."""
    return Result(case=Case(**row["case"]), **{key: value for key, value in row.items() if key != "case"})


def _print_table(results: Sequence[Result], title: str) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="")
    for column in (*WORDS, "s/step", "of thirds", "waits s", "sent MB", "limit s", "/ limit", "/ pure", "DDP / it"):
        table.add_column(column, justify="left" if column in WORDS else "right")
    for result in results:
        case = result.case
        ddp = _seconds_of(Case("allreduce", "fp32", case.straggler), results)
        pure = _seconds_of(Case("no-averages", "fp32", case.straggler), results)
        table.add_row(
            "DDP" if case.method == "allreduce" else case.method,
            case.wire,
            "yes" if case.straggler else "",
            f"{result.step_s:.2f}",
            "-" if result.least_s == result.most_s else f"{result.least_s:.2f} to {result.most_s:.2f}",
            f"{result.wait_s:.2f}",
            f"{result.sent_mb:.0f}",
            f"{result.limit_s:.2f}",
            f"{result.step_s / result.limit_s:.2f}",
            f"{result.step_s / pure:.2f}" if pure else "-",
            f"{ddp / result.step_s:.2f}" if ddp else "-",
        )
    Console(width=140).print(table)


def _seconds_of(case: Case, results: Sequence[Result]) -> float | None:
    return next((result.step_s for result in results if result.case == case), None)


if __name__ == "__main__":
    app()
