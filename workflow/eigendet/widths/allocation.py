"""A compute budget: what widths cost, what they may, and the largest in proportion to something that it affords."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from eigendet.channels.groups import Channels, Size, Widths
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError

COSTS = ("macs", "parameters", "activations")


def seal(record: object) -> None:
    """Make the arrays of a frozen record read-only, so that no allocator changes what is shown to it."""
    for name, value in list(vars(record).items()):
        if isinstance(value, np.ndarray):
            sealed = value.view()
            sealed.flags.writeable = False
            object.__setattr__(record, name, sealed)


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates, parameters and activations of a network as quadratic forms of its widths, as arrays.

    A cost is constant + linear · w + w · quadratic · w / 2. Activations are the elements that convolutions and linear
    layers write, for one image of the traced size; of a transposed convolution, at each position that it reads.
    """

    groups: tuple[str, ...]
    constant: np.ndarray  # (3,)
    linear: np.ndarray  # (3, groups)
    quadratic: np.ndarray  # (3, groups, groups), symmetric

    def __post_init__(self) -> None:
        seal(self)

    @classmethod
    def of(cls, channels: Channels) -> Costs:
        """Return the costs of a network by its channel groups."""
        groups = tuple(channels.widths)
        one = Size(Fraction(1), ())
        pairs = [
            (one if layer.depthwise or layer.source is None else layer.source, layer.out) for layer in channels.layers
        ]
        product, written = np.zeros((3, len(pairs))), np.zeros((3, len(pairs)))
        for column, layer in enumerate(channels.layers):
            if layer.kind not in ("norm", "parameter"):
                weights = layer.kernel / layer.groups
                product[:2, column] = weights * layer.positions, weights * layer.trained
                written[2, column] = layer.positions * (layer.kind != "product")
            written[1, column] = layer.vectors
        # Channels read are source @ widths + source_constant; product is the cost of one read times one written.
        source, source_constant = _linear([source for source, _ in pairs], groups)
        out, out_constant = _linear([out for _, out in pairs], groups)
        both = np.stack([source.T @ (cost[:, None] * out) for cost in product])
        return cls(
            groups,
            (product * source_constant + written) @ out_constant + [0.0, channels.constant, 0.0],
            (product * source_constant + written) @ out + (product * out_constant) @ source,
            both + both.transpose(0, 2, 1),
        )

    def __call__(self, widths: np.ndarray) -> np.ndarray:
        """Return the three costs, (3,), of widths in the order of `groups`."""
        costs: np.ndarray = self.constant + (self.linear + self.quadratic @ widths / 2) @ widths
        return costs

    def gradient(self, widths: np.ndarray) -> np.ndarray:
        """Return by how much the costs grow with each width, (3, groups)."""
        gradient: np.ndarray = self.linear + self.quadratic @ widths
        return gradient

    def steps(self, gradient: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Return what each group alone adds to the costs, (3, groups), when it grows by its step."""
        own: np.ndarray = np.diagonal(self.quadratic, axis1=1, axis2=2)
        added: np.ndarray = gradient * step + own * step**2 / 2
        return added


@dataclass(frozen=True)
class Budget:
    """What widths may cost and how far each may go: arrays in the order of the groups."""

    costs: Costs
    caps: np.ndarray  # (3,)
    multiple: np.ndarray
    least: np.ndarray  # multiples of `multiple`, like `most`
    most: np.ndarray

    def __post_init__(self) -> None:
        seal(self)

    @classmethod
    def of(cls, channels: Channels, reference: Widths, settings: WidthSettings) -> Budget:
        """Return the budget of an experiment, relative to the reference.

        Raises:
            UserError: even the least widths cost more than the caps.
        """
        costs = Costs.of(channels)
        full = np.array([reference[group] for group in costs.groups], float)
        multiple, least, most = _ranges(channels, full, settings)
        limits = (settings.macs, settings.parameters, settings.activations)  # in the order of COSTS
        shares = np.array([np.inf if share is None else share for share in limits])
        for name, share, needed, total in zip(COSTS, shares, costs(least), costs(full), strict=True):
            if needed > share * total:
                raise UserError(
                    f"widths.{name} is {share:g}; the narrowest network that widths.round_to ({settings.round_to}), "
                    f"widths.min_factor ({settings.min_factor:g}) and its normalization allow has "
                    f"{math.ceil(1e4 * needed / total) / 1e4:.4f} of the reference's, so give at least that."
                )
        return cls(costs, shares * costs(full), multiple, least, most)

    @classmethod
    def like(
        cls, channels: Channels, reference: Widths, goal: Widths, costs: Collection[str], settings: WidthSettings
    ) -> Budget:
        """Return a budget of what other widths cost, with the range of every group that the settings allow.

        Args:
            channels: the network's groups.
            reference: the reference's width of each.
            goal: the other widths.
            costs: names of the costs that count.
            settings: say multiples and ranges.

        Raises:
            UserError: even the least widths cost more.
        """
        costs_of = Costs.of(channels)
        full, spent = (np.array([widths[group] for group in costs_of.groups], float) for widths in (reference, goal))
        multiple, least, most = _ranges(channels, full, settings)
        caps = np.where([name in costs for name in COSTS], costs_of(spent), np.inf)
        if (costs_of(least) > caps).any():
            raise UserError(
                "the widths to compare with cost less than the narrowest network that widths.round_to "
                f"({settings.round_to}) and widths.min_factor ({settings.min_factor:g}) allow; lower these."
            )
        return cls(costs_of, caps, multiple, least, most)

    def use(self, widths: np.ndarray) -> float:
        """Return what widths cost as a share of the tightest cap."""
        return float((self.costs(widths) / self.caps).max())

    def affords(self, widths: np.ndarray) -> bool:
        """Return whether widths exceed no cap."""
        return self.use(widths) <= 1 + 1e-12

    def scaled(self, weights: np.ndarray) -> np.ndarray:
        """Return the largest widths in proportion to weights, (groups,), within ranges and caps; not yet whole."""
        weights = weights / (weights.max() or 1.0)  # so that no product with them overflows

        def target(factor: float) -> np.ndarray:
            return np.clip(factor * weights, self.least, self.most)

        return target(largest_factor(lambda factor: self.affords(target(factor))))

    def fitted(self, target: np.ndarray) -> np.ndarray:
        """Return target widths within their ranges, and all times one factor where they would exceed a cap."""
        clipped = np.clip(target, self.least, self.most)
        return clipped if self.affords(clipped) else self.scaled(target)

    def binding(self, widths: Widths, target: np.ndarray) -> dict[str, str]:
        """Say what keeps each group from being wider (or from being narrower, where that is what holds it).

        It is a cap ("macs", "parameters" or "activations") that one more multiple would exceed; "least" or "most", its
        own range; or else "target", which lies nearer to the width it has.
        """
        vector = np.array([widths[group] for group in self.costs.groups], float)
        after = (
            self.costs(vector)[:, None] + self.costs.steps(self.costs.gradient(vector), self.multiple)
        ) / self.caps[:, None]
        bound = {}
        for position, group in enumerate(self.costs.groups):
            if vector[position] == self.least[position] >= target[position]:
                bound[group] = "least"
            elif vector[position] == self.most[position] <= target[position]:
                bound[group] = "most"
            else:
                tightest = int(np.argmax(after[:, position]))
                bound[group] = COSTS[tightest] if after[tightest, position] > 1 else "target"
        return bound

    def named(self, widths: np.ndarray) -> Widths:
        """Return widths in the order of the groups by their names."""
        return {group: round(width) for group, width in zip(self.costs.groups, widths.tolist(), strict=True)}


def targets(budget: Budget, dimension: Mapping[str, float]) -> np.ndarray:
    """Return widths proportional to the dimensions, not yet whole: the largest that the budget affords, (groups,).

    Raises:
        UserError: every dimension is zero.

    >>> costs = Costs(("a", "b"), np.zeros(3), np.array([[1.0, 1], [2, 0], [0, 10]]), np.zeros((3, 2, 2)))
    >>> caps, four, any_width = np.array([20, np.inf, np.inf]), np.full(2, 4.0), np.full(2, np.inf)
    >>> budget = Budget(costs, caps, multiple=four, least=four, most=any_width)
    >>> targets(budget, {"a": 1.0, "b": 3.0}).round(6).tolist()
    [5.0, 15.0]
    """
    dimensions = np.array([dimension[group] for group in budget.costs.groups])
    if not dimensions.any():
        raise UserError(
            "every dimension is zero: each feature map is constant, or the rule finds nothing in it. So no width can "
            "be derived; look at the loss, or take another rule."
        )
    return budget.scaled(dimensions)


def largest_factor(holds: Callable[[float], bool]) -> float:
    """Return the largest factor for which `holds` is true, to a relative 1e-9, up to 2^40; at 0 it must be true.

    >>> round(largest_factor(lambda factor: factor**2 <= 2), 6)
    1.414214
    """
    high = 1.0
    while holds(high) and high < 2**40:
        high *= 2
    low = 0.0
    while high - low > max(1e-9 * high, 1e-300):  # halves of the smallest number are 0 again and again
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _ranges(channels: Channels, full: np.ndarray, settings: WidthSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what widths are multiples of, and the least and most that each may be beside the reference's `full`."""
    multiple = np.array(list(channels.rounded_to(settings.round_to).values()), float)
    least = np.maximum(np.ceil(full * settings.min_factor / multiple - 1e-9), 1) * multiple
    most = np.full_like(full, np.inf)
    if settings.max_factor is not None:
        most = np.maximum(np.floor(full * settings.max_factor / multiple + 1e-9) * multiple, least)
    return multiple, least, most


def _linear(sizes: list[Size], groups: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes as factors of the groups' widths, (sizes, groups), and constants, (sizes,)."""
    position = {group: column for column, group in enumerate(groups)}
    factors, constants = np.zeros((len(sizes), len(groups))), np.zeros(len(sizes))
    for row, size in enumerate(sizes):
        constants[row] = float(size.constant)
        for group, factor in size.terms:
            factors[row, position[group]] += float(factor)
    return factors, constants
