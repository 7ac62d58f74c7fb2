"""Recurrent operators: backpropagation through time.

A node puts out its hidden states, but not its gates. These are computed again, for all steps at once: of the
step before they take the hidden state alone, which is known. Only what must go from step to step does so, in
a Scan: an LSTM's cell states, and the gradient itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxplain_export.graph import operand, upstream
from onnxplain_export.rules.placing import numbers_to
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like, vjp

#: The inputs, which the three operators have in common as far as they have them.
_X, _W, _R, _B, _LENGTHS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = range(8)

_Values = Sequence[ir.Value]


@dataclass(frozen=True)
class _Activation:
    """An activation function, and its slope in terms of its result."""

    apply: Callable[[Op, ir.Value], ir.Value]
    slope: Callable[[Op, ir.Value], ir.Value]


_ACTIVATIONS = {
    "sigmoid": _Activation(lambda op, a: op.Sigmoid(a), lambda op, y: op.Mul(y, op.Sub(1.0, y))),
    "tanh": _Activation(lambda op, a: op.Tanh(a), lambda op, y: op.Sub(1.0, op.Mul(y, y))),
    "relu": _Activation(lambda op, a: op.Relu(a), lambda op, y: op.Cast(op.Greater(y, 0.0), to=y.dtype)),
}


@dataclass(frozen=True)
class _Linear:
    """A linear layer: rows of a matrix, and their bias, if there is one."""

    weights: ir.Value
    bias: _Values

    def __call__(self, op: Op, x: ir.Value) -> ir.Value:
        product = op.MatMul(x, op.Transpose(self.weights, perm=[1, 0]))
        return op.Add(product, self.bias[0]) if self.bias else product


@dataclass(frozen=True)
class _Direction:
    """One direction of a node: its inputs and outputs, and the gradients of its outputs.

    Values are [steps, batch, size]; in a gradient the classes come before the batch.
    """

    reverse: bool
    activations: list[_Activation]
    size: int
    """That of a hidden state."""
    x: ir.Value
    w: ir.Value
    """[gates * size, size of x]"""
    r: ir.Value
    """[gates * size, size]"""
    biases: _Values
    """Of W x and of R h, [gates * size] each; none where the node has none."""
    initial: _Values
    """The states before the first step, [1, batch, size]: h, and an LSTM's c."""
    hidden: ir.Value
    """The hidden state behind each step."""
    lasts: ir.Value | None
    """Where sequences have lengths of their own: whether they go on up to a step, [steps, batch, 1]."""
    gradient: ir.Value
    """That of the hidden states."""
    final: _Values
    """Those of the states behind the last step, [classes, batch, size]."""

    def parts(self, op: Op, sizes: list[int]) -> tuple[list[_Linear], list[_Linear]]:
        """Return W and R with their biases, cut into parts of so many rows.

        Cut matrices also keep OpenVINO (2026.4) right: where a square one is used as it is and transposed, it
        takes one for the other.
        """
        sides = []
        for matrix, bias in ((self.w, self.biases[:1]), (self.r, self.biases[1:])):
            parts = [
                _outputs(op.Split(value, sizes, axis=0, _outputs=len(sizes))) for value in (matrix, *bias)
            ]
            sides.append([_Linear(rows, own) for rows, *own in zip(*parts, strict=True)])
        return sides[0], sides[1]

    def before(self, op: Op, states: ir.Value, initial: ir.Value) -> ir.Value:
        """Return for each step the state before it."""
        if self.reverse:
            return op.Concat(op.Slice(states, [1], op.Shape(states, end=1), [0]), initial, axis=0)
        return op.Concat(initial, op.Slice(states, [0], [-1], [0]), axis=0)

    def hidden_before(self, op: Op) -> ir.Value:
        """Return for each step the hidden state before it."""
        # Behind the end of a sequence the output is 0, while one that is read in reverse begins there.
        hidden = self.hidden if self.lasts is None else op.Where(self.lasts, self.hidden, self.initial[0])
        return self.before(op, hidden, self.initial[0])

    def or_behind(self, op: Op, value: ir.Value, number: float) -> ir.Value:
        """Return a value that is replaced by a number behind the end of a sequence."""
        return value if self.lasts is None else op.Where(self.lasts, value, number)

    def kept(self, op: Op) -> _Values:
        """Return how much of a state each step keeps as it is: all behind a sequence's end."""
        return [] if self.lasts is None else [op.Cast(op.Not(self.lasts), to=self.x.dtype)]


