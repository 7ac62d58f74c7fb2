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
            found = _pad(op, gradient, axis, places, size)
            found = _gather(op, gradient, x, axis, places, size) if found is None else found
            if found is not None:
                return found
        places = op.Constant(value=ir.tensor(places.astype(np.int64)))
        if size is None:
            length = op.Shape(x, start=axis, end=axis + 1)
            places = op.Where(op.Less(places, 0), op.Add(places, length), places)
    return _scatter(op, gradient, x, axis, places)


def _pad(op: Op, gradient: ir.Value, axis: int, places: npt.NDArray[Any], size: int) -> ir.Value | None:
    """Put zeros around places that stand one after another."""
    count = len(places)
    if not count or not np.array_equal(places, np.arange(places[0], places[0] + count)):
        return None
    if count == size:
        return gradient
    return op.Pad(gradient, [int(places[0]), size - count - int(places[0])], None, [axis + 1])


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
        gradient = op.Pad(gradient, [0, 1], None, [axis + 1])
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
