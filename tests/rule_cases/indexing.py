"""Rows for `onnxplain_export.rules.indexing`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, Fed, fed, ints, row, x

CASES = [
    row("Gather", "repeated and negative indices", x(B, 5, 3), ints(1, -1, 1, 4), axis=1),
    row("Gather", "scalar index", x(B, 5, 3), np.array(2), axis=1),
    row("Gather", "indices of two axes", x(B, 3, 5), np.array([[0, 4, 0], [-5, 2, 0]]), axis=2),
    row("Gather", "last axis by a negative number", x(B, 2, 5), ints(3, 3), axis=-1),
    row("Gather", "axis 0 by default", x(4, 3), np.array([[1, 1], [-1, 0]])),
    row("Gather", "int32 indices", x(B, 5), np.array([-1, 0, 0], np.int32), axis=1),
    row("Gather", "a single index", x(B, 5, 2, 2), ints(0), axis=1),
    row("GatherElements", "repeated and negative", x(2, 4), np.array([[0, 0, -1], [3, 1, 1]]), axis=1),
    row("GatherElements", "axis 0 by default", x(3, 2), np.array([[2, 2], [0, 2]])),
    row("GatherElements", "fewer rows than x", x(3, 4), np.array([[0, 2, 2]]), axis=-1),
    row("GatherElements", "indices computed", x(2, 4), Fed(np.array([[0, 0, -1], [3, 1, 1]])), axis=1),
    row("TopK", "largest", x(B, 7), ints(3), outputs=(True, False)),
    row("TopK", "smallest, axis 1", x(B, 5, 2), ints(2), axis=1, largest=0, outputs=(True, False)),
    row("GatherND", "slices", x(3, 4, 2), np.array([[0, 1], [2, -1], [0, 1]])),
    row(
        "GatherND",
        "two batch axes",
        x(2, 3, 4, 2),
        np.array([[[1], [0], [3]], [[2], [2], [0]]]),
        batch_dims=2,
    ),
    row("GatherND", "an axis before a dynamic one", x(3, B, 2), np.array([[0], [2], [0]])),
    row("GatherND", "indices computed", x(3, 4, 2), Fed(np.array([[0, 1], [2, -1], [0, 1]]))),
    row("GatherND", "elements", x(3, 4), np.array([[[0, 1]], [[2, 3]]])),
    row("GatherND", "within a batch", x(2, 3, 4), np.array([[1, 0], [2, 2]])[..., None], batch_dims=1),
    row("Gather", "one after another", x(B, 5, 2), ints(1, 2, 3), axis=1),
    row("Gather", "all", x(B, 3, 2), ints(0, 1, 2), axis=1),
    row("Gather", "another order", x(B, 4), ints(2, 0, -1, 1), axis=-1),
    row("Gather", "more copies than a table holds", x(B, 3, 2), ints(0, 0, 0, 2, 0, 0, 0, 0), axis=1),
    row("Gather", "along the batch", x(B, 3), ints(-1, 0, 0), axis=0),
    row("Gather", "indices computed", x(B, 5, 2), fed(1, -1, 1), axis=1),
    row("Gather", "an index computed", x(B, 5, 2), Fed(np.array(-2)), axis=1),
    row("Gather", "indices of two axes computed", x(B, 3, 5), Fed(np.array([[0, 4], [-5, 0]])), axis=-1),
    row("Compress", "an axis", x(B, 5, 2), np.array([True, False, True, True, False]), axis=1),
    row("Compress", "a short condition", x(B, 5), np.array([False, True]), axis=-1),
    row("Compress", "no axis", x(2, 3), np.array([False, True, True, False, True])),
    row("Compress", "no axis, a dynamic size", x(B, 3), np.array([True, False, True])),
    row("ReverseSequence", "time first by default", x(4, 2, 3), ints(3, 4)),
    row("ReverseSequence", "batch first", x(2, 4), ints(1, 3), batch_axis=0, time_axis=1),
]
