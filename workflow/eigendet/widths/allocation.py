"""How a compute budget becomes whole widths: three costs, and two ways to spend them (for controls, see `controls`).

*Proportional* takes widths closest to one factor times the groups' intrinsic dimensions. *Marginal* takes width for a
resource: it goes, a multiple at a time, where the spectra lose most by the next channels for what these cost.
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
        """The three costs, (3,), of widths in the order of `groups`."""
        found: np.ndarray = self.constant + (self.linear + self.quadratic @ widths / 2) @ widths
        return found

    def gradient(self, widths: np.ndarray) -> np.ndarray:
        """By how much the costs grow with each width, (3, groups)."""
        found: np.ndarray = self.linear + self.quadratic @ widths
        return found

    def steps(self, gradient: np.ndarray, step: np.ndarray) -> np.ndarray:
        """What each group alone adds to the costs, (3, groups), when it grows by its step."""
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
        """The budget of an experiment, relative to the reference.

        Raises:
            UserError: even the least widths cost more than the caps.
        """
        costs = Costs.of(channels)
        usual = np.array([reference[group] for group in costs.groups], float)
        rounded = channels.rounded_to(settings.round_to)
        multiple = np.array([rounded[group] for group in costs.groups], float)
        least = np.maximum(np.ceil(usual * settings.min_factor / multiple - 1e-9), 1) * multiple
        most = np.full_like(usual, np.inf)
        if settings.max_factor is not None:
            most = np.maximum(np.floor(usual * settings.max_factor / multiple + 1e-9) * multiple, least)
        shares = np.array([np.inf if share is None else share for share in (getattr(settings, c) for c in COSTS)])
        spent, caps = costs(least), shares * costs(usual)
        for name, share, needed, total in zip(COSTS, shares, spent, costs(usual), strict=True):
            if needed > share * total:
                raise UserError(
                    f"widths.{name} is {share:g}; the narrowest network that widths.round_to ({settings.round_to}), "
                    f"widths.min_factor ({settings.min_factor:g}) and its normalization allow has "
                    f"{math.ceil(1e4 * needed / total) / 1e4:.4f} of the reference's, so give at least that."
                )
        return cls(costs, caps, multiple, least, most)

    @classmethod
    def like(cls, channels: Channels, goal: Widths, costs: Collection[str], round_to: int) -> Budget:
        """What these widths cost, of the costs that are named, with any width for each group."""
        found = Costs.of(channels)
        spent = found(np.array([goal[group] for group in found.groups], float))
        multiple = np.array([channels.rounded_to(round_to)[group] for group in found.groups], float)
        caps = np.where([name in costs for name in COSTS], spent, np.inf)
        if (found(multiple) > caps).any():
            raise UserError(
                f"the widths to compare with cost less than the narrowest network that widths.round_to ({round_to}) "
                "allows; lower it."
            )
        return cls(found, caps, multiple, multiple, np.full_like(multiple, np.inf))

    def affords(self, widths: np.ndarray) -> bool:
        return bool((self.costs(widths) <= self.caps * (1 + 1e-12)).all())

    def binding(self, widths: Widths, target: np.ndarray) -> dict[str, str]:
        """What keeps each group from being wider (or from being narrower, where that is what holds it).

        A cap ("macs", "parameters" or "activations") that one more multiple would exceed; "least" or "most", its own
        range; or else "target", which lies nearer to the width it has.
        """
        vector = np.array([widths[group] for group in self.costs.groups], float)
        after = (
            self.costs(vector)[:, None] + self.costs.steps(self.costs.gradient(vector), self.multiple)
        ) / self.caps[:, None]
        found = {}
        for position, group in enumerate(self.costs.groups):
            if vector[position] == self.least[position] >= target[position]:
                found[group] = "least"
            elif vector[position] == self.most[position] <= target[position]:
                found[group] = "most"
            else:
                tightest = int(np.argmax(after[:, position]))
                found[group] = COSTS[tightest] if after[tightest, position] > 1 else "target"
        return found

    def named(self, widths: np.ndarray) -> Widths:
        return {group: round(width) for group, width in zip(self.costs.groups, widths.tolist(), strict=True)}


def proportional(budget: Budget, dimension: Mapping[str, float]) -> Widths:
    """Multiples nearest to widths proportional to the dimensions, within the budget.

    Raises:
        UserError: every dimension is zero.
    """
    return rounded(budget, targets(budget, dimension))


def rounded(budget: Budget, target: np.ndarray) -> Widths:
    """Target widths rounded down to multiples, then up where that fits, in order of what rounding down took away."""
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
    """Widths proportional to the dimensions, not yet whole: the largest that the budget affords, (groups,).

    Raises:
        UserError: every dimension is zero.
    """
    wanted = np.array([dimension[group] for group in budget.costs.groups])
    if not wanted.any():
        raise UserError(
            "every dimension is zero: each feature map is constant, or the rule finds nothing in it. So no width can "
            "be derived; look at the loss, or take another rule."
        )

    def target(factor: float) -> np.ndarray:
        return np.clip(factor * wanted, budget.least, budget.most)

    return target(largest(lambda factor: budget.affords(target(factor))))


def marginal(budget: Budget, spectra: Mapping[str, np.ndarray]) -> Widths:
    """Grow from the least widths, each time the group whose next channels hold most for their cost, while any fits.

    What a channel holds is its eigenvalue as a share of the trace; beyond the width that was observed, the power law
    fitted to the smaller half of the spectrum goes on. The cost is the share of the tightest cap.

    Args:
        spectra: eigenvalues of every group, in descending order.
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


