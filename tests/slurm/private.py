"""A whole Slurm of one's own: munged, slurmctld and four slurmd as the current user, in one folder, on this machine.

``python -m tests.slurm.private`` starts one, prints how to use it, and ends it on Ctrl-C.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
SBIN = ("/usr/sbin", "/usr/local/sbin")
SLURMD_TIMEOUT_S = 10
CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobSubmitPlugins=lua
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
KillWait=10
MinJobAge=300
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=0,bf_interval=2
GresTypes=gpu
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{slurmd_ports}] {hardware}
PartitionName=gpu Nodes=n[1-4] Default=YES MaxTime=UNLIMITED OverSubscribe=NO State=UP
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=n[1-4] MaxTime=UNLIMITED State=UP PriorityTier=10
PartitionName=accounted Nodes=n[1-4] MaxTime=UNLIMITED State=UP
"""
HARDWARE = "Gres=gpu:A40:4,gpu:A100:4,gpu:T4:8 CPUs=64 CoresPerSocket=64 RealMemory=500000 State=UNKNOWN"
# A card needs a device file of its own, by name; what is behind it is of no concern to the tests.
GRES = """\
Name=gpu Type=A40 File={folder}/card/a40-[0-3]
Name=gpu Type=A100 File={folder}/card/a100-[0-3]
Name=gpu Type=T4 File={folder}/card/t4-[0-7]
"""
# What sites do that bill: no job without an account, in one partition.
JOB_SUBMIT = """\
function slurm_job_submit(job, partitions, uid)
  if job.partition == "accounted" and job.account == nil then
    slurm.log_user("You have to specify an account in partition accounted")
    return 2045
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end
"""


def missing_programs() -> list[str]:
    """Programs of the Debian packages slurm-wlm and munge that are not installed."""
    return [name for name in PROGRAMS if find(name) is None]


def find(name: str) -> str | None:
    """The path of a program; daemons lie where users do not look."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))


class PrivateSlurm:
    """Daemons with their own key, ports and folder. Everything it starts has ended when the ``with`` block is left.

    Args:
        cluster: what it calls itself.
    """

    def __init__(self, cluster: str = "private") -> None:
        self.cluster = cluster
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "PrivateSlurm":
        try:
            self._write_files()
            self._start_munged()
            self._start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self.wait_for_nodes("idle")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to this Slurm."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return outside | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """What a Slurm command answers."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._start(node, "-D", "-N", node, program="slurmd")

    def kill_node(self, node: str) -> None:
        """What a power cut does to a node: its slurmd and its jobs are gone without a word."""
        self.kill_daemon(node)
        self.signal_jobs(node, signal.SIGKILL)

    def kill_daemon(self, node: str) -> None:
        """End a node's slurmd alone. Its jobs run on until Slurm tells the next slurmd otherwise."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def restart_controller(self, away_s: float) -> None:
        """End slurmctld, which saves its state, and start it again after so many seconds."""
        daemon = self.daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait()
        time.sleep(away_s)
        self._start("slurmctld", "-D")

    def takes_jobs(self, gres: str) -> bool:
        """Whether a job with these would be queued; not so while no node has told a new controller what it has."""
        try:
            self.ask("sbatch", "--test-only", f"--gres={gres}", "--wrap", "true")
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True

    def signal_jobs(self, node: str, number: signal.Signals) -> None:
        """Send a signal to all that jobs run on a node, their keepers (slurmstepd) first, so that none tells of it."""
        mark = f"SLURMD_NODENAME={node}".encode()
        running = [pid for pid in self.processes() if mark in environment_of(pid)]
        keepers = {_parent(pid) for pid in running} - {0, 1, *running, os.getpid()}
        for pid in [*keepers, *running]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def first_process(self, run_dir: Path) -> int:
        """The first process of a run's job."""
        words = [b"imgnet.launch.slurm.job", str(run_dir).encode()]
        found = [pid for pid in self.processes() if set(words) <= set(command_of(pid)) and b"srun" in command_of(pid)]
        (pid,) = [pid for pid in found if _parent(pid) not in found]
        return pid

    def wait_for_nodes(self, state: str, timeout_s: float = 30) -> None:
        """Wait until all nodes are in ``state``."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                if set(self.ask("sinfo", "-h", "-N", "-p", "gpu", "-o", "%t").split()) == {state}:
                    return
            except RuntimeError:
                pass  # slurmctld is not there yet
            time.sleep(0.2)
        logs = "".join(
            path.read_text()[-2000:] for ending in ("log", "out") for path in self.folder.glob(f"*.{ending}")
        )
        raise TimeoutError(f"nodes are not {state} after {timeout_s} s\n{logs}")

    def stop(self) -> None:
        """End every job, every daemon and whatever they started, and remove the folder."""
        for process in reversed(list(self.daemons.values())):
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """Jobs and their keepers: every process whose environment names this Slurm, but for this one's ancestors."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        everyone = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [pid for pid in everyone if pid != os.getpid() and mark in environment_of(pid)]

    def _write_files(self) -> None:
        for name in ("state", "spool", "card"):
            (self.folder / name).mkdir()
        for kind, count in (("a40", 4), ("a100", 4), ("t4", 8)):
            for number in range(count):
                (self.folder / "card" / f"{kind}-{number}").symlink_to("/dev/null")
        ctld, *slurmd = free_ports(1 + len(NODES))
        values = {
            "cluster": self.cluster,
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "user": _user(),
            "ctld_port": ctld,
            "slurmd_ports": ",".join(map(str, slurmd)),
            "slurmd_timeout": SLURMD_TIMEOUT_S,
            "hardware": HARDWARE,
        }
        (self.folder / "slurm.conf").write_text(CONF.format(**values))
        (self.folder / "gres.conf").write_text(GRES.format(**values))
        (self.folder / "job_submit.lua").write_text(JOB_SUBMIT)
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)

    def _start_munged(self) -> None:
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{ending}" for option, ending in files.items()]
        self._start("munged", "--foreground", "--force", *options)
        end = time.monotonic() + 10
        while not (self.folder / "munge.socket").exists():
            if time.monotonic() > end:
                raise TimeoutError((self.folder / "munged.out").read_text())
            time.sleep(0.05)

    def _start(self, name: str, *arguments: str, program: str | None = None) -> None:
        path = find(program or name)
        assert path is not None
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [path, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at present."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment_of(pid: int) -> list[bytes]:
    """The variables of a process; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def command_of(pid: int) -> list[bytes]:
    """What a process was started with; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    """The parent of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


if __name__ == "__main__":
    with PrivateSlurm() as slurm:
        print(f"export SLURM_CONF={slurm.folder}/slurm.conf", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with suppress(KeyboardInterrupt):
            signal.pause()