#: What goes back through the steps of a direction: it returns the gradients of W x + b, [steps, classes,
#: batch, gates * size], and of the states before the first step.
_Backward = Callable[[_Direction], _Values]


@vjp("RNN", many_outputs=True, sparse=True)
def rnn(op: Op, node: ir.Node, wrt: int, gradients: Sequence[ir.Value | None]) -> ir.Value:
    """H_t = f(a), a = W x_t + R h_{t-1} + b: da = f'(a) dh_t, dx_t = Wᵀ da, dh_{t-1} = g + Rᵀ da."""

    def backward(direction: _Direction) -> _Values:
        (f,) = direction.activations
        slopes = direction.or_behind(op, f.slope(op, direction.hidden), 0.0)

        def step(op: Op, states: _Values, elements: _Values) -> _Values:
            (dh,) = states
            g, slope, *kept = elements
            dh = op.Add(dh, g)
            da = op.Mul(dh, slope)
            return [_passed_on(op, dh, op.MatMul(da, _inside(op, direction.r)), kept), da]

        sequences = [direction.gradient, slopes, *direction.kept(op)]
        dh, da = _scan(op, step, direction.final, sequences, reverse=not direction.reverse)
        return [da, dh]

    return _through_time(op, node, wrt, gradients, ["Tanh"], backward)


@vjp("GRU", many_outputs=True, sparse=True)
def gru(op: Op, node: ir.Node, wrt: int, gradients: Sequence[ir.Value | None]) -> ir.Value:
    """H_t = (1 - z) n + z h_{t-1}, gates z, r, n of a = W x_t + R h_{t-1} + b: dx_t = Wᵀ da.

    In n, R (r h_{t-1}) stands for R h_{t-1}, or r (R h_{t-1} + b) where `linear_before_reset` is set.
    """
    linear_before_reset = bool(node.attributes.get_int("linear_before_reset", 0))

    def backward(direction: _Direction) -> _Values:
        f, g = direction.activations
        h = direction.hidden_before(op)
        (x_gates, x_new), (h_gates, h_new) = direction.parts(op, [2 * direction.size, direction.size])
        gates = f.apply(op, op.Add(x_gates(op, direction.x), h_gates(op, h)))
        z, r = _outputs(op.Split(gates, num_outputs=2, axis=-1, _outputs=2))
        if linear_before_reset:
            reset = h_new(op, h)
            by_state = op.Mul(r, reset)
        else:
            reset = h
            by_state = h_new(op, op.Mul(r, h))
        n = g.apply(op, op.Add(x_new(op, direction.x), by_state))
        z_slopes = direction.or_behind(op, op.Mul(op.Sub(h, n), f.slope(op, z)), 0.0)
        r_slopes = op.Mul(reset, f.slope(op, r))
        n_slopes = direction.or_behind(op, op.Mul(op.Sub(1.0, z), g.slope(op, n)), 0.0)
        z = direction.or_behind(op, z, 1.0)

        def step(op: Op, states: _Values, elements: _Values) -> _Values:
            (dh,) = states
            gradient, z, r, z_slope, r_slope, n_slope = elements
            dh = op.Add(dh, gradient)
            da_z, da_n = op.Mul(dh, z_slope), op.Mul(dh, n_slope)
            if linear_before_reset:
                da_r, by_new = op.Mul(da_n, r_slope), op.MatMul(op.Mul(da_n, r), _inside(op, h_new.weights))
            else:
                d_reset = op.MatMul(da_n, _inside(op, h_new.weights))
                da_r, by_new = op.Mul(d_reset, r_slope), op.Mul(d_reset, r)
            by_gates = op.MatMul(op.Concat(da_z, da_r, axis=-1), _inside(op, h_gates.weights))
            dh = op.Add(op.Mul(dh, z), op.Add(by_gates, by_new))
            return [dh, op.Concat(da_z, da_r, da_n, axis=-1)]

        sequences = [direction.gradient, z, r, z_slopes, r_slopes, n_slopes]
        dh, da = _scan(op, step, direction.final, sequences, reverse=not direction.reverse)
        return [da, dh]

    return _through_time(op, node, wrt, gradients, ["Sigmoid", "Tanh"], backward)


