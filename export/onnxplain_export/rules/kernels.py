"""The gradient of a convolution's weights, for networks that compute them from the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain_export.graph import operand, static_dim
from onnxplain_export.rules.registry import Op, UnsupportedCaseError
from onnxplain_export.rules.shapes import for_classes, reshape_like
from onnxplain_export.rules.windows import Window, blocks_of, known_spatial_size


@dataclass(frozen=True)
class Maps:
    """Maps on one side of a convolution: a value of the forward pass, or its gradient."""

    primal: ir.Value
    gradient: ir.Value | None = None

    @property
    def value(self) -> ir.Value:
        """The numbers, a gradient's with the classes in front."""
        return self.primal if self.gradient is None else self.gradient


def kernel_gradient(op: Op, node: ir.Node, window: Window, coarse: Maps, fine: Maps) -> ir.Value:
    """Return dw: the products of maps and of the blocks that they meet, in each group, summed over images.

    Parameters
    ----------
    coarse
        The maps that have a place for each window: a Conv's output, a ConvTranspose's input.
    fine
        The maps that the windows slide over.
    """
    groups, count = node.attributes.get_int("group", 1), _count(op, coarse.primal)
    places = op.Reshape(coarse.value, _by_group(op, coarse, groups, 1, count))
    single = op.Reshape(fine.value, op.Concat([-1, 1], op.Shape(fine.primal, start=2), axis=0))
    blocks = blocks_of(op, single, window, fine.primal)
    blocks = op.Reshape(blocks, _by_group(op, fine, groups, math.prod(window.kernel), count))
    axes = 4 if fine.gradient is None else 5
    blocks = op.Transpose(blocks, perm=[*range(axes - 2), axes - 1, axes - 2])
    # Both are [batch, groups, channels and taps, places], and one has the classes in front.
    if coarse.gradient is None:
        places = for_classes(op, places, blocks, 5)
    else:
        blocks = for_classes(op, blocks, places, 5)
    products = op.ReduceSum(op.MatMul(places, blocks), [1], keepdims=0)
    return reshape_like(op, products, operand(node, 1))


def _by_group(op: Op, maps: Maps, groups: int, taps: int, count: list[int] | ir.Value) -> ir.Value:
    """Return the shape [batch, groups, a group's channels times taps, windows], the classes first."""
    channels = static_dim(maps.primal, 1)
    if channels is None:
        raise UnsupportedCaseError(
            "convolution weights that depend on the layer, of channels only known at run time"
        )
    classes = [] if maps.gradient is None else [[-1]]
    return op.Concat(
        *classes, op.Shape(maps.primal, start=0, end=1), [groups, channels // groups * taps], count, axis=0
    )


def _count(op: Op, maps: ir.Value) -> list[int] | ir.Value:
    """Return the number of places of maps, int64 [1]: a constant where it is known."""
    size = known_spatial_size(maps)
    return op.ReduceProd(op.Shape(maps, start=2), keepdims=1) if size is None else [math.prod(size)]
