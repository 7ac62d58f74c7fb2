"""Elementary functions of one number, and their derivatives: a page of calculus."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxplain_export.graph import operand
from onnxplain_export.rules.registry import Op, constant_like, no_gradient, vjp

no_gradient("Ceil", "Floor", "Round", "Sign", "Hardmax")


def _of_input(operator: str, formula: str, derivative: Callable[[Op, ir.Value], ir.Value]) -> None:
    """Register dx = g f'(x), the derivative written in terms of the input."""

    def rule(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
        return op.Mul(gradient, derivative(op, operand(node, 0)))

    rule.__doc__ = formula
    vjp(operator)(rule)


def _of_output(operator: str, formula: str, derivative: Callable[[Op, ir.Value], ir.Value]) -> None:
    """Register dx = g f'(x), the derivative written in terms of the output, which is there already."""

    def rule(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
        return op.Mul(gradient, derivative(op, node.outputs[0]))

    rule.__doc__ = formula
    vjp(operator)(rule)


def _square(op: Op, x: ir.Value) -> ir.Value:
    return op.Mul(x, x)


def _inverse_root(op: Op, x: ir.Value) -> ir.Value:
    return op.Reciprocal(op.Sqrt(x))


_of_input("Abs", "y = |x|: dx = g sign(x)", lambda op, x: op.Sign(x))
_of_output("Exp", "y = exp(x): dx = g y", lambda op, y: y)
_of_input("Log", "y = log(x): dx = g / x", lambda op, x: op.Reciprocal(x))
_of_output("Sqrt", "y = sqrt(x): dx = g / (2 y)", lambda op, y: op.Div(0.5, y))
_of_output("Reciprocal", "y = 1 / x: dx = -g y²", lambda op, y: op.Neg(_square(op, y)))
_of_input("Sin", "y = sin(x): dx = g cos(x)", lambda op, x: op.Cos(x))
_of_input("Cos", "y = cos(x): dx = -g sin(x)", lambda op, x: op.Neg(op.Sin(x)))
_of_output("Tan", "y = tan(x): dx = g (1 + y²)", lambda op, y: op.Add(_square(op, y), 1.0))
_of_input(
    "Asin", "y = asin(x): dx = g / sqrt(1 - x²)", lambda op, x: _inverse_root(op, op.Sub(1.0, _square(op, x)))
)
_of_input(
    "Acos",
    "y = acos(x): dx = -g / sqrt(1 - x²)",
    lambda op, x: op.Neg(_inverse_root(op, op.Sub(1.0, _square(op, x)))),
)
_of_input("Atan", "y = atan(x): dx = g / (1 + x²)", lambda op, x: op.Reciprocal(op.Add(_square(op, x), 1.0)))
_of_input("Sinh", "y = sinh(x): dx = g cosh(x)", lambda op, x: op.Cosh(x))
_of_input("Cosh", "y = cosh(x): dx = g sinh(x)", lambda op, x: op.Sinh(x))
_of_input(
    "Asinh",
    "y = asinh(x): dx = g / sqrt(1 + x²)",
    lambda op, x: _inverse_root(op, op.Add(_square(op, x), 1.0)),
)
_of_input(
    "Acosh",
    "y = acosh(x): dx = g / sqrt(x² - 1)",
    lambda op, x: _inverse_root(op, op.Sub(_square(op, x), 1.0)),
)
_of_input(
    "Atanh", "y = atanh(x): dx = g / (1 - x²)", lambda op, x: op.Reciprocal(op.Sub(1.0, _square(op, x)))
)
_of_input(
    "Softsign",
    "y = x / (1 + |x|): dx = g / (1 + |x|)²",
    lambda op, x: op.Reciprocal(_square(op, op.Add(op.Abs(x), 1.0))),
)
_of_input("Softplus", "y = log(1 + exp(x)): dx = g sigmoid(x)", lambda op, x: op.Sigmoid(x))


@vjp("Erf")
def erf(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = erf(x): dx = g 2 / sqrt(pi) exp(-x²) = g exp(log(2 / sqrt(pi)) - x²), and pi = 4 atan(1)."""
    x = operand(node, 0)
    # In the graph, where constant folding takes it at the graph's own precision.
    shift = op.Log(op.Sqrt(op.Reciprocal(op.Atan(constant_like(op, 1.0, x)))))
    return op.Mul(gradient, op.Exp(op.Sub(shift, _square(op, x))))