def power_law(values: np.ndarray) -> tuple[float, float]:
    """(factor, exponent) of μ_k = factor · k^-exponent, by least squares on the logarithms of the smaller half.

    Rounding errors are left out; if they are all there is, the spectrum ends, and the factor is 0.

    The exponent is at least 1.01, so that what lies beyond any width is finite.
    """
    rank = np.arange(1, values.size + 1)
    half = (rank > values.size // 2) & (values > NOISE * values.max(initial=0.0))
    if np.count_nonzero(half) < 2:
        return 0.0, 1.01
    slope, _ = np.polyfit(np.log(rank[half]), np.log(values[half]), 1)
    exponent = max(-float(slope), 1.01)
    return float(np.exp(np.mean(np.log(values[half]) + exponent * np.log(rank[half])))), exponent


def largest(holds: Callable[[float], bool]) -> float:
    """The largest factor for which `holds`, to a relative 1e-9, up to 2^40; it holds at 0, and at least there."""
    high = 1.0
    while holds(high) and high < 2**40:
        high *= 2
    low = 0.0
    while high - low > max(1e-9 * high, 1e-300):  # halves of the smallest number are 0 again and again
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _cumulative(values: np.ndarray) -> Callable[[float], float]:
    """Share of the trace that the first k channels hold, k beyond the observed width by the fitted law."""
    values = np.clip(values, 0.0, None)
    total = values.sum() or 1.0
    seen = np.concatenate([[0.0], np.cumsum(values)]) / total
    factor, exponent = power_law(values)

    def held(width: float) -> float:
        if width <= values.size:
            return float(seen[int(width)])
        # The integral of the law between half ranks is its sum, to a good approximation.
        start, end = values.size + 0.5, width + 0.5
        tail = factor / (exponent - 1) * (start ** (1 - exponent) - end ** (1 - exponent))
        return float(seen[-1] + tail / total)

    return held


def _linear(sizes: list[Size], groups: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    position = {group: column for column, group in enumerate(groups)}
    factors, constants = np.zeros((len(sizes), len(groups))), np.zeros(len(sizes))
    for row, size in enumerate(sizes):
        constants[row] = float(size.constant)
        for group, factor in size.terms:
            factors[row, position[group]] += float(factor)
    return factors, constants
