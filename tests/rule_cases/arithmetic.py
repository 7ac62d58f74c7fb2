"""Rows for `onnxplain_export.rules.arithmetic`."""

from __future__ import annotations

import numpy as np

from rule_cases.case import B, between, ints, number, positive, row, weights, x

CASES = [
    row("Add", "equal shapes", x(B, 3, 4), x(B, 3, 4)),
    row("Add", "a channel's constant", x(B, 3, 2, 2), weights(3, 1, 1)),
    row("Add", "broadcast both ways", x(B, 1, 4), x(3, 1)),
    row("Add", "a scalar", x(B, 3), x()),
    row("Sub", "both", x(B, 3, 4), x(1, 3, 4)),
    row("Sub", "constant first", number(1), x(B, 3)),
    row("Mul", "both", x(B, 3, 4), x(B, 3, 4)),
    row("Mul", "squeeze and excite", x(B, 3, 4, 5), x(B, 3, 1, 1)),
    row("Mul", "fewer axes", x(4), x(B, 3, 4)),
    row("Div", "both", x(B, 3, 4), positive(B, 3, 4)),
    row("Div", "broadcast divisor", x(B, 3, 4), positive(B, 3, 1)),
    row("Div", "broadcast dividend", x(1), positive(B, 3)),
    row("Neg", "2-D", x(B, 3)),
    row("Pow", "a square", x(B, 3, 4), number(2)),
    row("Pow", "a cube, whole", x(B, 3), ints(3)),
    row("Pow", "a fourth power", x(B, 3), number(4)),
    row("Pow", "a reciprocal", positive(B, 3), number(-1)),
    row("Pow", "generalised mean's", positive(B, 3, 4), number(2.7)),
    row("Pow", "generalised mean's root", positive(B, 3, 4), number(1 / 2.7)),
    row("Pow", "whole constants", x(B, 3), ints(2, 3, 1)),
    row("Pow", "a root", positive(B, 3), number(0.5)),
    row("Pow", "both, broadcast", positive(B, 3, 4), x(3, 1)),
    row("Pow", "constants a channel", positive(B, 3, 4), weights(3, 1)),
    row("Pow", "a constant base", number(1.7), x(B, 3)),
    row("Sum", "three, broadcast", x(B, 3, 4), x(3, 1), x(B, 1, 4)),
    row("Sum", "one", x(B, 3)),
    row("Mod", "both", x(B, 9), between(0.2, 0.4, B, 9), fmod=1),
    row("Mod", "broadcast, negative divisor", x(B, 3, 4), between(-0.4, -0.2, 3, 1), fmod=1),
    row("Mean", "three, broadcast", x(B, 3, 4), x(3, 1), x(B, 1, 4)),
    row("Max", "two, broadcast", x(B, 3, 4), x(B, 3, 1)),
    row("Max", "three", x(B, 5), x(B, 5), x(5)),
    row("Max", "a constant", x(B, 9), number(0.2)),
    row("Max", "one", x(B, 3)),
    row("Min", "two, broadcast", x(B, 3, 4), x(B, 3, 1)),
    row("Min", "a constant", x(B, 9), number(0.2)),
    row("Where", "both", np.array([[True, False, True]]), x(B, 3), x(B, 3)),
    row("Min", "three", x(B, 5), x(B, 5), x(5)),
    row("Where", "one branch", np.array([[True, False, True]]), number(0.5), x(B, 3)),
    row("Where", "broadcast", np.array([[True], [False]]), x(B, 1, 3), x()),
]
