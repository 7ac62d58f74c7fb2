"""Rows for `onnxplain_export.rules.scattering`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, Case, Fed, Input, between, ints, number, row, weights, x

ONE_EACH = np.array([[0, -1], [2, 1]])
REPEATED = np.array([[0, 2], [0, -1]])
ROWS = np.array([[2], [-2], [2]])


def reduced(operator: str, reduction: str, *inputs: Input) -> Case:
    return row(operator, reduction, *inputs, reduction=reduction)


CASES = [
    row("ScatterElements", "put", x(2, 4), ONE_EACH, x(2, 2), axis=1),
    row("ScatterElements", "put, a negative axis", x(2, 4), ONE_EACH, x(2, 2), axis=-1),
    row("ScatterElements", "put, axis 0 by default", x(3, 2), np.array([[1, -1]]), x(1, 2)),
    row("ScatterElements", "put into constants", weights(2, 4), ONE_EACH, x(2, 2), axis=1),
    row("ScatterElements", "constants put", x(B, 4, 3), np.array([[[1, 3, 0]]]), weights(1, 1, 3), axis=1),
    row("ScatterElements", "indices computed", x(2, 4), Fed(ONE_EACH), x(2, 2), axis=1),
    *[
        reduced("ScatterElements", reduction, x(3, 2), REPEATED, x(2, 2))
        for reduction in ("add", "mul", "max", "min")
    ],
    row("ScatterElements", "times zero", x(3), ints(1, 0), np.array([0, 2], np.float32), reduction="mul"),
    row("ScatterElements", "times zeros", x(3), ints(0, 0, 2), between(0.0, 0.0, 3), reduction="mul"),
    row("ScatterND", "put", x(4, 3), np.array([[1], [-1]]), x(2, 3)),
    row("ScatterND", "put, along the batch", x(3, B, 2), ints(1), x(B, 2)),
    row("ScatterND", "elements put", x(4, 3), np.array([[[1, 0], [2, -1]]]), x(1, 2)),
    row("ScatterND", "an element put", x(4, 3), ints(2, 1), x()),
    row("ScatterND", "a number put", x(4, 3), ints(2, 1), number(3.0)),
    row("ScatterND", "indices computed", x(4, 3), Fed(np.array([[1], [-1]])), x(2, 3)),
    *[reduced("ScatterND", reduction, x(4, 3), ROWS, x(3, 3)) for reduction in ("add", "mul", "max", "min")],
]
