"""One process or several that work together, each with a device of its own.

A job that has several devices starts itself once more for each, by what torchrun is made of; the processes find one
another through the environment that this sets, so `torchrun -m eigendet train …` does the same by hand. All of them run
the same code: `processes` says which part of the work is a process's own, and the first alone writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from filelock import FileLock, Timeout
from torch import distributed

from eigendet import files, processes
from eigendet.errors import UserError, first_line

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda"]
STOPPED = 128 + signal.SIGTERM  # exit status of a process that was asked to stop and did
PR_SET_PDEATHSIG = 1  # of Linux's prctl
PATIENCE = datetime.timedelta(hours=2)  # longest that processes wait for one another: one may read a large data set


def device_of(name: DeviceName) -> torch.device:
    """Return the device of this process: of several GPUs one that no other process of this user holds, if one is free.

    >>> device_of("cpu")
    device(type='cpu')

    Raises:
        UserError: name is "cuda", and there is no GPU; or torchrun started more processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: 'cuda', but torch finds no GPU here; set device to 'cpu' or 'auto'.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, available = int(os.environ["LOCAL_RANK"]) if _was_launched() else _held(1)[0], torch.cuda.device_count()
    if number >= available:
        raise UserError(
            f"process {number}, counted from 0, has no GPU: torch finds {available} here; start as many processes."
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def hardware_name(device: torch.device) -> str:
    """Return what a device is sold as, or "cpu".

    >>> hardware_name(torch.device("cpu"))
    'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def run(work: Callable[[], object], name: DeviceName, devices: int, nodes: int = 1) -> None:
    """Call `work` in as many processes as there are devices; in this one, if that is one.

    Args:
        work: what each process does.
        name: the setting `device` of the experiment.
        devices: GPUs of the job, over all nodes; 0: what `name` says. With the device "cpu" the number of processes.
        nodes: machines of a Slurm job, each with an equal share of the devices.

    Raises:
        UserError: there are fewer GPUs, or a process died.
    """
    if _was_launched():
        with _joined(name):
            work()
        return
    if devices % nodes or devices < nodes > 1:
        raise UserError(f"--devices is {devices}; {nodes} nodes cannot have equal shares of that.")
    check_devices(name, devices // nodes)
    if "EIGENDET_RENDEZVOUS" not in os.environ and nodes > 1:
        _on_every_node(nodes)
    elif devices > 1:
        _launch(devices // nodes, nodes, name)
    else:
        work()


def check_devices(name: DeviceName, devices: int) -> None:
    """Raise UserError if this machine has fewer GPUs than a job was promised, instead of computing on its CPU."""
    if devices and name != "cpu" and torch.cuda.device_count() < devices:
        raise UserError(
            f"--devices: the job asks for {devices} GPUs, and torch finds {torch.cuda.device_count()} here. "
            "Give it as many as there are (resources: gpu), or set device to 'cpu'."
        )


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Keep SIGTERM and SIGINT from ending the process while open; what is yielded says whether one has come.

    With SIGTERM Slurm, and whoever else takes a machine back, says that the process has some seconds left; with SIGINT
    Ctrl-C does. A second one of SIGINT ends the process at once.

    >>> with stopping() as asked_to_stop:
    ...     asked_to_stop(), signal.raise_signal(signal.SIGTERM), asked_to_stop()
    (False, None, True)
    """
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Let all processes of this job into the block, and no other job meanwhile.

    Args:
        lock: a file, which is removed in the end.
        what: what another job is doing if it is there, for the message.

    Raises:
        UserError: another job is there.
    """
    with files.alone(lock, what) if processes.rank() == 0 else contextlib.nullcontext():
        processes.wait()
        yield


def _was_launched() -> bool:
    return "LOCAL_RANK" in os.environ


@contextlib.contextmanager
def _joined(name: DeviceName) -> Iterator[None]:
    """Work together with the other processes that torchrun started.

    Raises:
        UserError: another process has ended before its work was done.
    """
    _end_with_launcher()
    first = os.environ["RANK"] == "0"
    logging.getLogger().setLevel(logging.INFO if first else logging.WARNING)
    gpus = name != "cpu" and torch.cuda.is_available()
    # Both, since small things are said over the network without waiting for the GPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:  # of whatever waited for another process
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"process {os.environ['RANK']} has lost another one of this job ({first_line(error)}), which says why."
        ) from None
    finally:
        distributed.destroy_process_group()


def _end_with_launcher() -> None:
    """Let the kernel kill this process with the one that started it, instead of leaving it to go on or wait for ever.

    What starts processes ends them itself, unless it is killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get("EIGENDET_LAUNCHER", str(os.getppid())) != str(os.getppid()):
        raise SystemExit(128 + signal.SIGKILL)  # it has ended already


def _launch(processes: int, nodes: int, name: DeviceName) -> None:
    """Start this very command once for each process, and wait for all."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if name != "cpu" and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_visible()[index] for index in _held(processes))
    os.environ["EIGENDET_LAUNCHER"] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns that parameters are used in a step
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    place, _, run_id = os.environ.get("EIGENDET_RENDEZVOUS", f"localhost:0 {uuid.uuid4().hex}").partition(" ")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it is said below in a line
    try:
        with tempfile.TemporaryDirectory(prefix="eigendet-") as logs:  # torch would make one, and leave it
            config = LaunchConfig(
                nodes,
                nodes,
                processes,
                run_id=run_id,
                rdzv_backend="c10d",
                rdzv_endpoint=place,
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(logs),
            )
            elastic_launch(config, sys.executable)("-m", "eigendet", *sys.argv[1:])
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        if any(failure.exitcode == STOPPED for failure in error.failures.values()):
            raise SystemExit(STOPPED) from None
        number, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise UserError(f"process {number} of {processes * nodes} failed, so the others were stopped.") from None
        raise UserError(
            f"process {number} of {processes * nodes} was killed by {signal.Signals(-failure.exitcode).name}, so the "
            "others were stopped. The same command goes on from the last checkpoint."
        ) from None


def _on_every_node(nodes: int) -> None:
    """Start this very command on every node of a Slurm job."""
    if shutil.which("srun") is None:
        raise UserError(
            f"--nodes is {nodes}, and there is no srun here. Outside of Slurm, run `torchrun --nnodes={nodes} "
            "--nproc-per-node=… --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -m eigendet …` on each of them."
        )
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    os.environ["EIGENDET_RENDEZVOUS"] = f"{socket.gethostname()}:{port} {uuid.uuid4().hex}"
    spread = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    status = subprocess.run([*spread, sys.executable, "-m", "eigendet", *sys.argv[1:]]).returncode
    if status:
        raise SystemExit(status)


def _visible() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",") if names else [str(index) for index in range(torch.cuda.device_count())]


@cache
def _held(count: int) -> list[int]:
    """Return numbers of GPUs that are this process's until it ends, by locks on files that the kernel then releases.

    Snakemake counts GPUs but does not say which; Slurm does, and then there is nothing to choose.
    """
    available = torch.cuda.device_count()
    if available <= count:
        return list(range(available))
    free: list[int] = []
    for index, name in enumerate(_visible()[:available]):
        if len(free) < count and _lock(name):
            free.append(index)
    if len(free) < count:
        logger.info("other jobs use the GPUs of this machine; sharing")
        free += [index for index in range(available) if index not in free][: count - len(free)]
    return free


LOCKS: list[FileLock] = []  # held until the process ends, even by force: then the kernel releases them


def _lock(name: str) -> bool:
    """Take the lock of a GPU, and return whether it was free."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"eigendet-{os.getuid()}-gpu-{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    LOCKS.append(lock)
    return True
