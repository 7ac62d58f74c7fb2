"""Products of matrices that leave the other threads alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_PRODUCT = 250_000
"""Multiplications of a product that numpy's OpenBLAS computes on the caller's thread.

For a larger one it wakes threads of its own, which wait for each other spinning: with a picture on each core,
an explanation then takes half as long again.
"""


def product(left: NDArray[np.floating[Any]], right: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return ``left @ right``, [..., m, k] times [..., k, n], computed on the caller's thread.

    It takes so many columns at once as make a small product. The axes before are those of `right`.
    """
    whole = np.empty((*right.shape[:-2], left.shape[-2], right.shape[-1]), np.result_type(left, right))
    columns = max(1, SMALL_PRODUCT // max(1, left.shape[-2] * left.shape[-1]))
    for first in range(0, right.shape[-1], columns):
        part = slice(first, first + columns)
        np.matmul(left, right[..., part], out=whole[..., part])
    return whole
