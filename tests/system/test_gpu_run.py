"""`tests/gpu/run.py` keeps what it shows however a check ends, says in a line what it lacks, and needs no more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

import eigendet
from tests.conftest import ROOT
from tests.gpu import plan, record
from tests.gpu.plan import CHECKS
from tests.gpu.standin import lazy_loader as standin
from tests.pretended import BODIES, TORCH, Checks, finished, names, results, started

RUN = [str(ROOT / "tests/gpu/run.py")]
ABSENT = {"pyyaml", "pyarrow", "lazy-loader", "scikit-learn", "delve"}  # in the environment of envs/gpu.txt


def without_cuda(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | ({"PYTHONPATH": str(path)} if path else {})
    line = [sys.executable, *RUN, *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[str]]:
    """A run whose checks end in every way there is: its folder, exit status and lines."""
    folder = tmp_path_factory.mktemp("ended")
    checks: list[tuple[Any, ...]] = [(name, 3 if name in ("endless", "unwilling") else 60) for name in BODIES]
    checks += [("absent", 60), ("lacking", 60, ["scipy"])]
    return (folder, *finished(folder, checks, "--small", hidden=["scipy"], device="cuda"))


def test_whatever_a_check_comes_to_the_next_is_run_and_the_status_tells(ended: tuple[Path, int, list[str]]) -> None:
    folder, status, lines = ended
    assert status == 1
    assert {name: (check["outcome"], check["reason"]) for name, check in results(folder).items()} == {
        "right": ("passed", ""),
        "wrong": ("failed", "2 of 3 figures are beyond their limits"),
        "slower": ("failed", "1 of 2 figures are beyond their limits"),
        "raising": ("failed", "ValueError: cannot be, this.h5: why."),
        "dying": ("failed", "its process was ended by SIGSEGV"),
        "leaving": ("failed", "its process ended with status 3"),
        "silent": ("failed", "it has shown nothing"),
        "full": ("failed", "out of memory: 0.5 of 80.0 GiB are this process's, 76.5 others'"),
        "endless": ("stopped", "after 3 seconds"),
        "unwilling": ("stopped", "after 3 seconds"),
        "absent": ("failed", "ModuleNotFoundError: No module named 'absent_check'"),
        "lacking": ("left out", "needs scipy"),
    }
    for check in results(folder).values():
        assert any(line.startswith(check["name"]) and line.endswith(check["reason"]) for line in lines)
    assert "scipy is not installed (pip install scipy); left out: lacking" in lines
    assert lines[-5].startswith("1 of 12 checks passed in ") and lines[-5].endswith(" seconds, 1 left out")


def test_figures_are_kept_up_to_where_a_check_ended(ended: tuple[Path, int, list[str]]) -> None:
    checks = results(ended[0])
    for name in ("right", "raising", "dying", "full", "endless", "unwilling"):
        assert names(checks[name]) == ["right"], name
    assert [figure["ok"] for figure in checks["wrong"]["figures"]] == [True, False, False]
    assert checks["wrong"]["figures"][2]["value"] == "nan"
    assert checks["endless"]["seconds"] >= 3 > checks["right"]["seconds"]


def test_a_traceback_is_in_a_file_and_not_on_the_screen(ended: tuple[Path, int, list[str]]) -> None:
    folder, _, lines = ended
    assert not any("Traceback" in line for line in lines)
    log = (folder / "out/raising.log").read_text()
    assert log.startswith("said\n") and "Traceback" in log and log.endswith("And more.\n")
    assert "Segmentation fault" in (folder / "out/dying.log").read_text()
    left = {path.name for path in (folder / "out").iterdir() if path.suffix != ".log"}
    assert left == {"gpu.json", "gpu.md", "right", "endless"} and (folder / "out/right/profile.txt").exists()


def test_the_page_tells_a_reader_what_was_measured_and_nothing_of_the_machine_s_folders(
    ended: tuple[Path, int, list[str]],
) -> None:
    folder, _, lines = ended
    page = (folder / "out/gpu.md").read_text()
    assert "| right | 1e-09 | at most 1e-06 | yes | of 3 |" in page
    assert "| too far | 0.002 | at most 1e-06 | **no** |  |" in page
    assert "| throughput | 0.5 | at least 0.98 | **no** |  |" in page
    assert "| told | 12,346 ms |  |  |  |" in page
    assert "scipy is not installed" in page and "times mean nothing" in page
    assert str(ROOT) not in page and str(folder) not in page and "/a/folder" not in page
    assert "wrong: too far: 0.002, at most 1e-06" in lines and "wrong: nowhere: nan, at most 1" in lines


def test_a_check_that_is_left_out_fails_a_run_that_asks_for_it_alone(tmp_path: Path) -> None:
    checks: Checks = [("right", 60), ("on_cuda", 60, [], {}, True)]
    assert finished(tmp_path, checks)[0] == 0
    assert finished(tmp_path, checks, "--only", "right")[0] == 0
    assert list(results(tmp_path)) == ["right"]
    assert finished(tmp_path, checks, "--only", "right", "on_cuda")[0] == 1
    assert finished(tmp_path, checks[1:])[0] == 2  # nothing could run
    assert results(tmp_path)["on_cuda"]["reason"] == "shows nothing without a CUDA device"


def test_a_check_for_which_too_little_time_is_left_says_how_much_it_takes(tmp_path: Path) -> None:
    status, _ = finished(tmp_path, [("endless", 600), ("right", 20)], "--minutes", 1, device="cuda")
    assert status == 1
    checks = results(tmp_path)
    assert checks["endless"]["reason"].startswith("takes up to 10.0 minutes, and ")
    assert checks["endless"]["outcome"] == "not run" and checks["right"]["outcome"] == "passed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_keeps_what_has_run_and_ends_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, [("right", 60), ("endless", 60), ("wrong", 60)])
    while not (tmp_path / "out/endless/begun").exists():
        assert process.poll() is None
        time.sleep(0.1)
    assert [check["outcome"] for check in results(tmp_path).values()] == ["passed", "not run", "not run"]
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == 130 and "Traceback" not in said
    assert psutil.wait_procs(children, timeout=10)[1] == []
    checks = results(tmp_path)
    assert [(check["outcome"], names(check)) for check in checks.values()] == [
        ("passed", ["right"]), ("stopped", ["right"]), ("not run", []),
    ]  # fmt: skip
    assert [check["reason"] for check in checks.values()] == ["", "the run was interrupted", "the run ended before it"]


def test_a_gpu_is_described_and_a_check_may_be_given_less_of_its_memory(tmp_path: Path) -> None:
    checks: Checks = [("right", 60, [], {"EIGENDET_GPU_MEMORY_GIB": "4"}, True)]
    status, lines = finished(tmp_path, checks, device="cuda")
    assert status == 0
    machine = json.loads((tmp_path / "out/gpu.json").read_text())["machine"]
    assert machine.items() >= {
        "device": "NVIDIA H100 80GB HBM3", "compute capability": "9.0", "driver": "580.65.06", "CUDA": "13.0",
        "cuDNN": "9.19.0", "torch": "2.11.0+cu130", "memory": "80.0 GiB, of which other processes leave 3.0",
    }.items()  # fmt: skip
    assert all(f"{name} {value}" in lines[0] for name, value in machine.items())
    assert (tmp_path / "out/right.log").read_text() == "fraction 0.05\n"
    page = (tmp_path / "out/gpu.md").read_text()
    assert page.startswith("# Checks on NVIDIA H100 80GB HBM3\n") and "times mean nothing" not in page


def test_without_torch_it_says_so_and_ends(tmp_path: Path) -> None:
    status, lines = finished(tmp_path, [("right", 60)], hidden=["torch"])
    assert (status, lines) == (2, ["torch is not installed (pip install torch); left out: right"])


def test_with_the_standard_library_alone_it_says_all_that_is_missing(tmp_path: Path) -> None:
    line = [sys.executable, "-S", *RUN, "--out", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr == ""
    assert {line.split()[0] for line in run.stdout.splitlines()} >= {
        "torch",
        "torchvision",
        "numpy",
        "faster-coco-eval",
    }
    assert not (tmp_path / "out").exists()


def test_a_machine_without_a_cuda_device_is_one_line(tmp_path: Path) -> None:
    run = without_cuda("--out", tmp_path)
    assert run.returncode == 2 and run.stderr == ""
    (line,) = run.stdout.splitlines()
    assert line.startswith("cuda cannot be used: ")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13: cannot open"),
        ("class version: cuda = None\n__version__ = '2.11.0+cpu'", "this torch, 2.11.0+cpu, is built without CUDA"),
        (
            "class version: cuda = '13.0'\nclass cuda:\n  def init():\n    raise RuntimeError("
            "'The NVIDIA driver on your system is too old (found version 11040). Please update your driver.')",
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        ),
        (f"{TORCH}\ndef ones(*_, device): raise OutOfMemoryError('CUDA out of memory.')", "76.5 others'"),
        (f"{TORCH}\ndef ones(*_, device): raise RuntimeError('CUDA error: no kernel image')", "no kernel image"),
        ("import os; os.abort()", "its process was ended by SIGABRT"),
        ("import warnings; warnings.warn('x')\nversion = None", "'NoneType' object has no attribute 'cuda'"),
    ],
)  # fmt: skip
def test_a_torch_that_cannot_use_the_device_says_why_in_one_line(tmp_path: Path, source: str, reason: str) -> None:
    """With a module called torch that does what torch does there, as far as it is asked."""
    (tmp_path / "torch.py").write_text(source)
    run = without_cuda("--out", tmp_path / "out", path=tmp_path)
    assert run.returncode == 2 and run.stderr == ""
    (line,) = run.stdout.splitlines()
    assert line.startswith("cuda cannot be used: ") and reason in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "0 is not a positive number of minutes"),
        (["--minutes", "nan"], "nan is not a positive number of minutes"),
        (["--minutes", "soon"], "invalid _minutes value: 'soon'"),
        (["--only", "acuracy"], "invalid choice: 'acuracy'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    run = without_cuda("--out", tmp_path, *arguments)
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = without_cuda("--out", tmp_path / "file", "--device", "cpu")
    assert (run.returncode, run.stderr) == (2, f"{tmp_path / 'file'}: File exists\n")


def test_the_stand_in_gives_what_lazy_loader_gives() -> None:
    attribute, names, public = standin.attach_stub("eigendet", eigendet.__file__)
    assert names() == dir(eigendet) and public == vars(eigendet)["__all__"]
    assert all(attribute(name) is getattr(eigendet, name) for name in public)
    with pytest.raises(AttributeError, match="module 'eigendet' has no attribute 'covariance'"):
        attribute("covariance")


def test_the_plan_fits_the_time_that_it_is_given() -> None:
    assert sum(check.seconds for check in CHECKS) <= 480
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_packages_older_than_the_library_requires_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan.outdated() == []
    versions = {"torch": "2.9.1+cu128", "pandas": "2.2.3", "numpy": "10.0"}
    monkeypatch.setattr(metadata, "version", lambda package: versions.get(package, "9999"))
    assert plan.outdated() == ["torch 2.9.1+cu128 is older than 2.10 (pip install --upgrade torch)"]


def test_the_commit_is_that_of_the_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.commit() == (git("rev-parse", "HEAD").strip(), False)
    (tmp_path / "file").write_text("2")
    assert record.commit()[1]
    monkeypatch.setattr(record, "ROOT", tmp_path / "inside")  # someone else's repository around an unpacked archive
    (tmp_path / "inside").mkdir()
    assert record.commit() == ("", False)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The python of an environment with what envs/gpu.txt lists and nothing else: 5 GB, linked to uv's cache."""
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "bin/python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)], check=True)
    listed = ["--require-hashes", "--requirement", str(ROOT / "envs/gpu.txt")]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *listed], check=True)
    yield python
    shutil.rmtree(folder)


def test_it_runs_end_to_end_on_an_older_torch_with_nothing_else_installed(tmp_path: Path, environment: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [str(environment), *RUN, "--device", "cpu", "--minutes", "20", "--out", str(tmp_path / "out")]
    run = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True)
    logs = "".join(log.read_text()[-2000:] for log in (tmp_path / "out").glob("*.log"))
    assert run.returncode == 0 and run.stderr == "", run.stdout + run.stderr + logs
    content = json.loads((tmp_path / "out/gpu.json").read_text())
    assert content["machine"]["torch"].startswith("2.11.") and content["small"]
    assert {line.split()[0] for line in content["missing"]} == ABSENT
    assert run.stdout.splitlines()[: len(ABSENT)] == content["missing"]
    outcomes = {check["name"]: check["outcome"] for check in content["checks"]}
    assert outcomes == {check.name: "left out" if check.cuda else "passed" for check in CHECKS}
    page = (tmp_path / "out/gpu.md").read_text()
    for check in content["checks"]:
        assert all(f"| {figure['name']} |" in page for figure in check["figures"])
    for place in (ROOT, tmp_path, environment.parent):
        assert str(place) not in page
