"""Backbones, detectors, data sets and width rules: what each must do, and loading of the one that is named.

A plugin is a function marked with `backbone`, `detector`, `dataset` or `rule`; its name is the plugin's name, the first
line of its docstring the summary. It stands in a file of a plugin folder, or an installed package names it as an entry
point of the group `eigendet.backbones`, `eigendet.detectors`, `eigendet.datasets` or `eigendet.rules` (`discovery`).
Its options are its keyword-only parameters, validated by their annotations; or, where several plugins share them or one
depends on another, a class, `options: MyOptions`, made from `Options`. `eigendet plugins new detector NAME` writes an
example, `eigendet plugins check NAME` tries whether a plugin keeps this contract.

    @backbone
    def resnet(*, depth: Literal[18, 50] = 50) -> nn.Module

        A module from images (N, 3, H, W) to a dict of feature maps (N, C, H', W'), finest first. It says nothing about
        widths: `eigendet.channels` finds and changes them.

    @detector
    def faster_rcnn(backbone: nn.Module, classes: int, size: tuple[int, int], *, head_channels: int = 1024) -> nn.Module

        A module over that backbone with torchvision's calling convention: a list of images (3, H, W) in [0, 1] and, in
        training, targets with `boxes`, `labels` from 1 to `classes` (0 is background) and perhaps `masks`; a dict of
        losses comes back, or in evaluation a list of dicts with `boxes`, `labels`, `scores` and perhaps `masks`, in
        the images' own pixels. In evaluation it resizes images to `size`, (shorter, longest side); in training they
        come resized. `parts.PyramidBackbone` puts a feature pyramid over any backbone. Two attributes may say more:
        `learns_masks`, if true, asks for masks in training; `regions` says how many regions of an image a part looks
        at, by prefix of module paths, {"roi_heads": 1000}, so that multiply-accumulates are counted.

    @dataset
    def coco(*, annotations: FilePath, images: DirectoryPath) -> Detection

        What `eigendet.data` describes: `Detection` or `Classification`.

    @rule
    def dof(values: np.ndarray, *, scale: Annotated[float, Field(gt=0, examples=[1.0, 0.1, 0.01])] = 0.1) -> float

        The intrinsic dimension of a feature map, in channels, from the eigenvalues of its covariance: (C,), descending,
        none negative, the first positive. The `examples` of an option are the values over which it is compared with
        itself (`eigendet front`).

Every parameter of a network is trained: constants belong in buffers, and freezing is for the configuration to say. Keep
imports of torch inside the function: options are then checked before a workflow starts, at no cost.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
