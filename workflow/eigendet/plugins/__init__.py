"""The contract of plugins: what backbones, detectors, data sets, width rules and allocators must do.

A plugin is a function. Its name is the plugin's name, and the first line of its docstring the summary that
`eigendet plugins` lists. It stands in a file of a plugin folder, with one of the marks `backbone`, `detector`,
`dataset`, `rule` and `allocator`; or an installed package names it as an entry point of the group `eigendet.backbones`,
`eigendet.detectors`, `eigendet.datasets`, `eigendet.rules` or `eigendet.allocators`.

The options of a plugin are its keyword-only parameters; their annotations say what each accepts, and a configuration is
checked against these before anything runs. Where plugins share options, or options depend on one another, they are a
class made from `Options`: the plugin then has one keyword-only parameter, `options: MyOptions`.

    @backbone
    def resnet(*, depth: Literal[18, 50] = 50) -> nn.Module

        Returns a module that takes images (N, 3, H, W) and returns a dict of feature maps (N, C, H', W') by name, the
        finest first. It need not say how its widths may change: `eigendet.channels` finds that out.

    @detector
    def faster_rcnn(backbone: nn.Module, classes: int, size: tuple[int, int], *, head_channels: int = 1024) -> nn.Module

        Returns a module over that backbone which is called as torchvision's detectors are. In training it takes a list
        of images (3, H, W) in [0, 1] and for each image a dict of `boxes` (n, 4) and `labels` from 1 to `classes` (0 is
        background); it returns a dict of losses. In evaluation it takes the images alone and returns for each a dict of
        `boxes`, `labels` and `scores` from 0 to 1. Boxes are left, top, right, bottom, in the image's own pixels. In
        training images come resized; in evaluation the module itself resizes them to `size`, (shorter, longest side).

        Two attributes of the module are read, if it has them. `learns_masks`: if true, it gets `masks` in training and
        gives `masks` (n, 1, H, W) in evaluation. `regions`: how many regions of an image a part looks at, by prefix of
        module paths, like {"roi_heads": 1000}; multiply-accumulates are counted by it. `eigendet.networks.parts` has
        what most detectors need, such as a feature pyramid over any backbone.

    @dataset
    def coco(*, annotations: FilePath, images: DirectoryPath) -> Detection

        Returns `eigendet.data.Detection`, images with boxes, or `eigendet.data.Classification`, images with a class.

    @rule
    def dof(values: np.ndarray, *, scale: Annotated[float, Field(gt=0, examples=[1.0, 0.1, 0.01])] = 0.1) -> float

        Returns the intrinsic dimension of a feature map, a number of channels. `values` are the eigenvalues of its
        covariance, (C,): descending, none negative, the first positive. `eigendet front` compares the rule with itself
        over the `examples` of its first option that has any. A rule whose dimension depends on how large maps are says
        so: `@rule(in_units=True)`.

    @allocator
    def proportional(groups: Sequence[GroupView], budget: Budget) -> dict[str, float]

        Returns the target width of every group by its name: none negative. What the caps do not afford is scaled down,
        all alike, and then rounded, by the library. `groups` are `eigendet.widths.views.GroupView`: the eigenvalues of
        every map that the group has, in every seed, the dimension that the experiment's rule finds, the reference's
        width, and what a channel costs. `budget`, an `eigendet.widths.allocation.Budget`, says what any widths cost and
        scales weights to the largest widths that it affords. With `@allocator(needs=("covariance", "gradients",
        "kernels", "history"))`, or some of these, the view holds the covariance of each map, the second moment of the
        loss's gradient there, the kernels of the layers that read the group, and the singular values of those that read
        or write it at every snapshot.

The parameters of a network are all trained, so what is constant belongs in a buffer, and freezing is for the
configuration to say. They are registered with their module, not kept in a plain list; the losses reach all those of the
backbone. Maps and losses are finite. A state dict holds all state, and one seed of torch's generator gives one network.

Import torch inside the function: options are then checked before a workflow starts, without waiting for it.
`eigendet plugins new KIND NAME` writes an example and its test, `eigendet plugins check NAME` tries whether a plugin
keeps this contract, and `eigendet.testing` has the same checks for the tests of a package.

The modules behind it:

markers         the marks
discovery       which plugins there are, without importing any
importing       the function of a plugin, and whose code failed
options         what the options of a plugin accept
loading         the plugin that a configuration names, with its options
dependencies    what each stage of an experiment reads
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
