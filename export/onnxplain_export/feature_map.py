"""Feature maps and how a layer's output holds them: as maps, with the channels last, or as a row of tokens.

Whatever the layout, the file's activations and gradients are [batch, channels, height, width]. Folding is
done in the graph, and in numpy where verification meets the layer's own layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain.manifest import Layer
from onnxplain_export.rules.registry import Op

Array = npt.NDArray[Any]
Layout = Literal["NCHW", "NHWC", "BNC"]

# Class, distillation and register tokens, which stand before or behind those of the grid.
MOST_OTHER_TOKENS = 16


@dataclass(frozen=True)
class FeatureMap:
    """The feature maps in a layer's output of one image."""

    channels: int
    height: int
    width: int
    layout: Layout = "NCHW"
    prefix: int = 0
    """How many tokens before the grid's are dropped; only tokens (BNC) have any."""
    suffix: int = 0
    """And how many behind them."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def rank(self) -> int:
        """The rank of the layer's output."""
        return 3 if self.layout == "BNC" else 4

    @property
    def tokens(self) -> Mapping[str, Any] | None:
        """The manifest's entry: None for maps that need no folding."""
        if self.layout == "NCHW":
            return None
        if self.layout == "NHWC":
            return {"layout": self.layout}
        return {
            "layout": self.layout,
            "prefix": self.prefix,
            **({"suffix": self.suffix} if self.suffix else {}),
        }

    @classmethod
    def of_layer(cls, layer: Layer) -> FeatureMap:
        """Read a manifest's layer."""
        tokens = layer.tokens or {}
        layout = cast("Layout", tokens.get("layout", "NCHW"))
        ends = (int(tokens.get(end, 0)) for end in ("prefix", "suffix"))
        return cls(layer.channels, layer.height, layer.width, layout, *ends)

    def emit_fold(self, op: Op, value: ir.Value, leading: int, size: ir.Value | None = None) -> ir.Value:
        """Emit nodes that fold a value [*leading, *layout] to [*leading, channels, height, width].

        Parameters
        ----------
        leading
            How many axes come first: the batch, or the batch and the classes.
        size
            Height and width of the grid that tokens are folded to, where they are only known at run time.
        """
        first = list(range(leading))
        if self.layout == "NHWC":
            return op.Transpose(value, perm=[*first, leading + 2, leading, leading + 1])
        if self.layout == "BNC":
            if self.prefix or self.suffix:
                end = -self.suffix or np.iinfo(np.int64).max
                value = op.Slice(value, [self.prefix], [end], [leading])
            value = op.Transpose(value, perm=[*first, leading + 1, leading])
            grid = [[self.channels, *self.size]] if size is None else [[self.channels], size]
            shape = op.Concat(op.Shape(value, start=0, end=leading), *grid, axis=0)
            return op.Reshape(value, shape, allowzero=1)
        return value

    def unfolded(self, folded: ir.Value) -> ir.Value:
        """Return the value that `emit_fold` folded to another."""
        steps = {"NCHW": 0, "NHWC": 1, "BNC": 3 if self.prefix or self.suffix else 2}[self.layout]
        for _ in range(steps):
            producer = folded.producer()
            if producer is None or producer.inputs[0] is None:
                raise ValueError(f"{folded.name!r} is not folded as the manifest says")
            folded = producer.inputs[0]
        return folded

    def fold(self, array: Array) -> Array:
        """Fold an array [..., *layout] to [..., channels, height, width]."""
        if self.layout == "NHWC":
            return np.moveaxis(array, -1, -3)
        if self.layout == "BNC":
            places = array[..., self.prefix : self.prefix + self.height * self.width, :].swapaxes(-1, -2)
            return places.reshape(*places.shape[:-1], self.height, self.width)
        return array

    def unfold(self, array: Array) -> Array:
        """Lay an array [..., channels, height, width] out as the layer does, zeros for other tokens."""
        if self.layout == "NHWC":
            return np.moveaxis(array, -3, -1)
        if self.layout == "BNC":
            places = array.reshape(*array.shape[:-2], -1).swapaxes(-1, -2)
            pads = [(0, 0)] * (places.ndim - 2) + [(self.prefix, self.suffix), (0, 0)]
            return np.pad(places, pads)
        return array


def feature_map_of(
    shape: Sequence[int], image_size: tuple[int, int], grids: Iterable[tuple[int, int]]
) -> FeatureMap | None:
    """Say how a layer's output is read as feature maps; None where it has no spatial extent.

    A row of tokens is read so where their number fits. Whether they stand for places, and which of them, is
    for `Places` to say; here the others are taken to come first.

    Parameters
    ----------
    shape
        Of the output, the batch first.
    image_size
        Height and width of the network's input.
    grids
        The sizes that a row of tokens may be folded to, as those of the patch embedding's maps.
    """
    if len(shape) == 4 and shape[1] * shape[2] * shape[3] > 0:
        _, first, second, third = shape
        is_last = _misfit((first, second), image_size) < _misfit((second, third), image_size)
        if is_last and has_aspect((first, second), image_size):
            return FeatureMap(third, first, second, "NHWC") if first * second > 1 else None
        return FeatureMap(first, second, third) if second * third > 1 else None
    if len(shape) == 3:
        fits = [
            (shape[1] - height * width, height, width)
            for height, width in grids
            if 0 <= shape[1] - height * width <= MOST_OTHER_TOKENS and height * width > 1
        ]
        if fits:
            prefix, height, width = min(fits)
            return FeatureMap(shape[2], height, width, "BNC", prefix)
    return None


def token_grids(maps: Iterable[tuple[int, int]], image_size: tuple[int, int]) -> set[tuple[int, int]]:
    """Return the sizes of a network's maps of the image's aspect, and what halving them gives.

    A network without such maps cuts its image into patches by a reshape: any even division will do.
    """
    found = {size for size in maps if has_aspect(size, image_size)}
    if not found:
        height, width = image_size
        patches = range(2, min(image_size))
        return {(height // side, width // side) for side in patches if height % side == width % side == 0}
    for height, width in list(found):
        while min(height, width) > 2:
            height, width = -(-height // 2), -(-width // 2)
            found.add((height, width))
    return found


def has_aspect(size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Say whether a map's sides are in the image's proportion, up to the rounding of one of them."""
    fits = size[0] <= image_size[0] and size[1] <= image_size[1]
    return fits and _misfit(size, image_size) < max(image_size)


def _misfit(size: tuple[int, int], image_size: tuple[int, int]) -> int:
    return abs(size[0] * image_size[1] - size[1] * image_size[0])
