"""Forward passes of a network, followed operation by operation.

Layers with weights make axes and take them, sums equate them, concatenations join them, reshapes split and merge them
(`operations`). The forward hooks that name the taps run in the same pass, so a tap and its group share one key by
construction, also where one module is called several times. (An exported graph knows module scopes but not these keys,
and takes thirty times longer.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from eigendet.channels.arguments import named_arguments
from eigendet.channels.construction import RESIZABLE
from eigendet.channels.operations import PRODUCTS, RULES, elementwise
from eigendet.channels.record import Record
from eigendet.channels.weighted import compare, stopped
from eigendet.observe.calls import each_call

SCORING = ("convolution", "upsample", "sigmoid", "_softmax", "_log_softmax")  # operations that give scores of pixels


@dataclass(frozen=True)
class Sample:
    """What a network is run on: a batch of images, or for a detector a list of one image of noise.

    A network that takes a batch is on the meta device, unless its code looks at values. A detector looks at what it
    finds, so it needs them.
    """

    size: tuple[int, int]  # height, width
    detector: bool = False
    values: bool = False  # of a batch
    regions: Mapping[str, int] = field(default_factory=dict)  # see Record
    image_channels: int = 3

    @property
    def meta(self) -> bool:
        """Whether tensors have no values."""
        return not (self.detector or self.values)


class Follower(TorchDispatchMode):
    """Notes in a record what every operation does while the mode is active."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, follow it if it takes feature maps, and compare what is counted of it with torch's."""
        record, kwargs, packet = self.record, kwargs or {}, function.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        record.keep_alive(tensors)
        operation = record.start(packet._qualified_op_name.split("::")[-1], tensors)
        result = function(*args, **kwargs)
        record.keep_alive([result])
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        calls = len(record.calls)
        if record.are_maps(tensors, packet in PRODUCTS):
            record.data.update(map(id, outputs))
            try:
                RULES.get(packet, elementwise)(record, named_arguments(function, args, kwargs), outputs)
            except ValueError:  # its sizes are not those that the rule expects
                del record.calls[calls:]
                stopped(record)
        else:
            record.inherit(tensors, outputs)
            if packet is torch.ops.aten.cat:
                record.join(tensors, named_arguments(function, args, kwargs)["dim"], outputs[0])
        if packet in flop_registry:
            compare(record, calls, flop_registry[packet](*args, **kwargs, out_val=result) // 2)
        record.makers.update((id(output), operation.name) for output in outputs)
        operation.outputs = [(tuple(output.shape), record.axes_of(output)) for output in outputs]
        return result


def followed(
    model: nn.Module, sample: Sample, copies: Mapping[str, str] | None = None
) -> tuple[Record, Exception | None]:
    """Run a network in evaluation, and on a batch in training too where some layers only run then.

    Returns:
        What is known of the passes, and the error that ended them if there was one.
    """
    record = Record(model.eval(), sample.regions, copies)
    try:
        if any(map(is_lazy, [*model.parameters(), *model.buffers()])):  # they get their weights in a first pass
            with torch.no_grad():
                model(_images(sample, 1))
            record = Record(model, sample.regions, copies)
        _run(record, sample, 1)
        if not sample.detector and any(
            isinstance(module, RESIZABLE) and path not in record.layers for path, module in model.named_modules()
        ):
            record.counting = False
            model.train()
            _run(record, sample, 2)
            model.eval()
    except Exception as error:  # whatever a network's own code raises
        return record, error
    return record, None


def _images(sample: Sample, count: int) -> Any:
    shape = (sample.image_channels, *sample.size)
    generator = torch.Generator().manual_seed(0)
    if sample.detector:
        return [torch.rand(shape, generator=generator)]
    if sample.values:
        return torch.rand(count, *shape, generator=generator)
    return torch.empty(count, *shape, device="meta")


def _run(record: Record, sample: Sample, count: int) -> None:
    images = _images(sample, count)
    with contextlib.ExitStack() as hooks:
        for path, module in record.model.named_modules():
            enter = module.register_forward_pre_hook(lambda module, inputs, path=path: record.enter(path))
            hooks.callback(enter.remove)

        def leave(path: str, call: int, module: nn.Module, inputs: Any, output: Any) -> None:
            if output is not None:  # else it failed, and the stack shows where
                record.leave(path, call, output)

        hooks.enter_context(torch.no_grad())
        hooks.enter_context(_in_products(record.model))
        hooks.enter_context(each_call(record.model, leave))
        hooks.enter_context(Follower(record))
        record.begin(images)
        result = record.model(images)
    if sample.values and isinstance(result, list) and result and all(isinstance(one, dict) for one in result):
        raise TypeError("it gives a list of dictionaries, as detectors do, which are followed by trace_detector")
    for tensor in tree_leaves(result):
        if isinstance(tensor, Tensor):
            _fix_output(record, tensor, sample.size)


@contextlib.contextmanager
def _in_products(model: nn.Module) -> Iterator[None]:
    """Have attention and recurrent layers computed by the products that they are made of, on every device."""
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = mkldnn


def _fix_output(record: Record, output: Tensor, size: tuple[int, int]) -> None:
    """Keep the size of an output that counts classes or boxes: that is not a map, or is one of scores of pixels.

    These are as large as the image, come from a convolution or are interpolated, perhaps as probabilities, and neither
    a layer nor a normalization has seen them.
    """
    axes = [axis for axis in record.axes_of(output) if axis is not None]
    if output.dim() < 4:
        for axis in axes:
            record.sizes.fix(axis, "an output of the network, a number for each class")
    elif tuple(output.shape[-2:]) == size and record.makers.get(id(output), "").startswith(SCORING):
        handled = {
            u
            for layer in record.layers.values()
            for u, _ in record.sizes.resolve(layer.axis if layer.source is None else layer.source)
        }
        for axis in axes:
            if not handled & {u for u, _ in record.sizes.resolve(axis)}:
                record.sizes.fix(axis, "an output of the network, a number for each class, at every pixel")
