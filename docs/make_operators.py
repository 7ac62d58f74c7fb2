"""Write docs/operators.md: which operators have a gradient rule, from the table of rules itself.

Run: python docs/make_operators.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from onnxplain_export.rules import NO_GRADIENT, RULES

PAGE = Path(__file__).with_name("operators.md")
TEXT = """\
# Operators

The operators that can stand between a layer and the logits, and the gradient that their rules emit: g is that
of the output, d of an input. Models of other opsets are brought to opset 20 first. The table is written by
`python docs/make_operators.py` from the rules in `export/onnxplain_export/rules/`.

| operator | gradient | file |
|---|---|---|
{rows}

{count} operators. Of {steps} the output is a step function: through them no gradient flows. What computes no
floating-point value (Shape, Equal, ArgMax and the like) may be anywhere.

Behind a layer the gradient can be infinite, as that of a square root at 0. What comes back through the
zeros that an operator made is 0 all the same, as in PyTorch: of a ReLU, a bound, a mask, a maximum, a
padding. By a zero that is a number (the slope of abs(x) at 0, a LeakyRelu's of 0, a sigmoid's where it is
1) PyTorch multiplies, and so do the rules: there the gradient is NaN. Two of PyTorch's NaNs are numbers
here: beside the maximum of `amax`, and at the edges of linear interpolation.

An operator that is missing stops the export with its name, its node and the module that it came from.
"""


def page() -> str:
    """Return the page's text."""
    rows = [
        f"| {operator} | {_formula(operator)} | `{entry.rule.__module__.rpartition('.')[2]}.py` |"
        for operator, entry in sorted(RULES.items())
    ]
    steps = ", ".join(sorted(NO_GRADIENT))
    return TEXT.format(rows="\n".join(rows), count=len(RULES), steps=steps)


def _formula(operator: str) -> str:
    text = inspect.getdoc(RULES[operator].rule)
    if text is None:
        raise ValueError(f"the rule of {operator} has no docstring")
    formula = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
    return formula if formula.endswith("...") else formula.removesuffix(".")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(RULES)} operators", file=sys.stderr)
