"""A real Slurm on this machine for a test: one node, stand-in GPUs, daemons from Debian's packages, nothing installed.

The packages are fetched with apt into `tests/.slurm` and unpacked there. Controller, node and authentication run as
this user on the loopback address, with state, keys and sockets in a temporary folder, and end with the test.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".slurm"
ROOT = CACHE / "root"
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DAEMONS = ("slurmctld", "slurmd", "slurmstepd")
GPUS = ("/dev/null", "/dev/zero")  # Slurm names GPUs to a job only where their files are devices


@cache
def unavailable() -> str:
    """Why there can be no Slurm here; empty if there can be."""
    if missing := [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]:
        return f"Slurm cannot be fetched: no {missing[0]} on this machine"
    if ROOT.exists():
        return ""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        error = _fetch(Path(folder))
        if not error:
            shutil.move(Path(folder) / "root", ROOT)
    return f"Slurm cannot be fetched: {error}" if error else ""


def _fetch(folder: Path) -> str:
    """Unpack the packages, and what they need and this machine has not, into `folder`/root; what went wrong, if so."""
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "cache/archives/partial").mkdir(parents=True)
    apt = ["apt-get", "--quiet=2", "--option=APT::Sandbox::User=", "--option=Debug::NoLocking=1"]
    apt += [f"--option=Dir::State::lists={folder}/lists", f"--option=Dir::Cache={folder}/cache"]
    install = ["install", "--download-only", "--no-install-recommends", *PACKAGES]
    for line in (["update"], install):
        found = subprocess.run([*apt, *line], capture_output=True, text=True, check=False)
        if found.returncode:
            return (found.stderr.strip() or "apt-get failed").splitlines()[-1]
    for package in (folder / "cache/archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    for daemon in DAEMONS:  # they look at the name that they were called by
        (folder / f"root/usr/sbin/{daemon}").symlink_to(f"{daemon}-wlm")
        if not (folder / f"root/usr/sbin/{daemon}").exists():
            return f"the packages hold no {daemon}-wlm"
    return ""


@contextlib.contextmanager
def cluster(cpus: int = 2, memory: int = 64000) -> Iterator[dict[str, str]]:
    """A running cluster of one node with two GPUs; gives the environment to use it in.

    Args:
        memory: MB that the node is said to have, whatever it has, so that jobs that ask for much are run.

    Raises:
        RuntimeError: the node does not come up; with the daemons' logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has at most 108 characters
    environment = _commands(folder)
    _configure(folder, cpus, memory)
    daemons = []
    try:
        for line in _daemons(folder):
            with (folder / f"{line[0]}.out").open("w") as output:
                daemons.append(subprocess.Popen(line, env=environment, stdout=output, stderr=output))
            if line[0] == "munged":
                _until((folder / "munge.socket").exists, folder)
        _until(lambda: _answer(environment, "sinfo", "--noheader", "--format=%T").strip() == "idle", folder)
        yield environment
        _answer(environment, "scancel", f"--user={getpass.getuser()}")
        _until(lambda: not _answer(environment, "squeue", "--noheader").strip(), folder)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _commands(folder: Path) -> dict[str, str]:
    """The environment with commands of Slurm in front that know this cluster by themselves.

    Not variables: Snakemake takes SLURM_CONF from a job, and the libraries of Slurm are not for what a job runs.
    """
    libraries = ":".join(map(str, [next(ROOT.glob("usr/lib/*/slurm-wlm")), next(ROOT.glob("usr/lib/*-linux-gnu"))]))
    own = f"export SLURM_CONF={folder}/slurm.conf LD_LIBRARY_PATH={libraries}"
    (folder / "bin").mkdir()
    for command in ROOT.glob("usr/*bin/*"):
        script = folder / "bin" / command.name
        script.write_text(f'#!/bin/sh\n{own}\nexec {command} "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}


def _configure(folder: Path, cpus: int, memory: int) -> None:
    host = socket.gethostname().split(".")[0]
    with contextlib.ExitStack() as sockets:
        bound = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        controller, node = (server.getsockname()[1] for server in bound)
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": controller,
        "SlurmdPort": node,
        "SlurmUser": getpass.getuser(),
        "SlurmdUser": getpass.getuser(),
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "PluginDir": next(ROOT.glob("usr/lib/*/slurm-wlm")),
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdLogFile": f"{folder}/slurmd.log",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "ReturnToService": 2,
        "MinJobAge": 300,
        "KillWait": 30,
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,sched_min_interval=0",
        "GresTypes": "gpu",
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:h100:{len(GPUS)}",
        "PartitionName": f"test Nodes={host} Default=YES MaxTime=INFINITE State=UP",
    }
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    devices = "".join(f"Name=gpu Type=h100 Flags=nvidia_gpu_env File={file}\n" for file in GPUS)
    (folder / "gres.conf").write_text(devices)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))


def _daemons(folder: Path) -> list[list[str]]:
    """Command lines in the order in which they must start; all stay in the foreground."""
    files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    return [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-d", f"{ROOT}/usr/sbin/slurmstepd"],
    ]


def _answer(environment: dict[str, str], *line: str) -> str:
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False).stdout


def _until(reached: Callable[[], bool], folder: Path, seconds: float = 60) -> None:
    """Wait until a condition holds; else raise with what the daemons have said."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            said = "\n".join(
                f"{log}:\n{log.read_text()[-2000:]}" for log in [*folder.glob("*.log"), *folder.glob("*.out")]
            )
            raise RuntimeError(f"Slurm did not come up, or did not end its jobs\n{said}")
        time.sleep(0.2)
