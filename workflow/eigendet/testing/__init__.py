"""The contract of plugins as tests, which `eigendet plugins check NAME` runs and a package's own tests subclass.

An author's test file names the plugin, and the options with which it is quick; pytest collects the tests:

    from eigendet.testing import DetectorContract


    class TestMine(DetectorContract):
        plugin = "mine"
        options = {"head_channels": 32}

Every test is one promise. Where the promise is not kept, it raises UserError, which names the plugin's file and line.

>>> for promise, test in promises("rule", PluginChoice(plugin="participation")):
...     test()
...     print(promise)
it says what it is
a dimension is between one and all channels
units do not matter

contract        what all plugins promise
networks        what backbones and detectors promise
values          what data sets, rules and allocators promise
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eigendet.config.sections import PluginChoice
from eigendet.plugins.discovery import Kind
from eigendet.testing.contract import Contract as Contract
from eigendet.testing.networks import BackboneContract as BackboneContract
from eigendet.testing.networks import DetectorContract as DetectorContract
from eigendet.testing.networks import NetworkContract as NetworkContract
from eigendet.testing.values import AllocatorContract as AllocatorContract
from eigendet.testing.values import DatasetContract as DatasetContract
from eigendet.testing.values import RuleContract as RuleContract

# Promises, in the words of `promises`, without which no other can be tried.
FIRST = ("it says what it is", "it builds", "it knows its classes before any image is decoded")

CONTRACTS: dict[Kind, type[Contract]] = {
    "backbone": BackboneContract, "detector": DetectorContract, "dataset": DatasetContract, "rule": RuleContract,
    "allocator": AllocatorContract,
}  # fmt: skip


def promises(kind: Kind, choice: PluginChoice) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield every promise of a plugin, in words, with the test of it.

    They come in the order in which they are best tried: those of all kinds first, then those of ever fewer. The words
    are the test's name. Where one of FIRST is not kept, the rest cannot be tried.

    Args:
        kind: of the plugin, whose contract is taken.
        choice: the plugin, and the options with which it is tried.
    """
    contract = type("Chosen", (CONTRACTS[kind],), {"plugin": choice.plugin, "options": choice.options})()
    for part in reversed(type(contract).__mro__):
        for name in vars(part):
            if name.startswith("test_"):
                yield name.removeprefix("test_").replace("_", " "), getattr(contract, name)
