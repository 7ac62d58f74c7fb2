"""Recurrent operators and Scan for onnx's reference evaluator, whose own leave out much of the standard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

from onnxplain_export.opset_nodes import graphs_of

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]

_FUNCTIONS: dict[str, Function] = {
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "softsign": lambda a: a / (1 + np.abs(a)),
    "softplus": lambda a: np.logaddexp(a, 0),
}
_REVERSALS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


@dataclass(frozen=True)
class _Cell:
    """What one direction makes of a step's input."""

    r: Array
    b: Array
    """The bias of R h."""
    p: Array
    """The peepholes, [3, size]."""
    functions: Sequence[Function]


class _Recurrent(OpRun):
    """The evaluator's own ignore lengths, `clip`, `input_forget`, and what the activations are."""

    op_domain = ""
    #: The activations by default.
    functions: tuple[str, ...] = ("Tanh",)
    states = 1

    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        b: Array | None = None,
        lengths: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
        p: Array | None = None,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        batch_first = bool(attributes["layout"])
        x = x.swapaxes(0, 1) if batch_first else x
        steps, batch, size = *x.shape[:2], r.shape[-1]
        hidden = np.zeros((steps, len(w), batch, size), x.dtype)
        last = np.zeros((self.states, len(w), batch, size), x.dtype)
        for state, initial in zip(last, (initial_h, initial_c), strict=False):
            if initial is not None:
                state[:] = initial.swapaxes(0, 1) if batch_first else initial
        goes_on = np.arange(steps)[:, None] < (np.full(batch, steps) if lengths is None else lengths)
        for index, reverse in enumerate(_REVERSALS[attributes["direction"].lower()]):
            biases = np.zeros((2, w.shape[1])) if b is None else b[index].reshape(2, -1)
            peepholes = np.zeros((3, size)) if p is None else p[index].reshape(3, -1)
            cell = _Cell(r[index], biases[1], peepholes, self._activations(index, len(w), attributes))
            inputs = x @ w[index].T + biases[0]
            states = list(last[:, index])
            for step in range(steps)[:: -1 if reverse else 1]:
                ended = ~goes_on[step, :, None]
                new = self._step(cell, inputs[step], *states)
                states = [np.where(ended, *pair) for pair in zip(states, new, strict=True)]
                hidden[step, index] = np.where(ended, 0, states[0])
            last[:, index] = states
        if batch_first:
            hidden, last = hidden.transpose(2, 0, 1, 3), last.swapaxes(1, 2)
        return (hidden, *last)[: len(self.output)]

    def _activations(self, index: int, directions: int, attributes: dict[str, Any]) -> Sequence[Function]:
        """Return the functions of one direction."""
        count, limit = len(self.functions), attributes["clip"] or np.inf
        names = attributes["activations"] or self.functions * directions

        def clipped(function: Function) -> Function:
            return lambda a: function(np.clip(a, -limit, limit))

        own = [_FUNCTIONS[name.lower()] for name in names[index * count : (index + 1) * count]]
        # As in onnxruntime, an LSTM's cell is no argument to be clipped.
        return [*map(clipped, own[:2]), *own[2:]]

    def _step(self, cell: _Cell, x: Array, *states: Array) -> Sequence[Array]:
        """Return the states behind a step, from W x and its bias."""
        raise NotImplementedError


class RNN(_Recurrent):
    """A step is f(W x + R h + b)."""

    def _step(self, cell: _Cell, x: Array, *states: Array) -> Sequence[Array]:
        (h,), (f,) = states, cell.functions
        return [f(x + h @ cell.r.T + cell.b)]


class GRU(_Recurrent):
    """A step mixes the hidden state with a new one."""

    functions = ("Sigmoid", "Tanh")
    linear_before_reset: int

    def _step(self, cell: _Cell, x: Array, *states: Array) -> Sequence[Array]:
        (h,), (f, g) = states, cell.functions
        x_z, x_r, x_n = np.split(x, 3, axis=-1)
        h_z, h_r, h_n = np.split(h @ cell.r.T + cell.b, 3, axis=-1)
        z, r = f(x_z + h_z), f(x_r + h_r)
        if self.linear_before_reset:
            n = g(x_n + r * h_n)
        else:
            n = g(x_n + (r * h) @ np.split(cell.r, 3)[2].T + np.split(cell.b, 3)[2])
        return [(1 - z) * n + z * h]


class LSTM(_Recurrent):
    """A step changes the cell, and puts it out through a gate."""

    functions = ("Sigmoid", "Tanh", "Tanh")
    states = 2
    input_forget: int

    def _step(self, cell: _Cell, x: Array, *states: Array) -> Sequence[Array]:
        (h, c), (f_gate, f_new, f_cell) = states, cell.functions
        p_i, p_o, p_f = cell.p
        a_i, a_o, a_f, a_n = np.split(x + h @ cell.r.T + cell.b, 4, axis=-1)
        i = f_gate(a_i + p_i * c)
        f = 1 - i if self.input_forget else f_gate(a_f + p_f * c)
        c = f * c + i * f_new(a_n)
        return [f_gate(a_o + p_o * c) * f_cell(c), c]


class Scan(OpRun):
    """The evaluator's own takes no sequences in reverse, and none along other axes than the first."""

    op_domain = ""

    def need_context(self) -> bool:
        """Tell the evaluator that the body takes values from around it."""
        return True

    def _run(
        self,
        *inputs: Array,
        context: dict[str, Any],
        body: Any,
        num_scan_inputs: int,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        states = list(inputs[:-num_scan_inputs])
        count = len(body.output_names) - len(states)
        taken = {name for graph in graphs_of(body.proto_) for node in graph.node for name in node.input}
        around = {name: context[name] for name in taken & context.keys()}

        def options(of: str, number: int) -> list[tuple[int, int]]:
            axes, directions = (
                attributes[f"scan_{of}_{name}"] or [0] * number for name in ("axes", "directions")
            )
            return list(zip(axes, directions, strict=True))

        sequences = [
            _in_reverse(np.moveaxis(sequence, axis, 0), direction)
            for sequence, (axis, direction) in zip(
                inputs[-num_scan_inputs:], options("input", num_scan_inputs), strict=True
            )
        ]
        outputs: list[list[Array]] = [[] for _ in range(count)]
        for elements in zip(*sequences, strict=True):
            feeds = dict(zip(body.input_names, [*states, *map(np.asarray, elements)], strict=True))
            results = body.run(None, around | feeds)
            states = results[: len(states)]
            for output, result in zip(outputs, results[len(states) :], strict=True):
                output.append(result)
        stacked = [
            np.moveaxis(_in_reverse(np.stack(output), direction), 0, axis)
            for output, (axis, direction) in zip(outputs, options("output", count), strict=True)
        ]
        return (*states, *stacked)


def _in_reverse(sequence: Array, direction: int) -> Array:
    """Return a sequence from its end where the direction is 1."""
    return sequence[::-1] if direction else sequence


OPERATORS = [GRU, LSTM, RNN, Scan]
