"""Elementary functions of one number, and their derivatives: a page of calculus."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxplain_export.graph import operand
from onnxplain_export.rules.registry import Op, constant_like, no_gradient, vjp

no_gradient("Ceil", "Floor", "Round", "Sign", "Hardmax")


def _of_input(operator: str, derivative: Callable[[Op, ir.Value], ir.Value]) -> None:
    """Register dx = g f'(x), the derivative written in terms of the input."""

    def rule(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
        return op.Mul(gradient, derivative(op, operand(node, 0)))

    vjp(operator)(rule)


def _of_output(operator: str, derivative: Callable[[Op, ir.Value], ir.Value]) -> None:
    """Register dx = g f'(x), the derivative written in terms of the output, which is there already."""

    def rule(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
        return op.Mul(gradient, derivative(op, node.outputs[0]))

    vjp(operator)(rule)


def _square(op: Op, x: ir.Value) -> ir.Value:
    return op.Mul(x, x)


def _inverse_root(op: Op, x: ir.Value) -> ir.Value:
    return op.Reciprocal(op.Sqrt(x))


_of_input("Abs", lambda op, x: op.Sign(x))
_of_output("Exp", lambda op, y: y)
_of_input("Log", lambda op, x: op.Reciprocal(x))
_of_output("Sqrt", lambda op, y: op.Div(0.5, y))
_of_output("Reciprocal", lambda op, y: op.Neg(_square(op, y)))
_of_input("Sin", lambda op, x: op.Cos(x))
_of_input("Cos", lambda op, x: op.Neg(op.Sin(x)))
_of_output("Tan", lambda op, y: op.Add(_square(op, y), 1.0))
_of_input("Asin", lambda op, x: _inverse_root(op, op.Sub(1.0, _square(op, x))))
_of_input("Acos", lambda op, x: op.Neg(_inverse_root(op, op.Sub(1.0, _square(op, x)))))
_of_input("Atan", lambda op, x: op.Reciprocal(op.Add(_square(op, x), 1.0)))
_of_input("Sinh", lambda op, x: op.Cosh(x))
_of_input("Cosh", lambda op, x: op.Sinh(x))
_of_input("Asinh", lambda op, x: _inverse_root(op, op.Add(_square(op, x), 1.0)))
_of_input("Acosh", lambda op, x: _inverse_root(op, op.Sub(_square(op, x), 1.0)))
_of_input("Atanh", lambda op, x: op.Reciprocal(op.Sub(1.0, _square(op, x))))
_of_input("Softsign", lambda op, x: op.Reciprocal(_square(op, op.Add(op.Abs(x), 1.0))))
_of_input("Softplus", lambda op, x: op.Sigmoid(x))


@vjp("Erf")
def erf(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = erf(x): dx = g 2 / sqrt(pi) exp(-x²) = g exp(log(2 / sqrt(pi)) - x²), and pi = 4 atan(1)."""
    x = operand(node, 0)
    # In the graph, where constant folding takes it at the graph's own precision.
    shift = op.Log(op.Sqrt(op.Reciprocal(op.Atan(constant_like(op, 1.0, x)))))
    return op.Mul(gradient, op.Exp(op.Sub(shift, _square(op, x))))
