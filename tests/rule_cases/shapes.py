"""Rows for `onnxplain_export.rules.shapes`."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from rule_cases.case import B, ints, number, refused, row, weights, x

CASES = [
    row("Identity", "3-D", x(B, 3, 4)),
    row("Dropout", "no other inputs", x(B, 3, 4)),
    row("Dropout", "ratio given", x(B, 3), number(0.3)),
    row("Dropout", "training_mode false", x(B, 3), number(0.3), np.array(False)),
    refused("Dropout", "Dropout in training mode", x(B, 3), number(0.3), np.array(True)),
    row("Cast", "to float32", x(B, 3), to=TensorProto.FLOAT),
    row("Reshape", "0 and -1", x(B, 3, 4, 2), ints(0, -1)),
    row("Reshape", "batch merged with another axis", x(B, 6, 4), ints(-1, 3, 4)),
    row("Reshape", "more axes", x(B, 6), ints(-1, 2, 3)),
    row("Flatten", "axis 1", x(B, 3, 4, 2)),
    row("Flatten", "axis 0", x(B, 3), axis=0),
    row("Flatten", "axis 3", x(B, 3, 2, 4), axis=3),
    row("Flatten", "axis -1", x(B, 3, 2, 4), axis=-1),
    row("Squeeze", "axes named", x(B, 3, 1, 1), ints(2, -1)),
    row("Squeeze", "all of size 1", x(2, 1, 3, 1)),
    row("Unsqueeze", "outermost and last", x(B, 3), ints(0, -1)),
    row("Unsqueeze", "between", x(B, 3), ints(2, 1)),
    row("Transpose", "reversed by default", x(B, 3, 4)),
    row("Transpose", "a cycle", x(B, 3, 4, 2), perm=[0, 2, 3, 1]),
    row("Transpose", "the batch moves", x(B, 3, 4), perm=[1, 2, 0]),
    row("Expand", "one axis", x(B, 3, 1), ints(1, 1, 4)),
    row("Expand", "new axes", x(3, 1), ints(2, 5, 3, 4)),
    row("Expand", "nothing to repeat", x(B, 3), ints(1, 3)),
    row("Expand", "a scalar", x(), ints(2, 3)),
    row("Concat", "three inputs, unequal", x(B, 2, 3), x(B, 4, 3), x(B, 1, 3), axis=1),
    row("Concat", "negative axis, a constant between", x(2, 2), weights(2, 3), x(2, 1), axis=-1),
    row("Concat", "along the batch", x(B, 2), x(B, 2), axis=0),
    row("Concat", "a single input", x(B, 2), axis=1),
    row("Split", "even", x(B, 4, 3), axis=1, num_outputs=2, outputs=(True, True)),
    row("Split", "uneven", x(B, 7, 3), ints(2, 4, 1), axis=1, outputs=(True, True, True)),
    row("Split", "the last part smaller", x(B, 5), axis=-1, num_outputs=2, outputs=(True, True)),
    row("Split", "unused parts", x(B, 7, 3), ints(2, 4, 1), axis=1, outputs=(False, True, False)),
    row("Split", "axis 0", x(4, 3), num_outputs=2, outputs=(True, False)),
    row("Slice", "first part", x(B, 6, 3), ints(0), ints(2), ints(1)),
    row("Slice", "negative start, huge end", x(B, 6, 3), ints(-2), ints(2**63 - 1), ints(-2)),
    row("Slice", "two axes, no axes named", x(4, 6), ints(1, 2), ints(3, -1)),
    row("Slice", "steps", x(B, 7, 5), ints(1, 0), ints(7, 5), ints(1, 2), ints(2, 3)),
    row("Slice", "backwards", x(B, 7), ints(-1), ints(-(2**62)), ints(1), ints(-1)),
    row("Slice", "backwards in steps", x(B, 7, 2), ints(10), ints(0), ints(1), ints(-2)),
    row("Slice", "along the batch", x(B, 3), ints(-1), ints(2**62), ints(0)),
    row("Slice", "along the batch in steps", x(B, 3), ints(-1), ints(-(2**62)), ints(0), ints(-1)),
    row("Slice", "all", x(B, 3), ints(0), ints(3), ints(1)),
    row("Pad", "zeros", x(B, 3, 4), ints(0, 1, 2, 0, 0, 1)),
    row("Pad", "axes named, a value", x(B, 3, 4), ints(2, 1), number(7), ints(-1)),
    row("Pad", "negative: a crop", x(B, 3, 6), ints(0, 0, -1, 0, 2, -2)),
    *[
        row("Pad", mode, x(B, 2, 4, 5), ints(2, 1, 1, 3), None, ints(2, 3), mode=mode)
        for mode in ("reflect", "edge", "wrap")
    ],
    row("Tile", "two axes", x(B, 3, 2), ints(1, 2, 3)),
    row("Tile", "nothing to repeat", x(B, 3), ints(1, 1)),
    row("DepthToSpace", "DCR", x(B, 8, 2, 3), blocksize=2),
    row("DepthToSpace", "CRD", x(B, 8, 2, 3), blocksize=2, mode="CRD"),
    row("SpaceToDepth", "2x2", x(B, 2, 4, 6), blocksize=2),
    row("Trilu", "upper", x(B, 4, 4)),
    row("Trilu", "lower, shifted", x(B, 3, 5), np.array(1), upper=0),
    row("CumSum", "plain", x(B, 5), np.array(1)),
    row("CumSum", "reverse, exclusive", x(B, 5, 2), np.array(-2), reverse=1, exclusive=1),
]
