"""What data sets, width rules and allocators promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from eigendet import plugins
from eigendet.data.checks import check_dataset, check_sample
from eigendet.spectra.metrics import intrinsic_dimension
from eigendet.testing.contract import Contract
from eigendet.widths.allocation import Budget
from eigendet.widths.made_up import made_up_groups
from eigendet.widths.rounding import rounded
from eigendet.widths.targets import checked_targets
from eigendet.widths.views import GroupView


class DatasetContract(Contract):
    """What a data set plugin promises; `options` are some under which its files are there."""

    kind = "dataset"

    def open(self) -> Any:
        """Return the data set."""
        return plugins.bind("dataset", self.choice)()

    def test_it_knows_its_classes_before_any_image_is_decoded(self) -> None:
        """Require classes, and a digest that is the same each time."""
        data = self.open()
        check_dataset(data, str(self.origin))
        self.require(data.digest == self.open().digest, "has another digest each time it is opened.")

    def test_its_samples_are_what_it_says(self) -> None:
        """Require that the first images and their targets can be used."""
        data = self.open()
        for index in range(min(len(data), 8)):
            check_sample(data, index, str(self.origin))


class RuleContract(Contract):
    """What a width rule promises: a number of channels for every spectrum."""

    kind = "rule"

    def test_a_dimension_is_between_one_and_all_channels(self) -> None:
        """Require a number of channels for spectra of every shape; none only where it depends on units."""
        rule = plugins.bind("rule", self.choice)
        in_units = plugins.in_units(self.choice)
        for name, spectrum in {
            "of one direction": np.eye(1, 64)[0],
            "all equal": np.ones(64),
            "falling": np.geomspace(1, 1e-9, 64),
            "with a tail of zeros": np.concatenate([np.linspace(1, 0.1, 32), np.zeros(32)]),
        }.items():
            dimension = intrinsic_dimension(spectrum, rule)
            self.require(
                (dimension > 0 or in_units) and dimension <= 64 * (1 + 1e-9),
                f"gives {dimension} for 64 eigenvalues {name}; expected a number up to 64.",
            )

    def test_units_do_not_matter(self) -> None:
        """Require the same dimension whatever the scale of the eigenvalues, unless it is marked to depend on that."""
        if plugins.in_units(self.choice):
            return
        rule = plugins.bind("rule", self.choice)
        spectrum = np.geomspace(1, 1e-6, 64)
        dimensions = [intrinsic_dimension(scale * spectrum, rule) for scale in (1e-6, 1.0, 1e6)]
        self.require(
            all(math.isclose(dimension, dimensions[1], rel_tol=1e-6) for dimension in dimensions),
            f"gives {dimensions} for one spectrum in three units.",
        )


class AllocatorContract(Contract):
    """What an allocator promises: a target width for every group, whatever the spectra and the budget.

    Attributes:
        caps: shares of the reference's MACs at which it is tried.
    """

    kind = "allocator"
    caps: ClassVar[tuple[float, ...]] = (0.5, 1.0, 1.5)

    def targets(self, groups: Sequence[GroupView], budget: Budget) -> np.ndarray:
        """Return its target widths, checked."""
        result = plugins.bind("allocator", self.choice)(groups, budget)
        return checked_targets(result, budget.costs.groups, self.origin)

    def test_it_gives_a_width_for_each_group(self) -> None:
        """Require finite widths, none negative, of all groups and no others, that can be rounded within the budget."""
        for groups, budget in made_up_groups(plugins.needs(self.choice), self.caps):
            widths = rounded(budget, self.targets(groups, budget))
            spent = budget.costs(np.array(list(widths.values()), float))
            self.require(bool((spent <= budget.caps * (1 + 1e-9)).all()), f"gives widths {widths}, beyond the caps.")

    def test_the_same_groups_get_the_same_widths(self) -> None:
        """Require that nothing is drawn at random, and that what it was shown is left as it was."""
        for groups, budget in made_up_groups(plugins.needs(self.choice), self.caps):
            first, second = self.targets(groups, budget), self.targets(groups, budget)
            self.require(np.array_equal(first, second), f"gives {first} and then {second} for the same groups.")

    def test_units_do_not_matter(self) -> None:
        """Require the same widths whatever the scale of all maps, within a thousandth."""
        needs = plugins.needs(self.choice)
        plain = [self.targets(groups, budget) for groups, budget in made_up_groups(needs, self.caps)]
        scaled = [self.targets(groups, budget) for groups, budget in made_up_groups(needs, self.caps, scale=64.0)]
        same = all(np.allclose(one, other, rtol=1e-3) for one, other in zip(plain, scaled, strict=True))
        self.require(same, f"gives {plain} and, with all maps eight times as large, {scaled}.")
