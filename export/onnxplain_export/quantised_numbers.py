"""Whole numbers and the numbers that they stand for, in numpy."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


def dequantised(numbers: Array, scale: Array, zero: Array | None, axis: int) -> Array:
    """Return ``scale (numbers - zero)``, with one scale or with one for each place along an axis."""
    counted = numbers.astype(scale.dtype)
    if zero is not None:
        counted = counted - along(zero, counted, axis)
    result: Array = counted * along(scale, counted, axis)
    return result


def along(parameter: Array, numbers: Array, axis: int) -> Array:
    """Return a scale or zero point in the type of some numbers and in a shape that broadcasts with theirs."""
    shape = [1] * numbers.ndim
    if parameter.size > 1:
        shape[axis] = parameter.size
    return parameter.astype(numbers.dtype).reshape(shape)
