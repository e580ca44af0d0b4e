"""Runs and their distances, which tests of arms are tried on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eigendet.spectra import references

FIVE = ["scratch"] * 5 + ["finetune"] * 5


def normal(seed: int, layers: int, runs: int, dimensions: int = 3) -> np.ndarray:
    """Distances of random points, (layers, runs, runs)."""
    points = np.random.default_rng(seed).normal(size=(layers, runs, dimensions))
    return np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)


def only_relabelings(labels: Sequence[str]) -> list[references.Weights]:
    return references.references(tuple(label == labels[0] for label in labels), None, 10_000, 100)[:1]


def squared(distances: np.ndarray) -> np.ndarray:
    rows, columns = np.triu_indices(distances.shape[1], 1)
    return distances[:, rows, columns] ** 2
