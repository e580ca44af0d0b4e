"""A backbone in which no width can change is trained, observed and reported like others where no arm needs widths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigendet import config
from eigendet.errors import UserError
from eigendet.runs import network_check
from eigendet.runs.plan import planned_stages
from tests.conftest import minimal_experiment
from tests.workflow.running import said, snakemake

# Kernels are mixed from several, as in dynamic convolution, so none of them is a layer of which another can be built.
BACKBONE = '''
from typing import TYPE_CHECKING

from eigendet.plugins import backbone

if TYPE_CHECKING:
    from torch import nn


@backbone
def mixed() -> "nn.Module":
    """Build four stages that convolve with mixtures of kernels."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    class Mixture(nn.Module):
        def __init__(self, read: int, written: int) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(2))
            self.kernels = nn.Parameter(0.1 * torch.randn(2, written, read, 3, 3))
            self.activation = nn.ReLU()

        def forward(self, maps: Tensor) -> Tensor:
            kernels = (self.kernels * self.scores.softmax(0)[:, None, None, None, None]).sum(0)
            return self.activation(functional.conv2d(maps, kernels, stride=2, padding=1))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([Mixture(3, 8), Mixture(8, 8), Mixture(8, 16), Mixture(16, 16)])

        def forward(self, maps: Tensor) -> dict[str, Tensor]:
            maps = self.stages[0](maps)
            named = {}
            for number, stage in enumerate(self.stages[1:]):
                maps = named[f"stage{number}"] = stage(maps)
            return named

    return Network()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/mixed.py").write_text(BACKBONE)
    return tmp_path


def configuration(*arms: str) -> dict[str, Any]:
    changes = {"backbones": {"mixed": {"plugin": "mixed"}}, "arms": {arm: {} for arm in arms}}
    values = minimal_experiment() | changes
    values["detectors"]["rcnn"]["anchor_sizes"] = [8, 16, 32, 48]
    return values


def test_it_is_trained_observed_and_reported_where_no_arm_needs_widths(folder: Path) -> None:
    result = snakemake(folder, configuration("finetune", "scratch", "reference"))
    assert result.returncode == 0, said(result)
    results = folder / "results/minimal"
    for arm in ("finetune", "scratch"):
        assert (results / f"spectra/{arm}/mixed/rcnn/seed_0/eigenvalues.parquet").exists()
    costs = json.loads((results / "networks/mixed/rcnn.json").read_text())["costs"]
    # Kernels of 8 x 3, 8 x 8, 16 x 8 and 16 x 16 at half, a quarter and so on of 64 x 64.
    assert costs["backbone_macs"] == 9 * (24 * 32**2 + 64 * 16**2 + 128 * 8**2 + 256 * 4**2)
    assert "mixed" in (results / "report.html").read_text()


@pytest.mark.parametrize("use", [network_check.check_network, planned_stages])
@pytest.mark.parametrize("arms", [("derived",), ("derived", "profile"), ("derived", "untrained")])
def test_it_is_refused_before_any_training_where_an_arm_needs_widths(
    use: Callable[..., Any], arms: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    experiment = config.parse(configuration("scratch", *arms))
    names = ("mixed", "rcnn") if use is network_check.check_network else (folder / "results",)
    with pytest.raises(UserError, match=r"^rcnn over mixed: none of its widths can change \(stages\.0.*out of arms\.$"):
        use(experiment, *names)


def test_a_width_factor_that_would_change_nothing_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    values = configuration("scratch")
    values["backbones"]["mixed"]["width"] = 0.5
    with pytest.raises(UserError, match=r"mixed.*: width 0\.5, but none of its widths can change \(weights of a"):
        network_check.check_network(config.parse(values), "mixed", "rcnn")
