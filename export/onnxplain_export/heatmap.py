"""The heatmap as nodes of the graph: minmax(resize(ReLU(map))), as `onnxplain.heatmap` computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxplain.heatmap import interpolation
from onnxplain_export.graph import static_dim
from onnxplain_export.rules.registry import Op

#: ``weights(map)`` returns the bilinear weights [pixels, cells] along one side of an image.
Weights = Callable[[ir.Value], ir.Value]


def heatmap(op: Op, maps: Sequence[ir.Value], rows: Weights, columns: Weights) -> ir.Value:
    """Emit heatmaps in [0, 1], [batch, classes, height, width]; of several layers the mean of all.

    Parameters
    ----------
    maps
        One a layer, each [batch, classes, h, w] with sizes of its own.
    rows, columns
        How the cells of a map are spread over the image. A resize by two matrix products: exact, and at hand
        on every engine.
    """
    resized = []
    for map_ in maps:
        cells = _stretched(op, op.Relu(map_))
        # Weights stand on the right, and onnxruntime fuses such turns with no product: without classes these
        # are stacks of no matrices, at which it fails before 1.32, and up to 1.26 ends the process.
        across = op.Transpose(cells, perm=[0, 3, 1, 2])
        down = op.Transpose(_spread(op, across, rows(map_)), perm=[0, 2, 3, 1])
        resized.append(_spread(op, down, columns(map_)))
    return _stretched(op, op.Sum(*resized) if len(resized) > 1 else resized[0])


def _spread(op: Op, cells: ir.Value, weights: ir.Value) -> ir.Value:
    """Emit cells along the last axis spread over the pixels of a side."""
    return op.MatMul(cells, op.Transpose(weights, perm=[1, 0]))


def sides_of(op: Op, image: ir.Value) -> tuple[Weights, Weights]:
    """Return the weights of maps that cover an image [batch, channels, height, width]."""
    return _side(op, image, 2), _side(op, image, 3)


def _side(op: Op, image: ir.Value, axis: int) -> Weights:
    length = static_dim(image, axis)

    def weights(map_: ir.Value) -> ir.Value:
        cells = static_dim(map_, axis)
        if length is not None and cells is not None:
            constant = interpolation(cells, 0, length, range(length))
            return op.Constant(value=ir.tensor(constant))
        pixels = op.Squeeze(op.Shape(image, start=axis, end=axis + 1), [0])
        shares = op.Div(op.Add(as_float(op, op.Range(0, pixels, 1)), 0.5), as_float(op, pixels))
        return weights_at(op, shares, op.Shape(map_, start=axis, end=axis + 1))

    return weights


def weights_at(op: Op, shares: ir.Value, cells: ir.Value) -> ir.Value:
    """Emit the bilinear weights [pixels, cells] of a side, as `onnxplain.heatmap.interpolation` has them.

    Parameters
    ----------
    shares
        How far along the map the centre of each pixel lies: 0 where it begins, 1 where it ends.
    cells
        How many the map has, [1].
    """
    count = as_float(op, cells)
    centres = op.Sub(op.Mul(shares, count), 0.5)
    centres = op.Min(op.Max(centres, 0.0), op.Sub(count, 1.0))
    each = as_float(op, op.Range(0, op.Squeeze(cells, [0]), 1))
    return op.Relu(op.Sub(1.0, op.Abs(op.Sub(op.Unsqueeze(centres, [1]), each))))


def as_float(op: Op, numbers: ir.Value) -> ir.Value:
    """Emit numbers as float32."""
    return op.Cast(numbers, to=ir.DataType.FLOAT)


def _stretched(op: Op, values: ir.Value) -> ir.Value:
    """Emit values scaled to [0, 1] over height and width; all 0 where they are all the same."""
    low = op.ReduceMin(values, [2, 3], keepdims=1)
    spread = op.Sub(op.ReduceMax(values, [2, 3], keepdims=1), low)
    divisor = op.Where(op.Greater(spread, 0.0), spread, 1.0)
    return op.Div(op.Sub(values, low), divisor)