@vjp("LSTM", many_outputs=True, sparse=True)
def lstm(op: Op, node: ir.Node, wrt: int, gradients: Sequence[ir.Value | None]) -> ir.Value:
    """H_t = o tanh(c_t), c_t = f c_{t-1} + i n, gates i, o, f, n of a = W x_t + R h_{t-1} + b: dx_t = Wᵀ da.

    dh_{t-1} = g + Rᵀ da, dc_{t-1} = f dc_t. Where `input_forget` is set, f = 1 - i.
    """
    input_forget = bool(node.attributes.get_int("input_forget", 0))

    def backward(direction: _Direction) -> _Values:
        f_gate, f_new, f_cell = direction.activations
        h = direction.hidden_before(op)
        (x_gates, x_new), (h_gates, h_new) = direction.parts(op, [3 * direction.size, direction.size])
        gates = f_gate.apply(op, op.Add(x_gates(op, direction.x), h_gates(op, h)))
        n = f_new.apply(op, op.Add(x_new(op, direction.x), h_new(op, h)))
        i, o, f = _outputs(op.Split(gates, num_outputs=3, axis=-1, _outputs=3))
        f = op.Sub(1.0, i) if input_forget else f
        kept_cell = direction.or_behind(op, f, 1.0)
        new_cell = direction.or_behind(op, op.Mul(i, n), 0.0)

        def step_forward(op: Op, states: _Values, elements: _Values) -> _Values:
            (c,), (f, new) = states, elements
            c = op.Add(op.Mul(f, c), new)
            return [c, op.Identity(c)]

        first = op.Squeeze(direction.initial[1], [0])
        _, cells = _scan(op, step_forward, [first], [kept_cell, new_cell], reverse=direction.reverse)
        c = direction.before(op, cells, direction.initial[1])
        y = f_cell.apply(op, cells)
        by_gates = [op.Sub(n, c), y, op.Mul(c, 0.0)] if input_forget else [n, y, c]
        gates_slopes = op.Mul(op.Concat(*by_gates, axis=-1), f_gate.slope(op, gates))
        slopes = op.Concat(gates_slopes, op.Mul(i, f_new.slope(op, n)), axis=-1)
        slopes = direction.or_behind(op, slopes, 0.0)
        cell_slopes = direction.or_behind(op, op.Mul(o, f_cell.slope(op, y)), 0.0)

        def step(op: Op, states: _Values, elements: _Values) -> _Values:
            dh, dc = states
            g, slope, cell_slope, f, *kept = elements
            dh = op.Add(dh, g)
            dc = op.Add(dc, op.Mul(dh, cell_slope))
            da = op.Mul(op.Concat(dc, dh, dc, dc, axis=-1), slope)
            return [_passed_on(op, dh, op.MatMul(da, _inside(op, direction.r)), kept), op.Mul(dc, f), da]

        sequences = [direction.gradient, slopes, cell_slopes, kept_cell, *direction.kept(op)]
        dh, dc, da = _scan(op, step, direction.final, sequences, reverse=not direction.reverse)
        return [da, dh, dc]

    return _through_time(op, node, wrt, gradients, ["Sigmoid", "Tanh", "Tanh"], backward)


def _passed_on(op: Op, dh: ir.Value, back: ir.Value, kept: _Values) -> ir.Value:
    """Return the gradient of a step's state before: what comes back through it, and what it keeps."""
    return op.Add(back, op.Mul(dh, kept[0])) if kept else back


