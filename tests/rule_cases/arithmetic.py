"""Rows for `onnxplain_export.rules.arithmetic`."""

from __future__ import annotations

from rule_cases.case import B, number, positive, row, weights, x

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
]
