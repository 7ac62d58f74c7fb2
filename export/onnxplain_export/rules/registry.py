"""The table of gradient rules.

A rule is a vector-Jacobian product: given the gradient of an operator's output, it emits the standard ONNX
nodes that compute the gradient of one of its inputs. Every gradient has the shape ``[classes, *shape]`` of
the value that it belongs to: the requested classes are an outermost axis of their own. As ONNX broadcasts
from the right, a value of the forward pass meets a gradient without being copied for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import GraphBuilder


class Op(Protocol):
    """The builder that rules emit nodes with, an `onnxscript.OpBuilder`: ``op.Mul(x, y)``.

    Python numbers and lists become constants, of the type that the operator's other inputs have.
    """

    def __getattr__(self, operator: str) -> Callable[..., ir.Value]: ...

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add a constant under the tensor's name, which must be unique."""

    @property
    def builder(self) -> GraphBuilder:
        """The graph's builder, which makes the bodies of loops."""


def constant_like(op: Op, numbers: npt.ArrayLike, value: ir.Value) -> ir.Value:
    """Return a constant of a value's type, for where no other input tells the builder which that is."""
    assert value.dtype is not None
    return op.Constant(value=ir.tensor(np.asarray(numbers, value.dtype.numpy())))


@dataclass(frozen=True)
class Selection:
    """A gradient that is zero but for one channel, that of the selected class: the channel is only named.

    Such are the gradient of the selected logits with respect to all logits, one-hot, and that of class maps
    which are averaged to logits. Where a rule can use the index itself, the zeros are never written out.
    """

    classes: ir.Value
    """int64 [classes, batch]."""
    logits: ir.Value
    """What it is the gradient of: float [batch, num_classes], or maps [batch, num_classes, ...]."""
    channel: ir.Value | None = None
    """The selected channel's gradient, repeated to [classes, batch, 1, ...]; None for 1."""

    def one_hot(self, op: Op) -> ir.Value:
        """Return it written out, [classes, batch, num_classes, ...].

        Without classes, OneHot ends the whole process in onnxruntime up to 1.26.
        """
        depth = op.Squeeze(op.Shape(self.logits, start=1, end=2), [0])
        is_selected = op.Equal(op.Unsqueeze(self.classes, [-1]), op.Range(0, depth, 1))
        one_hot = op.Cast(is_selected, to=self.logits.dtype)
        spatial = list(range(3, 1 + len(self.logits.shape or ())))
        if spatial:
            one_hot = op.Unsqueeze(one_hot, spatial)
        return one_hot if self.channel is None else op.Mul(one_hot, self.channel)


#: ``rule(op, node, wrt, gradient)`` returns the gradient of ``node.inputs[wrt]``, or None if it is zero.
Rule = Callable[[Op, ir.Node, int, ir.Value], ir.Value | None]
#: The same for an operator with several differentiable outputs: one gradient each, None where it is zero.
ManyOutputsRule = Callable[[Op, ir.Node, int, Sequence[ir.Value | None]], ir.Value | None]
#: The same where the output's gradient is one-hot; it returns None where the general rule is to be used.
SelectionRule = Callable[[Op, ir.Node, int, Selection], ir.Value | Selection | None]

AnyRule = TypeVar("AnyRule", Rule, ManyOutputsRule)


@dataclass(frozen=True)
class Entry:
    """One operator's rule and how the driver is to use it."""

    rule: Rule | ManyOutputsRule
    broadcasts: bool = False
    """The inputs broadcast: the driver sums the gradient over the axes along which one was repeated."""
    many_outputs: bool = False
    """The rule takes the gradients of all outputs."""
    sparse: bool = False
    """The rule multiplies by zeros that stand for nothing; the driver keeps infinite gradients from them."""


class UnsupportedCaseError(Exception):
    """A rule doesn't cover a node's inputs or attributes; the message completes "there is no rule for"."""


RULES: dict[str, Entry] = {}
SELECTION_RULES: dict[str, SelectionRule] = {}
#: Operators whose floating-point output is a step function: its gradient is zero wherever there is one.
NO_GRADIENT: set[str] = set()


def no_gradient(*operators: str) -> None:
    """Register operators through which no gradient flows."""
    NO_GRADIENT.update(operators)


def vjp(
    *operators: str, broadcasts: bool = False, many_outputs: bool = False, sparse: bool = False
) -> Callable[[AnyRule], AnyRule]:
    """Register a function as the vector-Jacobian product of the named operators."""

    def register(rule: AnyRule) -> AnyRule:
        for operator in operators:
            RULES[operator] = Entry(rule, broadcasts, many_outputs, sparse)
        return rule

    return register


def selection_vjp(*operators: str) -> Callable[[SelectionRule], SelectionRule]:
    """Register a rule for an operator that computes the logits, whose gradient is one-hot.

    Such a rule reads the requested class's weights alone, where the general one would multiply all of them by
    zeros and a one.
    """

    def register(rule: SelectionRule) -> SelectionRule:
        for operator in operators:
            SELECTION_RULES[operator] = rule
        return rule

    return register