def _scan(
    op: Op,
    step: Callable[[Op, _Values, _Values], _Values],
    states: _Values,
    sequences: _Values,
    *,
    reverse: bool,
) -> _Values:
    """Take states from step to step of sequences, from their start to their end or in reverse.

    Parameters
    ----------
    step
        It emits one step: of the states and the sequences' elements it makes the new states and an output.
    sequences
        They run along their first axis. onnxruntime's CPU provider crashes at others where there are no
        classes.

    Returns
    -------
    list of Value
        The states behind the last step, and the outputs of all steps, each in its step's place.
    """
    builder = op.builder
    name = f"scan_{builder.graph.num_nodes()}"

    def values(kind: str, likes: _Values) -> list[ir.Value]:
        return [ir.val(f"{name}.{kind}_{index}", dtype=like.dtype) for index, like in enumerate(likes)]

    def body(op: Op, *inputs: ir.Value) -> _Values:
        return step(op, inputs[: len(states)], inputs[len(states) :])

    inputs = [*values("state", states), *values("element", sequences)]
    outputs = [*values("next", states), *values("output", states[:1])]
    # No name inside may be one outside.
    builder.push_module(name)
    graph = builder.subgraph(body, inputs, outputs, name=name)
    builder.pop_module()
    return _outputs(
        op.Scan(
            *states,
            *sequences,
            body=graph,
            num_scan_inputs=len(sequences),
            scan_input_directions=[int(reverse)] * len(sequences),
            scan_output_directions=[int(reverse)],
            _outputs=len(outputs),
        )
    )


def _inside(op: Op, value: ir.Value) -> ir.Value:
    """Return a value from around a body for use inside, as an initializer if it is made of constants alone.

    Of what is around a Scan, OpenVINO knows the initializers only.
    """
    if any(source.is_graph_input() for source in upstream([value])):
        return value
    assert value.graph is not None
    part = ir.convenience.extract(value.graph, [], [value])
    (array,) = ReferenceEvaluator(ir.to_proto(ir.Model(part, ir_version=10))).run(None, {})
    return op.initializer(ir.tensor(array, name=value.name))


def _through_time(
    op: Op,
    node: ir.Node,
    wrt: int,
    gradients: Sequence[ir.Value | None],
    functions: list[str],
    backward: _Backward,
) -> ir.Value:
    """Return the gradient of a node's input or of its initial states.

    Parameters
    ----------
    functions
        The activations of a direction where the node doesn't name any.
    """
    _check_supported(node, wrt)
    results = []
    for index in range(len(_reversals(node))):
        direction = _direction(op, node, gradients, functions, index)
        da, *initial = backward(direction)
        result = op.MatMul(da, direction.w) if wrt == _X else op.Unsqueeze(initial[wrt - _INITIAL_H], [1])
        results.append(result)
    if wrt == _X:
        result = op.Transpose(functools.reduce(op.Add, results), perm=[1, 0, 2, 3])
    else:
        result = op.Concat(*results, axis=1)
    # What an empty batch lacks; a Reshape to the whole would be one that changes nothing, to OpenVINO.
    missing = op.Sub(_batch(op, node), _taken_batch(op, node, gradients))
    return op.Pad(result, op.Concat([0] * 6, missing, [0], axis=0))


