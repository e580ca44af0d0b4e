"""Forward passes of a network, followed operation by operation.

Layers with weights make axes and take them, sums equate them, concatenations join them, reshapes split and merge them
(`operations`). The forward hooks that name the taps run in the same pass, so a tap and its group share one key by
construction, also where one module is called several times. (An exported graph knows module scopes but not these keys,
and takes thirty times longer.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eigendet.channels.arguments import named_arguments
from eigendet.channels.construction import RESIZABLE
from eigendet.channels.operations import RULES, elementwise
from eigendet.channels.record import Operation, Record
from eigendet.observe.calls import each_call


@dataclass(frozen=True)
class Sample:
    """What a network is run on: a batch of images without values, or for a detector a list of one image of noise.

    A network that takes a batch is on the meta device. A detector looks at what it finds, so it needs values.
    """

    size: tuple[int, int]  # height, width
    detector: bool = False
    regions: Mapping[str, int] = field(default_factory=dict)  # see Record
    image_channels: int = 3


class Follower(TorchDispatchMode):
    """Notes in a record what every operation does while the mode is active."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and follow it if it takes feature maps."""
        record, kwargs = self.record, kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        record.keep_alive(tensors)
        maps = [tensor for tensor in tensors if id(tensor) in record.axes]
        if maps:
            name = function.overloadpacket._qualified_op_name.split("::")[-1]
            axes = [axis for tensor in maps for axis in record.axes[id(tensor)] if axis is not None]
            record.operations.append(Operation(name, record.where(), axes))
        result = function(*args, **kwargs)
        record.keep_alive([result])
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if maps:
            rule = RULES.get(function.overloadpacket, elementwise)
            rule(record, named_arguments(function, args, kwargs), outputs)
        else:
            record.inherit(tensors, outputs)
        return result


def follow(record: Record, sample: Sample) -> None:
    """Run the record's network in evaluation, and on a batch in training too where some layers only run then."""
    model = record.model.eval()
    if sample.detector:
        _run(record, [torch.rand(sample.image_channels, *sample.size, generator=torch.Generator().manual_seed(0))])
        return
    _run(record, torch.empty(1, sample.image_channels, *sample.size, device="meta"))
    if any(isinstance(module, RESIZABLE) and path not in record.layers for path, module in model.named_modules()):
        record.counting = False
        model.train()
        _run(record, torch.empty(2, sample.image_channels, *sample.size, device="meta"))
        model.eval()


def _run(record: Record, images: Any) -> None:
    with contextlib.ExitStack() as hooks:
        for path, module in record.model.named_modules():
            enter = module.register_forward_pre_hook(lambda module, inputs, path=path: record.stack.append(path))
            hooks.callback(enter.remove)

        def leave(path: str, call: int, module: nn.Module, inputs: Any, output: Any) -> None:
            if output is not None:  # else it failed, and the stack shows where
                record.stack.pop()
                record.leave(path, call, output)

        hooks.enter_context(torch.no_grad())
        hooks.enter_context(each_call(record.model, leave))
        hooks.enter_context(Follower(record))
        record.begin(images)
        result = record.model(images)
    for tensor in tree_leaves(result):
        if isinstance(tensor, Tensor) and tensor.dim() == 2 and (axis := record.axes_of(tensor)[1]) is not None:
            record.sizes.fix(axis, "an output of the network, a number for each class")
