"""A real Slurm on this machine: munge, slurmctld and two logical nodes with made-up GPUs, on loopback only.

Needs root and the Debian packages slurmctld, slurmd, slurm-client, munge; `.ci/run` installs them and sets
REQUIRE_SLURM=1, which turns the skip into a failure. Everything lives in one folder, and every daemon is
ended by its own process id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

Answer = TypeVar("Answer")

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
SEARCHED = os.environ["PATH"] + ":/usr/sbin:/sbin"
FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
NODES = ("n1", "n2")
START_S = 60

CONFIGURATION = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its credential has expired, 120 s by default
AuthInfo=socket={root}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ReturnToService=2
KillWait=5
MinJobAge=3600
# job ids differ from those of any other cluster of this host, whose port it would be
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=60 DefaultTime=10 State=UP
"""


class Cluster:
    """The cluster as tests see it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        self.environment |= {"SLURM_CONF": str(root / "slurm.conf"), "OMP_NUM_THREADS": "1", "PATH": SEARCHED}

    def run(self, *command: object, check: bool = True) -> str:
        """Run a command of Slurm and return what it printed."""
        words = [str(word) for word in command]
        answer = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, input="", timeout=60
        )
        assert not check or answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
        return answer.stdout.strip()

    def states(self, job: str) -> dict[str, str]:
        """Return the state of a job, of an array that of each task by its index."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i %T").splitlines()
        return {line.split()[0].partition("_")[2]: line.split()[1] for line in lines}

    def until(self, asked: Callable[[], Answer], timeout_s: float, what: str) -> Answer:
        """Wait until `asked` returns something true, and return it."""
        deadline = time.monotonic() + timeout_s
        while not (answer := asked()):
            assert time.monotonic() < deadline, (
                f"{what}: not within {timeout_s} s\n{self.run('squeue', '-t', 'all')}"
            )
            time.sleep(0.2)
        return answer

    def until_ended(self, job: str, timeout_s: float = 90) -> dict[str, str]:
        """Wait until no task of a job runs or waits, and return their states."""
        self.until(lambda: not self.run("squeue", "-h", "-j", job), timeout_s, f"end of job {job}")
        return self.states(job)


@pytest.fixture(scope="session", name="cluster_of_session")
def _cluster_of_session() -> Iterator[Cluster]:
    missing = [name for name in NEEDED if shutil.which(name, path=SEARCHED) is None]
    if missing or os.geteuid() != 0:
        reason = (
            f"a real Slurm needs root, and Debian's slurmctld slurmd slurm-client munge (missing: {missing})"
        )
        (pytest.fail if os.environ.get("REQUIRE_SLURM") else pytest.skip)(reason)
    with Path("/tmp/eomt-anomaly-slurm-test.lock").open("w") as lock:  # one cluster at a time on this host
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: a socket's path has 107 letters
        cluster = Cluster(root)
        try:
            _start(cluster)
            yield cluster
        finally:
            _stop(cluster)
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(name="cluster")
def _cluster(cluster_of_session: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, and a process whose own commands of Slurm reach it."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "OMP_NUM_THREADS", "PATH"):
        monkeypatch.setenv(name, cluster_of_session.environment[name])
    return cluster_of_session


def _start(cluster: Cluster) -> None:
    root = cluster.root
    root.chmod(0o755)
    ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(host=host, port=ports[0], root=root, first_job=ports[0] * 1000)
    gres = []
    for folder in ("munge", "state", "dev"):
        (root / folder).mkdir(mode=0o755)
    for name in ("nvidia0", "nvidia1"):  # a made-up GPU must be a character device: a second /dev/null
        os.mknod(root / "dev" / name, 0o666 | 0o020000, os.makedev(1, 3))
    for node, port in zip(NODES, ports[1:], strict=True):
        text += f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} "
        text += "CPUs=8 RealMemory=8000 Gres=gpu:2 State=UNKNOWN\n"
        gres.append(f"NodeName={node} Name=gpu File={root}/dev/nvidia[0-1]\n")
    (root / "slurm.conf").write_text(text)
    (root / "gres.conf").write_text("".join(gres))
    (root / "hosts").write_text(Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {n}\n" for n in NODES))
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    options = [f"--key-file={key}", f"--socket={root}/munge/socket", f"--pid-file={root}/munged.pid"]
    options += [f"--seed-file={root}/munge/seed", f"--log-file={root}/munge/log"]
    cluster.run("munged", "--force", "--num-threads=2", *options)
    cluster.run("slurmctld", "-f", root / "slurm.conf")
    for node in NODES:  # each with a host name and an /etc/hosts of its own, which its job steps see too
        inner = (
            'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && exec slurmd -f "$2/slurm.conf" -N "$1"'
        )
        cluster.run("unshare", "--uts", "--mount", "sh", "-c", inner, "sh", node, root)
    ask = ("sinfo", "-h", "-N", "-t", "idle", "-o", "%N")
    all_idle = lambda: set(cluster.run(*ask, check=False).split()) == set(NODES)  # noqa: E731
    cluster.until(all_idle, START_S, "both nodes idle")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _stop(cluster: Cluster) -> None:
    jobs = sorted(set(cluster.run("squeue", "-h", "-o", "%A", check=False).split()))
    if jobs:
        cluster.run("scancel", "--hurry", *jobs, check=False)
        deadline = time.monotonic() + 20
        while cluster.run("squeue", "-h", check=False) and time.monotonic() < deadline:
            time.sleep(0.2)
    _kill_leftovers(cluster)
    for pattern in ("slurmd.*.pid", "slurmctld.pid", "munged.pid"):
        for path in cluster.root.glob(pattern):
            _end(path)  # munged last: the others speak through it


def _kill_leftovers(cluster: Cluster) -> None:
    """End what a job left behind, known by its environment."""
    for process in psutil.process_iter(["environ"]):
        variables = process.info["environ"] or {}
        if variables.get("SLURM_CONF") == f"{cluster.root}/slurm.conf" and "SLURM_JOB_ID" in variables:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _end(pid_file: Path) -> None:
    with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
        daemon = psutil.Process(int(pid_file.read_text()))
        daemon.terminate()
        for _ in range(200):
            if daemon.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.05)
        daemon.kill()
