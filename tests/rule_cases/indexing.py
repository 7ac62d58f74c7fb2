"""Rows for `onnxplain_export.rules.indexing`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, ints, row, x

CASES = [
    row("Gather", "scalar index", x(B, 5, 3), np.array(2), axis=1),
    row("Gather", "repeated and negative indices", x(B, 5, 3), ints(1, -1, 1, 4), axis=1),
    row("Gather", "indices of two axes", x(B, 3, 5), np.array([[0, 4, 0], [-5, 2, 0]]), axis=2),
    row("Gather", "last axis by a negative number", x(B, 2, 5), ints(3, 3), axis=-1),
    row("Gather", "axis 0 by default", x(4, 3), np.array([[1, 1], [-1, 0]])),
    row("Gather", "int32 indices", x(B, 5), np.array([-1, 0, 0], np.int32), axis=1),
    row("Gather", "a single index", x(B, 5, 2, 2), ints(0), axis=1),
]
