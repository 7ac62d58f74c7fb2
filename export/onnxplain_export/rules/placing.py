"""Putting the elements of a gradient back to the places of an axis that they were taken from.

Where the places are constants, each place of the result gathers what belongs to it: blocks are copied, where
ScatterElements would go from element to element and read an index for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain_export.graph import rank, static_dim
from onnxplain_export.rules.registry import Op, constant_like

#: To how many copies of one place a table of constants is worth it.
_MOST_COPIES = 4


def put_back(
    op: Op, gradient: ir.Value, x: ir.Value, axis: int, places: ir.Value | npt.NDArray[Any]
) -> ir.Value:
    """Return the gradient of x, of which the places along an axis were copied to an output one by one.

    Parameters
    ----------
    gradient
        That of the output, [classes, ...].
    axis
        Counted from 0 in x; the classes come before it.
    places
        int64 [n], from 0 on; an array may also count from the end.
    """
    if isinstance(places, np.ndarray):
        size = static_dim(x, axis)
        if size is not None:
            places = places % size
            found = _pad(op, gradient, x, axis, places, size)
            found = _gather(op, gradient, x, axis, places, size) if found is None else found
            if found is not None:
                return found
        places = op.Constant(value=ir.tensor(places.astype(np.int64)))
        if size is None:
            length = op.Shape(x, start=axis, end=axis + 1)
            places = op.Where(op.Less(places, 0), op.Add(places, length), places)
    return _scatter(op, gradient, x, axis, places)


def _pad(
    op: Op, gradient: ir.Value, x: ir.Value, axis: int, places: npt.NDArray[Any], size: int
) -> ir.Value | None:
    """Put zeros around places that stand one after another."""
    count = len(places)
    if not count or not np.array_equal(places, np.arange(places[0], places[0] + count)):
        return None
    if count == size:
        return gradient
    return pad_axes(op, gradient, x, [int(places[0]), size - count - int(places[0])], [axis])


def pad_axes(
    op: Op, gradient: ir.Value, x: ir.Value, widths: list[int] | ir.Value, axes: list[int] | ir.Value
) -> ir.Value:
    """Put zeros around some axes of a gradient, or crop them where widths are negative.

    A Pad could name the axes, but then onnxruntime's optimizer (1.32) can't move a Transpose past it, tries
    to, and the model fails.

    Parameters
    ----------
    x
        What the gradient belongs to, with as many axes.
    widths
        Those before each axis, then those behind: int64 [2 * len(axes)].
    axes
        Counted from 0 in x, int64 [n] where they are computed; the classes come before them.
    """
    count = rank(x) + 1
    if isinstance(axes, list) and isinstance(widths, list):
        every = np.zeros((2, count), np.int64)
        every[:, [axis + 1 for axis in axes]] = np.reshape(widths, (2, -1))
        return op.Pad(gradient, every.reshape(-1).tolist())
    if isinstance(axes, list):
        places: list[int] | ir.Value = [start + axis + 1 for start in (0, count) for axis in axes]
    else:
        places = op.Concat(op.Add(axes, 1), op.Add(axes, count + 1), axis=0)
    return op.Pad(gradient, op.ScatterElements([0] * (2 * count), places, widths))


def _gather(
    op: Op, gradient: ir.Value, x: ir.Value, axis: int, places: npt.NDArray[Any], size: int
) -> ir.Value | None:
    """Let each place gather its copies: a zero behind the others stands for a copy that isn't there."""
    count = len(places)
    copies = [np.flatnonzero(places == place) for place in range(size)]
    most = max(map(len, copies), default=0)
    if not 0 < most <= _MOST_COPIES:
        return None
    table = np.full((size, most), count)
    for row, found in zip(table, copies, strict=True):
        row[: len(found)] = found
    if (table == count).any():
        gradient = pad_axes(op, gradient, x, [0, 1], [axis])
    if most == 1:
        return op.Gather(gradient, table[:, 0].tolist(), axis=axis + 1)
    indices = op.Constant(value=ir.tensor(table.astype(np.int64)))
    return op.ReduceSum(op.Gather(gradient, indices, axis=axis + 1), [axis + 2], keepdims=0)


def _scatter(op: Op, gradient: ir.Value, x: ir.Value, axis: int, places: ir.Value) -> ir.Value:
    before, after = op.Shape(gradient, start=0, end=axis + 1), op.Shape(gradient, start=axis + 2)
    shape = op.Concat(before, op.Shape(x, start=axis, end=axis + 1), after, axis=0)
    zeros = op.Expand(constant_like(op, 0.0, x), shape)
    places = op.Reshape(places, [-1] + [1] * (rank(x) - axis - 1))
    places = op.Expand(places, op.Shape(gradient))
    return op.ScatterElements(zeros, places, gradient, axis=axis + 1, reduction="add")


def numbers_to(op: Op, length: ir.Value) -> ir.Value:
    """Return 0, 1, ... up to a length that is only known at run time, a scalar."""
    return op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1))
