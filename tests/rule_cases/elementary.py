"""Rows for `onnxplain_export.rules.elementary`."""

from __future__ import annotations

from rule_cases.case import B, between, row, x

CASES = [
    row("Abs", "3-D", x(B, 3, 4)),
    row("Exp", "2-D", x(B, 5)),
    row("Log", "2-D", between(0.3, 3, B, 5)),
    row("Sqrt", "4-D", between(0.3, 3, B, 2, 3, 2)),
    row("Reciprocal", "positive", between(0.5, 2, B, 5)),
    row("Reciprocal", "negative", between(-2, -0.5, B, 5)),
    row("Sin", "2-D", x(B, 5)),
    row("Cos", "2-D", x(B, 5)),
    row("Tan", "2-D", between(-1.2, 1.2, B, 5)),
    row("Asin", "2-D", between(-0.9, 0.9, B, 5)),
    row("Acos", "2-D", between(-0.9, 0.9, B, 5)),
    row("Atan", "2-D", x(B, 5)),
    row("Sinh", "2-D", x(B, 5)),
    row("Cosh", "2-D", x(B, 5)),
    row("Asinh", "2-D", x(B, 5)),
    row("Acosh", "2-D", between(1.2, 3, B, 5)),
    row("Atanh", "2-D", between(-0.9, 0.9, B, 5)),
    row("Softsign", "3-D", x(B, 3, 4)),
    row("Softplus", "3-D", x(B, 3, 4)),
    row("Erf", "3-D", x(B, 3, 4)),
]