def _direction(
    op: Op, node: ir.Node, gradients: Sequence[ir.Value | None], functions: list[str], index: int
) -> _Direction:
    """Return one direction of a node.

    Without classes its batch is empty, so that a plain prediction doesn't compute the gates again.
    """
    x, lengths, bias = operand(node, _X), _input(node, _LENGTHS), _input(node, _B)
    reversals = _reversals(node)
    classes, batch = _classes(op, gradients), _taken_batch(op, node, gradients)
    zero = constant_like(op, 0.0, x)

    def own(value: ir.Value, axis: int) -> ir.Value:
        """Return the direction's part of a value."""
        return op.Squeeze(value, [axis]) if len(reversals) == 1 else op.Gather(value, index, axis=axis)

    def taken(value: ir.Value, axis: int) -> ir.Value:
        """Return a value with its batch as it is taken."""
        return op.Slice(value, [0], batch, [axis])

    def zeros(*shape: ir.Value | list[int]) -> ir.Value:
        return op.Expand(zero, op.Concat(*shape, axis=0))

    hidden = taken(own(_hidden(node), 1), 1)
    steps, sizes = op.Shape(hidden, end=1), op.Shape(hidden, start=1)
    lasts = None
    if lengths is not None:
        numbers = op.Unsqueeze(numbers_to(op, op.Squeeze(steps, [0])), [1, 2])
        ends = taken(op.Cast(lengths, to=ir.DataType.INT64), 0)
        lasts = op.Less(numbers, op.Unsqueeze(ends, [0, 2]))
    if gradients[0] is None:
        gradient = zeros(steps, classes, sizes)
    else:
        gradient = taken(op.Transpose(own(gradients[0], 2), perm=[1, 0, 2, 3]), 2)
        gradient = gradient if lasts is None else op.Where(op.Unsqueeze(lasts, [1]), gradient, 0.0)
    initial, final = [], []
    for state in range(2 if node.op_type == "LSTM" else 1):
        first = _input(node, _INITIAL_H + state)
        last = gradients[1 + state] if 1 + state < len(gradients) else None
        initial.append(zeros([1], sizes) if first is None else op.Unsqueeze(taken(own(first, 0), 0), [0]))
        final.append(zeros(classes, sizes) if last is None else taken(own(last, 1), 1))
    return _Direction(
        reversals[index],
        _activations(node, functions, index),
        node.attributes["hidden_size"].as_int(),
        taken(x, 1),
        own(operand(node, _W), 0),
        own(operand(node, _R), 0),
        [] if bias is None else _outputs(op.Split(own(bias, 0), num_outputs=2, axis=0, _outputs=2)),
        initial,
        hidden,
        lasts,
        gradient,
        final,
    )


def _check_supported(node: ir.Node, wrt: int) -> None:
    if wrt in (_W, _R, _B):
        raise UnsupportedCaseError(f"{node.op_type} weights that are computed from the layer")
    if _input(node, _PEEPHOLES) is not None:
        raise UnsupportedCaseError("an LSTM with peepholes")
    for name in ("clip", "layout"):
        if node.attributes.get(name) is not None and node.attributes[name].value:
            raise UnsupportedCaseError(f"{node.op_type} with the attribute {name}")


def _reversals(node: ir.Node) -> list[bool]:
    """Return for each direction of a node whether it reads the sequences in reverse."""
    direction = node.attributes.get_string("direction", "forward").lower()
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]


def _activations(node: ir.Node, functions: list[str], index: int) -> list[_Activation]:
    """Return the activations of one direction."""
    count = len(functions)
    named = node.attributes.get_strings("activations", functions * len(_reversals(node)))
    own = named[index * count : (index + 1) * count]
    for name in own:
        if name.lower() not in _ACTIVATIONS:
            raise UnsupportedCaseError(f"{node.op_type} with the activation {name}")
    return [_ACTIVATIONS[name.lower()] for name in own]


def _hidden(node: ir.Node) -> ir.Value:
    """Return a node's hidden states, of which only the last may have been asked for."""
    hidden = node.outputs[0]
    if hidden.name == "":
        hidden.name = f"{node.name}.hidden"
        hidden.type = operand(node, _X).type
    return hidden


def _batch(op: Op, node: ir.Node) -> ir.Value:
    """Return the size of a node's batch, int64 [1]."""
    return op.Shape(operand(node, _X), start=1, end=2)


def _taken_batch(op: Op, node: ir.Node, gradients: Sequence[ir.Value | None]) -> ir.Value:
    """Return how much of the batch is taken: all of it, or nothing where there are no classes."""
    return op.Mul(op.Min(_classes(op, gradients), [1]), _batch(op, node))


def _classes(op: Op, gradients: Sequence[ir.Value | None]) -> ir.Value:
    """Return the number of classes, int64 [1]."""
    return op.Shape(next(gradient for gradient in gradients if gradient is not None), end=1)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _outputs(values: ir.Value) -> _Values:
    """Return the outputs of a node that has several."""
    return cast("_Values", values)
