"""Turn a compute budget into whole widths: three costs, and two ways to spend them (for controls, see `controls`).

*Proportional* takes widths closest to one factor times the groups' intrinsic dimensions. *Marginal* takes width for a
resource: it goes, a multiple at a time, where the next channels hold most of the spectra for what they cost.
"""

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
NOISE = 1e-8  # of the largest eigenvalue: below lie rounding errors


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates, parameters and activations of a network as quadratic forms of its widths, as arrays.

    A cost is constant + linear · w + w · quadratic · w / 2. Activations are the elements that convolutions and linear
    layers write, for one image of the traced size.
    """

    groups: tuple[str, ...]
    constant: np.ndarray  # (3,)
    linear: np.ndarray  # (3, groups)
    quadratic: np.ndarray  # (3, groups, groups), symmetric

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
                written[2, column] = layer.positions
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

    @classmethod
    def of(cls, channels: Channels, reference: Widths, settings: WidthSettings) -> Budget:
        """Return the budget of an experiment, relative to the reference.

        Raises:
            UserError: even the least widths cost more than the caps.
        """
        costs = Costs.of(channels)
        full = np.array([reference[group] for group in costs.groups], float)
        rounded = channels.rounded_to(settings.round_to)
        multiple = np.array([rounded[group] for group in costs.groups], float)
        least = np.maximum(np.ceil(full * settings.min_factor / multiple - 1e-9), 1) * multiple
        most = np.full_like(full, np.inf)
        if settings.max_factor is not None:
            most = np.maximum(np.floor(full * settings.max_factor / multiple + 1e-9) * multiple, least)
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
    def like(cls, channels: Channels, goal: Widths, costs: Collection[str], round_to: int) -> Budget:
        """Return a budget of what other widths cost, with any width for each group.

        Args:
            channels: the network's groups.
            goal: the other widths.
            costs: names of the costs that count.
            round_to: widths are multiples of this.

        Raises:
            UserError: even the least widths cost more.
        """
        costs_of = Costs.of(channels)
        spent = costs_of(np.array([goal[group] for group in costs_of.groups], float))
        rounded_to = channels.rounded_to(round_to)
        multiple = np.array([rounded_to[group] for group in costs_of.groups], float)
        caps = np.where([name in costs for name in COSTS], spent, np.inf)
        if (costs_of(multiple) > caps).any():
            raise UserError(
                f"the widths to compare with cost less than the narrowest network that widths.round_to ({round_to}) "
                "allows; lower it."
            )
        return cls(costs_of, caps, multiple, multiple, np.full_like(multiple, np.inf))

    def affords(self, widths: np.ndarray) -> bool:
        """Return whether widths exceed no cap."""
        return bool((self.costs(widths) <= self.caps * (1 + 1e-12)).all())

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


def proportional(budget: Budget, dimension: Mapping[str, float]) -> Widths:
    """Return multiples nearest to widths proportional to the dimensions, within the budget.

    Raises:
        UserError: every dimension is zero.

    >>> costs = Costs(("a", "b"), np.zeros(3), np.array([[1.0, 1], [2, 0], [0, 10]]), np.zeros((3, 2, 2)))
    >>> caps, four, any_width = np.array([20, np.inf, np.inf]), np.full(2, 4.0), np.full(2, np.inf)
    >>> budget = Budget(costs, caps, multiple=four, least=four, most=any_width)
    >>> proportional(budget, {"a": 1.0, "b": 3.0})
    {'a': 4, 'b': 16}
    """
    return rounded(budget, targets(budget, dimension))


def rounded(budget: Budget, target: np.ndarray) -> Widths:
    """Round target widths down to multiples, then up where that fits, in order of what rounding down took away."""
    widths = np.maximum(np.floor(target / budget.multiple + 1e-6) * budget.multiple, budget.least)
    if not budget.affords(widths):
        widths = np.maximum(np.floor(target / budget.multiple) * budget.multiple, budget.least)
    for group in np.argsort(widths - target, kind="stable"):
        wider = widths.copy()
        wider[group] += budget.multiple[group]
        if target[group] > widths[group] and wider[group] <= budget.most[group] and budget.affords(wider):
            widths = wider
    return budget.named(widths)


def targets(budget: Budget, dimension: Mapping[str, float]) -> np.ndarray:
    """Return widths proportional to the dimensions, not yet whole: the largest that the budget affords, (groups,).

    Raises:
        UserError: every dimension is zero.
    """
    dimensions = np.array([dimension[group] for group in budget.costs.groups])
    if not dimensions.any():
        raise UserError(
            "every dimension is zero: each feature map is constant, or the rule finds nothing in it. So no width can "
            "be derived; look at the loss, or take another rule."
        )

    def target(factor: float) -> np.ndarray:
        return np.clip(factor * dimensions, budget.least, budget.most)

    return target(largest_factor(lambda factor: budget.affords(target(factor))))


def marginal(budget: Budget, spectra: Mapping[str, np.ndarray]) -> Widths:
    """Grow from the least widths, each time the group whose next channels hold most for their cost, while any fits.

    What a channel holds is its eigenvalue as a share of the trace; beyond the width that was observed, the power law
    fitted to the smaller half of the spectrum goes on. The cost is the share of the tightest cap.

    Args:
        budget: what widths may cost.
        spectra: eigenvalues of every group, in descending order.

    >>> costs = Costs(("a", "b"), np.zeros(3), np.array([[1.0, 1], [2, 0], [0, 10]]), np.zeros((3, 2, 2)))
    >>> caps, four, any_width = np.array([20, np.inf, np.inf]), np.full(2, 4.0), np.full(2, np.inf)
    >>> budget = Budget(costs, caps, multiple=four, least=four, most=any_width)
    >>> marginal(budget, {"a": np.array([1.0] * 8 + [0.0] * 8), "b": np.arange(1.0, 17) ** -2})
    {'a': 8, 'b': 12}
    """
    held = [_cumulative(spectra[group]) for group in budget.costs.groups]
    widths, step = budget.least.copy(), budget.multiple
    relevant = np.isfinite(budget.caps)
    caps = budget.caps[relevant][:, None]
    gradient, spent = budget.costs.gradient(widths), budget.costs(widths)
    gain = np.array([hold(w + m) - hold(w) for hold, w, m in zip(held, widths, step, strict=True)])
    while True:
        added = budget.costs.steps(gradient, step)
        shares = added[relevant] / caps
        fits = (
            (shares <= 1 + 1e-12 - spent[relevant][:, None] / caps).all(0) & (widths + step <= budget.most) & (gain > 0)
        )
        if not fits.any():
            return budget.named(widths)
        best = int(np.argmax(np.where(fits, gain / np.maximum(shares.max(0), 1e-30), -1.0)))
        widths[best] += step[best]
        spent = spent + added[:, best]
        gradient = gradient + budget.costs.quadratic[:, :, best] * step[best]
        gain[best] = held[best](widths[best] + step[best]) - held[best](widths[best])


def decay_law(values: np.ndarray) -> tuple[float, float]:
    """Fit μ_k = factor · k^-exponent by least squares on the logarithms of the smaller half; return both numbers.

    Rounding errors are left out; if they are all there is, the spectrum ends, and the factor is 0. The exponent is at
    least 1.01, so that what lies beyond any width is finite. The other power law, of `spectra.metrics`, is of the
    density of the largest eigenvalues.

    >>> factor, exponent = decay_law(5 * np.arange(1.0, 65) ** -1.7)
    >>> round(factor, 6), round(exponent, 6)
    (5.0, 1.7)
    """
    rank = np.arange(1, values.size + 1)
    half = (rank > values.size // 2) & (values > NOISE * values.max(initial=0.0))
    if np.count_nonzero(half) < 2:
        return 0.0, 1.01
    slope, _ = np.polyfit(np.log(rank[half]), np.log(values[half]), 1)
    exponent = max(-float(slope), 1.01)
    return float(np.exp(np.mean(np.log(values[half]) + exponent * np.log(rank[half])))), exponent


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


def _cumulative(values: np.ndarray) -> Callable[[float], float]:
    """Return the share of the trace that the first k channels hold, k beyond the observed width by the fitted law."""
    values = np.clip(values, 0.0, None)
    total = values.sum() or 1.0
    seen = np.concatenate([[0.0], np.cumsum(values)]) / total
    factor, exponent = decay_law(values)

    def held(width: float) -> float:
        if width <= values.size:
            return float(seen[int(width)])
        # The integral of the law between half ranks is its sum, to a good approximation.
        start, end = values.size + 0.5, width + 0.5
        tail = factor / (exponent - 1) * (start ** (1 - exponent) - end ** (1 - exponent))
        return float(seen[-1] + tail / total)

    return held


def _linear(sizes: list[Size], groups: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes as factors of the groups' widths, (sizes, groups), and constants, (sizes,)."""
    position = {group: column for column, group in enumerate(groups)}
    factors, constants = np.zeros((len(sizes), len(groups))), np.zeros(len(sizes))
    for row, size in enumerate(sizes):
        constants[row] = float(size.constant)
        for group, factor in size.terms:
            factors[row, position[group]] += float(factor)
    return factors, constants
