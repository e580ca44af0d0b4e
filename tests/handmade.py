"""A network of two channel groups made up by hand, with the costs of every layer in closed form."""

from __future__ import annotations

from fractions import Fraction

from eigendet.channels.groups import Channels, Layer, Size


def size(constant: int = 0, **terms: int | Fraction) -> Size:
    return Size(Fraction(constant), tuple((name, Fraction(factor)) for name, factor in terms.items()))


LAYERS = (
    Layer("stem", "conv", size(3), size(a=1), kernel=9, positions=100, vectors=1),
    Layer("norm", "norm", None, size(a=1), vectors=2),
    Layer("deep", "conv", size(a=1), size(a=3), kernel=25, depthwise=True, positions=50),
    Layer("parts", "conv", size(a=1), size(b=2), kernel=9, groups=2, positions=10),
    Layer("twin", "conv", size(b=1), size(a=1), kernel=1, positions=100),
    Layer("scale", "parameter", None, size(b=1), vectors=4),
    Layer("mixed", "conv", size(1, a=Fraction(1, 2), b=1), size(5), kernel=1, positions=20, vectors=1),
    Layer("product@7", "product", size(a=1), size(b=1), positions=6, trained=False),
    Layer("written", "conv", None, size(b=1), kernel=4, positions=3),
)
NETWORK = Channels(
    widths={"a": 8, "b": 6},
    multiples={"a": 4, "b": 3},
    layers=LAYERS,
    fixed={"mixed": "an output", "c": "a slice"},
    outputs={("stem", 0): "a", ("parts", 1): "b"},
    constant=1000,
    order=("stem", None, "norm"),
)
MACS = {  # at widths a and b
    "stem": lambda a, b: 9 * 3 * a * 100,
    "norm": lambda a, b: 0,
    "deep": lambda a, b: 25 * 3 * a * 50,
    "parts": lambda a, b: 9 * a * 2 * b // 2 * 10,
    "twin": lambda a, b: b * a * 100,
    "scale": lambda a, b: 0,
    "mixed": lambda a, b: (1 + a // 2 + b) * 5 * 20,
    "product@7": lambda a, b: a * b * 6,
    "written": lambda a, b: 4 * b * 3,
}
PARAMETERS = {
    "stem": lambda a, b: 9 * 3 * a + a,
    "norm": lambda a, b: 2 * a,
    "deep": lambda a, b: 25 * 3 * a,
    "parts": lambda a, b: 9 * a * 2 * b // 2,
    "twin": lambda a, b: b * a,
    "scale": lambda a, b: 4 * b,
    "mixed": lambda a, b: (1 + a // 2 + b) * 5 + 5,
    "product@7": lambda a, b: 0,
    "written": lambda a, b: 4 * b,
}
