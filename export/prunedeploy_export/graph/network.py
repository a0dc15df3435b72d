"""What an exporter needs to know of a network.

This package does not import the one that defines the networks, so it says here which attributes it reads.
`prunedeploy.models.FoldedDarknet` has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor


class Blur(Protocol):
    """A fixed blur of every channel, once or twice a mean of 2 x 2."""

    @property
    def size(self) -> int:
        """2: one mean; 3: two, the first with steps of 1 and a zero around the map."""

    @property
    def strides(self) -> tuple[int, int]:
        """Steps of the last mean down and across."""


class Layer(Protocol):
    """One layer; ``kind`` says which of the protocols below it follows as well."""

    @property
    def index(self) -> int:
        """Position in the network, from 0."""

    @property
    def kind(self) -> str:
        """The section's name in a cfg, which `sections` and `heads` know what to do with."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the layers it reads; -1 is the image."""

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""


class Windowed(Layer, Protocol):
    """A layer that moves a window over its input."""

    @property
    def size(self) -> int:
        """Side of the kernel or window."""

    @property
    def padding(self) -> int:
        """Of a convolution: zeros on each side. Of a pooling: cells in all, ``padding // 2`` left and top."""


class Strided(Windowed, Protocol):
    """A window with options of its own for both steps."""

    @property
    def strides(self) -> tuple[int, int]:
        """Its steps down and across."""

    @property
    def blur(self) -> Blur | None:
        """What stands behind it."""


class Convolutional(Strided, Protocol):
    """Convolution with bias, then an activation."""

    @property
    def dilation(self) -> int:
        """Distance of neighbouring kernel cells."""

    @property
    def groups(self) -> int:
        """Number of independent convolutions side by side."""

    @property
    def activation(self) -> str:
        """A name that `activations` knows."""


class Maxpool(Strided, Protocol):
    """Max pooling."""

    @property
    def depth(self) -> bool:
        """Whether the maximum is over channels: of C that are left, channel g is that of g, g + C, g + 2 C..."""


class Avgpool(Layer, Protocol):
    """The mean over the whole map."""


class LocalAvgpool(Windowed, Protocol):
    """Average pooling; cells of the padding do not count."""

    @property
    def strides(self) -> tuple[int, int]:
        """Its steps down and across."""

    @property
    def stride(self) -> int:
        """Its step, both ways."""


class Upsample(Layer, Protocol):
    """Nearest-neighbour upsampling, or means of blocks, times a factor."""

    @property
    def stride(self) -> int:
        """Side of the block that a cell becomes, or that becomes a cell."""

    @property
    def reverse(self) -> bool:
        """Whether blocks become cells."""

    @property
    def factor(self) -> float:
        """What every value, or the mean of a block, is multiplied by."""


class Route(Layer, Protocol):
    """Concatenation of one part of each input."""

    @property
    def groups(self) -> int:
        """Into how many parts the channels of each input are cut."""

    @property
    def group_id(self) -> int:
        """Which part is taken."""


class Shortcut(Layer, Protocol):
    """Sum of inputs, each as far as its channels and those of the first one go, then an activation."""

    @property
    def activation(self) -> str:
        """As of a convolution."""

    def factors(self, weights: Mapping[str, Tensor]) -> Tensor | None:
        """What the channels of each input are multiplied by, ``(inputs, channels)``; None: nothing."""


class Product(Layer, Protocol):
    """Product of two inputs, one of which may have one channel, or one cell, for all; then an activation."""

    @property
    def activation(self) -> str:
        """As of a convolution."""


class Rearranging(Layer, Protocol):
    """Space to depth, or depth to space."""

    @property
    def stride(self) -> int:
        """Side of the blocks."""

    @property
    def reverse(self) -> bool:
        """Depth to space."""

    @property
    def odd(self) -> bool:
        """In Darknet's odd order: between maps of ``stride`` times the side, one of ``stride ** 2`` channels each."""


class Attention(Layer, Protocol):
    """Self-attention over the cells of a map: inputs are queries, keys and values."""

    @property
    def heads(self) -> int:
        """Into how many parts the channels of each input are cut."""

    @property
    def scale(self) -> float:
        """Factor of the products of queries and keys."""


class Head(Layer, Protocol):
    """Detection head: decodes its input of ``A * V`` channels, V numbers for each of A predictions per cell."""

    @property
    def head_anchors_wh(self) -> tuple[tuple[float, float], ...]:
        """The A anchors, (width, height) in input pixels."""

    @property
    def classes(self) -> int:
        """C, the number of classes."""

    @property
    def prediction_count(self) -> int:
        """How many predictions it makes: ``A * H * W``."""

    @property
    def decoding(self) -> str:
        """How it is decoded, which `heads` knows; more than ``kind`` where options of the section matter."""


class Yolo(Head, Protocol):
    """YOLOv3's, v4's and v7's: V = 5 + C, independent probabilities."""

    @property
    def scale_x_y(self) -> float:
        """Stretch of the centre's logistic around 0.5."""


class GaussianYolo(Head, Protocol):
    """Gaussian YOLOv3's: V = 9 + C, mean and deviation of each number of the box."""

    @property
    def scale_x_y(self) -> float:
        """Stretch of the centre's logistic around 0.5."""


class Region(Head, Protocol):
    """YOLOv2's: V = 5 + C."""

    @property
    def softmax(self) -> bool:
        """Whether classes are exclusive."""


class Cfg(Protocol):
    """The layer graph."""

    @property
    def layers(self) -> Sequence[Layer]:
        """All layers, each after those it reads."""

    @property
    def heads(self) -> Sequence[Head]:
        """The detection heads among them, in order."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of the image."""

    @property
    def letterbox(self) -> bool:
        """Whether images are letterboxed to that size, or stretched."""

    @property
    def classes(self) -> int:
        """Number of classes."""


class Network(Protocol):
    """A layer graph and its weights, batch normalisation folded into them."""

    @property
    def cfg(self) -> Cfg:
        """The layer graph."""

    @property
    def folded(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        """By layer index: weight ``(filters, in / groups, size, size)`` and bias ``(filters,)``."""

    @property
    def weights(self) -> Mapping[int, Mapping[str, Tensor]]:
        """The weights of layers that are no convolutions, by layer index and name."""
