"""Rows for `onnxplain_export.rules.activations`."""

from __future__ import annotations

from rule_cases.case import B, number, refused, row, weights, x

CASES = [
    row("Relu", "4-D", x(B, 3, 4, 4)),
    row("Relu", "2-D", x(B, 7)),
    row("Clip", "both bounds", x(B, 5, 3), number(-0.5), number(0.75)),
    row("Clip", "lower bound alone", x(B, 9), number(0.25)),
    row("Clip", "upper bound alone", x(B, 9), None, number(0.25)),
    row("Clip", "no bound", x(B, 9)),
    refused("Clip", "bounds depend on the layer", x(B, 9), x()),
    row("Sigmoid", "4-D", x(B, 2, 3, 3)),
    row("Tanh", "3-D", x(B, 2, 3)),
    row("HardSigmoid", "defaults", x(B, 40)),
    row("HardSigmoid", "alpha and beta", x(B, 40), alpha=0.3, beta=0.4),
    row("HardSwish", "3-D", x(B, 20, 2)),
    row("Gelu", "erf", x(B, 4, 5)),
    row("Gelu", "tanh", x(B, 4, 5), approximate="tanh"),
    row("Softmax", "last axis by default", x(B, 3, 5)),
    row("Softmax", "axis 1 of 4", x(B, 3, 2, 4), axis=1),
    row("Softmax", "axis 0", x(3, 4), axis=0),
    row("Softmax", "axis -2", x(B, 3, 4), axis=-2),
    row("LogSoftmax", "last axis by default", x(B, 3, 5)),
    row("LogSoftmax", "axis 1 of 4", x(B, 3, 2, 4), axis=1),
    row("LeakyRelu", "default", x(B, 9)),
    row("LeakyRelu", "alpha", x(B, 9), alpha=0.3),
    row("PRelu", "a slope a channel", x(B, 3, 4), weights(3, 1)),
    row("PRelu", "the slope too", x(B, 3, 4), x(3, 1)),
    row("Elu", "default", x(B, 9)),
    row("Elu", "alpha", x(B, 9), alpha=0.4),
    row("Selu", "default", x(B, 9)),
    row("Selu", "alpha and gamma", x(B, 9), alpha=1.2, gamma=0.7),
    row("Celu", "default", x(B, 9)),
    row("Celu", "alpha", x(B, 9), alpha=0.4),
    row("ThresholdedRelu", "default", x(B, 30)),
    row("ThresholdedRelu", "alpha", x(B, 9), alpha=0.2),
    row("Shrink", "lambd and bias", x(B, 20), lambd=0.4, bias=0.1),
    row("Mish", "3-D", x(B, 3, 4)),
]
