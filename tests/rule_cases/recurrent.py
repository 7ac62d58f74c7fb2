"""Rows for `onnxplain_export.rules.recurrent`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphs import Array
from rule_cases.case import B, Case, Fed, H, refused, row, weights, x

STEPS, INPUT, SIZE = 4, 3, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
#: Of two sequences.
LENGTHS = Fed(np.array([3, 1], np.int32))


def small(*shape: int) -> Array:
    """Return weights with which no gate is near 0 or 1, where float32 can't tell its slope."""
    return weights(*shape) / 3


def layer(
    operator: str,
    note: str,
    *,
    steps: int | str = STEPS,
    bias: bool = True,
    initial: bool = False,
    lengths: Fed | None = None,
    make: Callable[..., Case] = row,
    **keywords: Any,
) -> Case:
    """Return a row of a layer; with initial states, all of its outputs are used."""
    directions = 2 if keywords.get("direction") == "bidirectional" else 1
    rows, states, batch = GATES[operator] * SIZE, STATES[operator], B if lengths is None else 2
    inputs = [
        x(steps, batch, INPUT),
        small(directions, rows, INPUT),
        small(directions, rows, SIZE),
        small(directions, 2 * rows) if bias else None,
        lengths,
    ]
    if initial:
        inputs += [x(directions, batch, SIZE)] * states
        keywords["outputs"] = (True,) * (1 + states)
    return make(operator, note, *inputs, hidden_size=SIZE, **keywords)


def rows_of(operator: str) -> list[Case]:
    """Return the rows that the operators have in common."""
    rows = GATES[operator] * SIZE
    w, r = small(1, rows, INPUT), small(1, rows, SIZE)
    computed = f"{operator} weights that are computed from the layer"
    return [
        layer(operator, "forward"),
        layer(operator, "reverse", direction="reverse"),
        layer(operator, "bidirectional", direction="bidirectional"),
        layer(operator, "no bias", bias=False),
        layer(operator, "steps known at run time", steps=H, direction="bidirectional"),
        layer(operator, "the last state alone", outputs=(False, True)),
        layer(operator, "no output but the last state", outputs=(None, True), direction="bidirectional"),
        layer(operator, "initial states", initial=True),
        layer(operator, "initial states, reverse", initial=True, direction="reverse"),
        layer(operator, "initial states, bidirectional", initial=True, direction="bidirectional"),
        layer(operator, "a single step", steps=1, initial=True),
        layer(operator, "lengths", lengths=LENGTHS, initial=True),
        layer(operator, "lengths, reverse", lengths=LENGTHS, initial=True, direction="reverse"),
        layer(operator, "lengths, bidirectional", lengths=LENGTHS, initial=True, direction="bidirectional"),
        refused(operator, computed, x(STEPS, B, INPUT), x(*w.shape), r, hidden_size=SIZE),
        layer(operator, f"{operator} with the attribute clip", clip=3.0, make=refused),
        layer(operator, f"{operator} with the attribute layout", layout=1, make=refused),
        layer(
            operator,
            f"{operator} with the activation Softsign",
            activations=["Softsign"] * FUNCTIONS[operator],
            make=refused,
        ),
    ]


CASES = [
    *rows_of("RNN"),
    layer("RNN", "relu", activations=["Relu"]),
    layer("RNN", "functions of each direction", activations=["Relu", "Sigmoid"], direction="bidirectional"),
    *rows_of("GRU"),
    layer("GRU", "relu", activations=["Sigmoid", "Relu"]),
    layer("GRU", "linear before reset", initial=True, linear_before_reset=1),
    layer("GRU", "linear before reset, lengths", initial=True, lengths=LENGTHS, linear_before_reset=1),
    layer("GRU", "linear before reset, no bias", bias=False, linear_before_reset=1),
    *rows_of("LSTM"),
    layer("LSTM", "the last cell alone", outputs=(False, False, True)),
    layer("LSTM", "relu", activations=["Sigmoid", "Relu", "Relu"]),
    layer("LSTM", "three functions", activations=["Tanh", "Sigmoid", "Tanh"]),
    layer("LSTM", "coupled gates", initial=True, input_forget=1),
    layer("LSTM", "coupled gates, lengths", initial=True, lengths=LENGTHS, input_forget=1),
    refused(
        "LSTM",
        "an LSTM with peepholes",
        x(STEPS, B, INPUT),
        small(1, 8, INPUT),
        small(1, 8, SIZE),
        *[None] * 4,
        small(1, 6),
        hidden_size=SIZE,
    ),
]
