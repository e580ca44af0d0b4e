"""Bytes of the files that a run leaves, known before any is run.

A snapshot is written to a temporary folder and measured, and one small image passes the network to find its taps. What
files take depends on weights and pixels only in how well tables compress, which count as they usually do.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from eigendet.config.sections import CovarianceSettings, Optimization
from eigendet.networks.backbones import parameter_count
from eigendet.networks.definition import Definition
from eigendet.runs.folder import RunFolder
from eigendet.runs.observation import observed_taps
from eigendet.spectra import spectrum

BLOCK = 4096  # bytes that the smallest file takes
EIGENVALUE = 9.5  # bytes of a row of a table of eigenvalues, compressed
ARRAY = 475  # bytes that HDF5 takes for an array beside its content, with its share of the tap's attributes


@dataclass(frozen=True)
class Footprint:
    """Bytes of a run's files.

    Attributes:
        snapshot: weights and definition.
        parameters: the part of that which an optimizer changes.
        channels: of every tap; none of a classifier, which is not observed.
        settings: say how much of every tap is kept.
    """

    snapshot: int
    parameters: int
    channels: tuple[int, ...]
    settings: CovarianceSettings

    @classmethod
    def of(cls, definition: Definition, settings: CovarianceSettings) -> Self:
        """Build the network, and measure a snapshot and what taps see of a small image."""
        with tempfile.TemporaryDirectory() as name:
            model = definition.build().eval()
            folder = RunFolder(Path(name))
            folder.write_snapshot(0, model, definition)
            snapshot = folder.snapshot(0).stat().st_size
            channels = []
            if definition.detector is not None:
                groups, _ = definition.reference()
                taps = observed_taps(model, settings, [[torch.rand(3, *definition.size)]], groups=groups)
                channels = [tap.covariance.channels for tap in taps]
        return cls(snapshot, 4 * parameter_count(model), tuple(channels), settings)

    def checkpoint(self, optimization: Optimization) -> int:
        """Return the bytes of what resuming needs: beside the weights, what the optimizer keeps of each."""
        moments = 2 if optimization.optimizer == "adamw" else int(optimization.momentum > 0)
        return self.snapshot + moments * self.parameters

    def covariance(self, snapshots: int, images: int) -> int:
        """Return the bytes of a file of covariances of so many images, with those of parts at the last snapshot."""
        whole = snapshots * self._covariances(images)
        if not self.parts:
            return whole
        return whole + self._arrays(3, self.parts * (4 * self._triangles + 8 * sum(self.channels)))

    def unfinished_covariance(self, file: int) -> int:
        """Return the bytes beside a file while it is written.

        They are all snapshots by themselves, and before that the parts of the last.
        """
        return max(file, self.parts * self._covariances(0))

    def spectra(self, snapshots: int) -> int:
        """Return the bytes of tables of eigenvalues, and of what comparisons need."""
        images = self.settings.images
        arrays = 4 * sum(c * spectrum.leading(c) + images * min(images, c) for c in self.channels)
        rows = (snapshots + self.parts) * sum(self.channels)
        return round(EIGENVALUE * rows) + snapshots * self._arrays(3, arrays) + 3 * BLOCK

    @property
    def parts(self) -> int:
        """The number of parts of the images, for the jackknife."""
        return min(self.settings.jackknife or 0, self.settings.images)

    @property
    def _triangles(self) -> int:
        """Elements of the upper triangles of all covariances."""
        return sum(channels * (channels + 1) // 2 for channels in self.channels)

    def _covariances(self, images: int) -> int:
        """Return the bytes of all covariances at one snapshot."""
        width = 4 if self.settings.single else 8
        moments = width * self._triangles + 8 * sum(self.channels)
        whole = self._arrays(4, moments + 4 * images * sum(self.channels))
        return whole + self._arrays(3, moments) if self.settings.gradients else whole

    def _arrays(self, number: int, content: int) -> int:
        """Return the bytes of so many arrays of every tap."""
        return number * ARRAY * len(self.channels) + content
