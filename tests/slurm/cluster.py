"""A real Slurm of several nodes on this one machine: its daemons as children of ours, nothing outside one folder.

    python -m tests.slurm.cluster install      # Debian's packages, as root
    python -m tests.slurm.cluster              # a cluster to try things on, until Ctrl-C

There is neither systemd nor cgroups here, so processes are told apart by their parents (proctrack/linuxproc), and
every node is a slurmd with a port of its own. What the tests need of a site is there: a time limit that strikes,
jobs that go back to the queue, steps over several nodes by PMIx and PMI-2. It was written for Slurm 22.05 and newer.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.launch import remove_segments, segments, send

PACKAGES = ("slurm-wlm", "slurm-wlm-basic-plugins", "slurm-client", "munge", "libpmix2", "libpmi2-0")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
# As root a system's programs need not be on PATH.
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that was requeued starts again only when its credential has run out.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,bf_interval=2,batch_sched_delay=0
GresTypes=gpu
MpiDefault=none
KillWait=15
MinJobAge=900
ReturnToService=2
SlurmdParameters=config_overrides
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
"""


def missing() -> list[str]:
    """What a cluster would need and is not there, in words for people."""
    lacking = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if os.geteuid() != 0:
        lacking.append("root (a daemon of Slurm starts other users' jobs)")
    return lacking


def install() -> None:
    """Install what is missing with Debian's tools; leaves with a sentence where that cannot be done."""
    if not (lacking := missing()):
        return
    if os.geteuid() != 0 or shutil.which("apt-get", path=PATH) is None:
        raise SystemExit(f"no Slurm on this machine, and none can be installed; missing: {', '.join(lacking)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        result = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, timeout=600)
        if result.returncode:
            raise SystemExit(f"Slurm could not be installed: apt-get {command[0]}: {result.stderr[-500:]}")
    if lacking := missing():
        raise SystemExit(f"no Slurm on this machine, even with its packages; missing: {', '.join(lacking)}")


class Cluster:
    """Nodes n1, n2, ... with `cpus` cores and two pretended GPUs each, from `with` to its end."""

    def __init__(self, nodes: int = 4, cpus: int = 2) -> None:
        self.nodes, self.cpus = nodes, cpus
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has at most 107 bytes
        # Whatever environment is active here, jobs take that of the folder which they are submitted from.
        self.environment = {**os.environ, "VIRTUAL_ENV": "", "PATH": PATH, "SLURM_CONF": f"{self.folder}/slurm.conf"}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._segments = segments()  # shared memory that is none of these jobs'

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start_munge()
            self._daemon("slurmctld", "-D", "-c")
            for node in range(1, self.nodes + 1):
                self._daemon("slurmd", "-D", "-N", f"n{node}")
            self.wait_for(f"{self.nodes} idle nodes", lambda: self._idle() == self.nodes)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if (self.folder / "slurmctld.pid").exists():
            self.run("scancel", "--full", f"--user={os.geteuid()}", check=False)
            time.sleep(0.5)
        for daemon in reversed(self._daemons):
            _end(daemon)
        send(f"SLURM_CONF={self.folder}/", signal.SIGKILL)  # what is left of steps: their keepers are nobody's children
        remove_segments(self._segments)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *words: str, check: bool = True, cwd: Path | None = None, **settings: str) -> str:
        """What a command of Slurm prints, with these environment variables; that of one that fails is in the error."""
        result = subprocess.run(
            words,
            env={**self.environment, **settings},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(words)}: status {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout.strip()

    def submit(self, folder: Path, script: str, *words: str, options: Sequence[str] = (), **settings: str) -> int:
        """Submit a batch script of jobs/ from this folder, with options of Slurm and words of its own; its number."""
        command = ["sbatch", "--parsable", f"--chdir={folder}", *options, f"jobs/{script}", *words]
        return int(self.run(*command, cwd=folder, **settings))

    def job(self, number: int) -> dict[str, str]:
        """What Slurm knows of a job: JobState, ExitCode (status:signal), Restarts, and so on."""
        shown = self.run("scontrol", "--oneliner", "show", "job", str(number))
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def ended(self, number: int, deadline: float = 90) -> dict[str, str]:
        """Wait for a job that is over for good, and tell what `job` tells. Raises AssertionError past the deadline."""
        self.wait_for(f"end of job {number}", lambda: self.job(number)["JobState"] in OVER, deadline)
        return self.job(number)

    def wait_for(self, what: str, ready: Callable[[], bool], deadline: float = 30) -> None:
        """Wait until it is ready; past so many seconds the daemons' last lines are in the AssertionError."""
        end = time.monotonic() + deadline
        while not ready():
            if time.monotonic() > end:
                logs = "\n".join(p.read_text("utf-8", "replace")[-2000:] for p in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"no {what} after {deadline:.0f} s\n{logs}")
            time.sleep(0.1)

    def _configure(self) -> None:
        host, user = socket.gethostname().split(".")[0], subprocess.check_output(["id", "-un"], text=True).strip()
        lines = CONFIGURATION.format(folder=self.folder, host=host, port=_free_port(), user=user).splitlines()
        ports = {_free_port() for _ in range(4 * self.nodes)}
        for node, port in zip(range(1, self.nodes + 1), sorted(ports), strict=False):
            for name in (f"spool-n{node}", f"tmp-n{node}"):
                (self.folder / name).mkdir()
            lines.insert(-1, f"NodeName=n{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
                             "Gres=gpu:2 State=UNKNOWN")  # fmt: skip
        (self.folder / "state").mkdir()
        for gpu in range(2):  # a device file that is /dev/null; Slurm then sets CUDA_VISIBLE_DEVICES as it would
            os.mknod(self.folder / f"nvidia{gpu}", 0o20666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"NodeName=n[1-{self.nodes}] Name=gpu File={self.folder}/nvidia[0-1]\n")
        # Slurm 22.05 knows no CgroupPlugin=disabled yet, and starts with this one where there are no cgroups.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        _link_pmix()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        names = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        files = [f"--{flag}={self.folder}/munge.{ending}" for flag, ending in names.items()]
        self._daemon("munged", "--foreground", "--force", *files)
        self.wait_for("the socket of munged", (self.folder / "munge.socket").exists)

    def _daemon(self, *words: str) -> None:
        with open(self.folder / f"{words[0]}.out", "ab") as out:
            self._daemons.append(subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            ))  # fmt: skip

    def _idle(self) -> int:
        return self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).count("n")


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait(5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _link_pmix() -> None:
    """Slurm's plugin opens libpmix.so, a name that only Debian's package for developers brings."""
    for library in Path("/usr/lib").glob("*/pmix2/lib/libpmix.so.2"):
        if not (link := library.with_name("libpmix.so")).exists():
            link.symlink_to(library.name)


def main(words: list[str]) -> None:
    if words == ["install"]:
        install()
        return
    if lacking := missing():
        raise SystemExit(f"no Slurm on this machine, as these are missing: {', '.join(lacking)}")
    with Cluster() as cluster:
        print(cluster.run("sinfo", "-N", "-l"))
        print(f"export SLURM_CONF={cluster.folder}/slurm.conf    # Ctrl-C ends the cluster")
        signal.pause()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
