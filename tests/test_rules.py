"""Every gradient rule against central differences in float64, and in float32 against float64.

A case is one operator with its inputs and attributes. Its outputs are multiplied by random cotangents u, so
that the logits are <u, y>, and the gradient with respect to an input x is Jᵀu. For random directions v,
<Jᵀu, v> must equal the slope of <u, y> along v. An operator more is a rule and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphs import Array, differentiated, finished, gradient_name, in_float64, in_onnxruntime
from onnxplain.errors import UnsupportedOperatorError
from onnxplain_export.float64 import Arrays, Float64Graph
from onnxplain_export.rules import RULES, SELECTION_RULES

B = "batch"
COTANGENTS = 2


@dataclass(frozen=True)
class X:
    """An input to differentiate with respect to; ``B`` in its shape is the dynamic batch."""

    shape: tuple[int | str, ...]
    positive: bool = False

    def draw(self, rng: np.random.Generator, batch: int) -> Array:
        sample = rng.standard_normal([batch if size == B else size for size in self.shape])
        return (np.abs(sample) + 0.5 if self.positive else sample).astype(np.float32)


@dataclass(frozen=True)
class Case:
    operator: str
    note: str
    inputs: tuple[X | Array | None, ...]
    """What is differentiated, constants, and None for an input left out."""
    attributes: dict[str, object] = field(default_factory=dict)
    outputs: tuple[bool, ...] = (True,)
    """Which of the node's outputs are used."""
    error: str = ""
    """What an error says that is expected instead of a gradient."""

    def __str__(self) -> str:
        return f"{self.operator}: {self.note}"


def x(*shape: int | str) -> X:
    return X(shape)


def positive(*shape: int | str) -> X:
    return X(shape, positive=True)


def weights(*shape: int) -> Array:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) + 0.1).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


def row(
    operator: str,
    note: str,
    *inputs: X | Array | None,
    outputs: tuple[bool, ...] = (True,),
    **attributes: object,
) -> Case:
    return Case(operator, note, inputs, attributes, outputs)


def refused(operator: str, error: str, *inputs: X | Array | None, **keywords: Any) -> Case:
    return replace(row(operator, error, *inputs, **keywords), error=error)


CASES = [
    # activations
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
    # arithmetic; for the broadcasting of all, see also test_differentiate.py
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
    # convolution
    row("Conv", "3x3, stride 1", x(B, 3, 6, 5), weights(4, 3, 3, 3), weights(4), pads=[1, 1, 1, 1]),
    row("Conv", "1x1", x(B, 3, 4, 4), weights(5, 3, 1, 1)),
    row("Conv", "1x1, stride 2, even size", x(B, 3, 6, 6), weights(5, 3, 1, 1), strides=[2, 2]),
    row(
        "Conv",
        "7x7, stride 2: the last window falls short of the end",
        x(B, 2, 12, 11),
        weights(3, 2, 7, 7),
        pads=[3, 3, 3, 3],
        strides=[2, 2],
    ),
    row("Conv", "stride 3 leaves two places over", x(B, 2, 10, 9), weights(3, 2, 2, 2), strides=[3, 3]),
    row("Conv", "asymmetric pads", x(B, 2, 5, 6), weights(3, 2, 3, 2), pads=[2, 0, 1, 1]),
    row(
        "Conv",
        "asymmetric pads, stride 2",
        x(B, 2, 7, 6),
        weights(3, 2, 3, 3),
        pads=[0, 1, 2, 0],
        strides=[2, 1],
    ),
    row("Conv", "pads wider than the window", x(B, 2, 4, 4), weights(3, 2, 2, 2), pads=[3, 1, 1, 2]),
    row("Conv", "dilated", x(B, 2, 9, 8), weights(3, 2, 3, 3), dilations=[2, 3], pads=[2, 1, 2, 3]),
    row(
        "Conv",
        "dilated, stride 2",
        x(B, 2, 9, 10),
        weights(3, 2, 3, 2),
        dilations=[2, 2],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row("Conv", "groups", x(B, 4, 5, 5), weights(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    row("Conv", "groups, 1x1", x(B, 4, 3, 3), weights(6, 2, 1, 1), group=2),
    row(
        "Conv",
        "depthwise, stride 2",
        x(B, 4, 6, 7),
        weights(4, 1, 3, 3),
        group=4,
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row("Conv", "depthwise, two filters a channel", x(B, 3, 5, 5), weights(6, 1, 3, 3), group=3),
    row("Conv", "valid", x(B, 2, 5, 5), weights(3, 2, 3, 3), auto_pad="VALID"),
    row("Conv", "1-D", x(B, 3, 8), weights(4, 3, 3), pads=[1, 1]),
    row("Conv", "1-D, stride 2", x(B, 3, 8), weights(4, 3, 3), strides=[2], pads=[1, 0]),
    row("Conv", "3-D", x(B, 2, 4, 3, 5), weights(3, 2, 2, 3, 2), pads=[0, 1, 1, 1, 1, 0]),
    row("Conv", "3-D, stride 2", x(B, 2, 4, 3, 5), weights(3, 2, 2, 3, 2), strides=[2, 1, 2]),
    row("Conv", "batch of 1 alone", x(1, 2, 4, 4), weights(3, 2, 3, 3)),
    refused("Conv", "weights depend on the layer", x(B, 2, 4, 4), x(3, 2, 3, 3)),
    refused("Conv", "auto_pad", x(B, 2, 4, 4), weights(3, 2, 3, 3), auto_pad="SAME_UPPER"),
    # matrix products
    row("MatMul", "constant on the right", x(B, 4), weights(4, 3)),
    row("MatMul", "constant on the left", weights(5, 3), x(B, 3, 4)),
    row("MatMul", "3-D by 2-D", x(B, 3, 4), x(4, 2)),
    row("MatMul", "2-D by 3-D", x(3, 4), x(B, 4, 2)),
    row("MatMul", "attention", x(B, 2, 3, 4), x(B, 2, 4, 3)),
    row("MatMul", "broadcast batches", x(B, 1, 3, 4), x(5, 4, 2)),
    row("MatMul", "inner size 1", x(B, 3, 1), x(B, 1, 4)),
    row("MatMul", "outer size 1", x(B, 1, 4), x(4, 1)),
    refused("MatMul", "with a vector", x(B, 4), x(4)),
    refused("MatMul", "MatMul with a vector", x(4), x(B, 4, 2)),
    row("Gemm", "plain", x(B, 4), x(4, 3), x(3)),
    row("Gemm", "no bias", x(B, 4), x(4, 3)),
    row("Gemm", "linear layer", x(B, 4), weights(3, 4), weights(3), transB=1),
    row("Gemm", "transB, alpha, beta", x(B, 4), x(3, 4), x(1, 3), transB=1, alpha=0.5, beta=-2.0),
    row("Gemm", "transA", x(4, 2), x(4, 3), x(2, 1), transA=1, beta=3.0),
    row("Gemm", "transA, transB, alpha", x(4, 2), x(3, 4), x(2, 3), transA=1, transB=1, alpha=1.5),
    row("Gemm", "scalar bias", x(B, 4), x(4, 3), x()),
    row("Gemm", "bias of shape [1]", x(B, 4), x(4, 3), x(1)),
    row("Gemm", "inner size 1", x(B, 1), x(3, 1), transB=1),
    # normalisation
    *[
        row(
            "BatchNormalization",
            f"{len(shape)}-D",
            x(*shape),
            weights(3),
            weights(3),
            weights(3),
            np.abs(weights(3)) + 0.5,
            **attributes,
        )
        for shape, attributes in [
            ((B, 3), {}),
            ((B, 3, 5), {"epsilon": 0.1}),
            ((B, 3, 4, 2), {}),
            ((B, 3, 2, 2, 2), {"epsilon": 1e-3}),
        ]
    ],
    refused(
        "BatchNormalization",
        "statistics or scale depend on the layer",
        x(B, 3, 4),
        x(3),
        weights(3),
        weights(3),
        np.abs(weights(3)) + 0.5,
    ),
    refused(
        "BatchNormalization",
        "BatchNormalization in training mode",
        x(B, 3, 4),
        weights(3),
        weights(3),
        weights(3),
        np.abs(weights(3)) + 0.5,
        training_mode=1,
        outputs=(True, False, False),
    ),
    row("LayerNormalization", "last axis", x(B, 3, 6), weights(6), weights(6)),
    row("LayerNormalization", "no bias, epsilon", x(B, 6), weights(6), epsilon=0.5),
    row("LayerNormalization", "axis 1", x(B, 3, 4), weights(3, 4), weights(3, 4), axis=1),
    row("LayerNormalization", "axis -3", x(B, 3, 2, 4), weights(3, 2, 4), axis=-3),
    refused(
        "LayerNormalization",
        "of which more than the first output is used",
        x(B, 3, 6),
        weights(6),
        outputs=(True, True),
    ),
    refused("LayerNormalization", "scale or bias depends on the layer", x(B, 3, 6), x(6)),
    # pooling
    row("MaxPool", "2x2", x(B, 3, 6, 4), kernel_shape=[2, 2], strides=[2, 2]),
    row(
        "MaxPool",
        "3x3, stride 2, padded, overlapping",
        x(B, 2, 7, 6),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row("MaxPool", "stride 1", x(B, 2, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    row("MaxPool", "ceil", x(B, 2, 6, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    row("MaxPool", "asymmetric pads", x(B, 2, 5, 5), kernel_shape=[3, 2], strides=[2, 2], pads=[0, 1, 2, 0]),
    row("MaxPool", "dilated", x(B, 2, 7, 7), kernel_shape=[2, 3], dilations=[3, 2]),
    row("MaxPool", "1-D", x(B, 2, 9), kernel_shape=[3], strides=[2]),
    row("MaxPool", "3-D", x(B, 2, 4, 4, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    refused("MaxPool", "storage order 1", x(B, 2, 4, 4), kernel_shape=[2, 2], storage_order=1),
    row("AveragePool", "2x2", x(B, 3, 6, 4), kernel_shape=[2, 2], strides=[2, 2]),
    row("AveragePool", "identity", x(B, 3, 2, 2), kernel_shape=[1, 1]),
    row("AveragePool", "1x1, stride 2", x(B, 3, 5, 4), kernel_shape=[1, 1], strides=[2, 2]),
    row(
        "AveragePool",
        "padded, pads not counted",
        x(B, 2, 6, 7),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
    row(
        "AveragePool",
        "padded, pads counted",
        x(B, 2, 6, 7),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        count_include_pad=1,
    ),
    row("AveragePool", "asymmetric pads", x(B, 2, 5, 5), kernel_shape=[3, 2], pads=[0, 1, 2, 0]),
    row("AveragePool", "the last window falls short", x(B, 2, 8, 7), kernel_shape=[2, 2], strides=[3, 3]),
    row("AveragePool", "dilated", x(B, 2, 7, 8), kernel_shape=[2, 3], dilations=[2, 2]),
    row("AveragePool", "1-D, padded", x(B, 2, 9), kernel_shape=[3], strides=[2], pads=[1, 0]),
    row("AveragePool", "3-D", x(B, 2, 4, 5, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    refused("AveragePool", "ceil_mode", x(B, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    row("GlobalAveragePool", "2-D", x(B, 3, 4, 5)),
    row("GlobalAveragePool", "1-D", x(B, 3, 4)),
    row("GlobalAveragePool", "3-D", x(B, 3, 2, 3, 2)),
    # reductions
    *[
        row(operator, note, x(B, 3, 4, 2), axes, **attributes)
        for operator in ("ReduceMean", "ReduceSum")
        for note, axes, attributes in [
            ("space", ints(2, 3), {}),
            ("space, axes dropped", ints(2, 3), {"keepdims": 0}),
            ("negative axes, unordered, dropped", ints(-1, -3), {"keepdims": 0}),
            ("one axis in the middle, dropped", ints(2), {"keepdims": 0}),
            ("over the batch", ints(0, 2), {"keepdims": 0}),
            ("all", None, {}),
            ("all, dropped", None, {"keepdims": 0}),
            ("empty axes: all", ints(), {}),
            ("empty axes: none", ints(), {"noop_with_empty_axes": 1}),
            ("no axes: none", None, {"noop_with_empty_axes": 1, "keepdims": 0}),
        ]
    ],
    # elements moved, or taken as they are
    row("Identity", "3-D", x(B, 3, 4)),
    row("Dropout", "no other inputs", x(B, 3, 4)),
    row("Dropout", "ratio given", x(B, 3), number(0.3)),
    row("Dropout", "training_mode false", x(B, 3), number(0.3), np.array(False)),
    refused("Dropout", "Dropout in training mode", x(B, 3), number(0.3), np.array(True)),
    row("Cast", "to float32", x(B, 3), to=TensorProto.FLOAT),
    row("Reshape", "0 and -1", x(B, 3, 4, 2), ints(0, -1)),
    row("Reshape", "batch merged with another axis", x(B, 6, 4), ints(-1, 3, 4)),
    row("Reshape", "more axes", x(B, 6), ints(-1, 2, 3)),
    row("Flatten", "axis 1", x(B, 3, 4, 2)),
    row("Flatten", "axis 0", x(B, 3), axis=0),
    row("Flatten", "axis 3", x(B, 3, 2, 4), axis=3),
    row("Flatten", "axis -1", x(B, 3, 2, 4), axis=-1),
    row("Squeeze", "axes named", x(B, 3, 1, 1), ints(2, -1)),
    row("Squeeze", "all of size 1", x(2, 1, 3, 1)),
    row("Unsqueeze", "outermost and last", x(B, 3), ints(0, -1)),
    row("Unsqueeze", "between", x(B, 3), ints(2, 1)),
    row("Transpose", "reversed by default", x(B, 3, 4)),
    row("Transpose", "a cycle", x(B, 3, 4, 2), perm=[0, 2, 3, 1]),
    row("Transpose", "the batch moves", x(B, 3, 4), perm=[1, 2, 0]),
    row("Expand", "one axis", x(B, 3, 1), ints(1, 1, 4)),
    row("Expand", "new axes", x(3, 1), ints(2, 5, 3, 4)),
    row("Expand", "nothing to repeat", x(B, 3), ints(1, 3)),
    row("Expand", "a scalar", x(), ints(2, 3)),
    row("Concat", "three inputs, unequal", x(B, 2, 3), x(B, 4, 3), x(B, 1, 3), axis=1),
    row("Concat", "negative axis, a constant between", x(2, 2), weights(2, 3), x(2, 1), axis=-1),
    row("Concat", "along the batch", x(B, 2), x(B, 2), axis=0),
    row("Concat", "a single input", x(B, 2), axis=1),
    row("Split", "even", x(B, 4, 3), axis=1, num_outputs=2, outputs=(True, True)),
    row("Split", "uneven", x(B, 7, 3), ints(2, 4, 1), axis=1, outputs=(True, True, True)),
    row("Split", "the last part smaller", x(B, 5), axis=-1, num_outputs=2, outputs=(True, True)),
    row("Split", "unused parts", x(B, 7, 3), ints(2, 4, 1), axis=1, outputs=(False, True, False)),
    row("Split", "axis 0", x(4, 3), num_outputs=2, outputs=(True, False)),
    row("Gather", "scalar index", x(B, 5, 3), np.array(2), axis=1),
    row("Gather", "repeated and negative indices", x(B, 5, 3), ints(1, -1, 1, 4), axis=1),
    row("Gather", "indices of two axes", x(B, 3, 5), np.array([[0, 4, 0], [-5, 2, 0]]), axis=2),
    row("Gather", "last axis by a negative number", x(B, 2, 5), ints(3, 3), axis=-1),
    row("Gather", "axis 0 by default", x(4, 3), np.array([[1, 1], [-1, 0]])),
    row("Gather", "int32 indices", x(B, 5), np.array([-1, 0, 0], np.int32), axis=1),
    row("Gather", "a single index", x(B, 5, 2, 2), ints(0), axis=1),
]

SELECTION_CASES = [
    row("Gemm", "linear layer", x(B, 4), weights(5, 4), weights(5), transB=1),
    row("Gemm", "not transposed, alpha", x(B, 4), weights(4, 5), alpha=0.5),
    row("MatMul", "plain", x(B, 4), weights(4, 5)),
    row("Identity", "logits as they are", x(B, 5)),
    row("Add", "a bias", x(B, 5), weights(5)),
    row("Add", "two branches", x(B, 5), x(B, 5)),
]

# The operator computes the logits in a way that its selection rule doesn't take; the general one steps in.
GENERAL_CASES = [
    row("Dropout", "logits as they are", x(B, 5)),
    row("Gemm", "weights computed", x(B, 4), x(5, 4), x(5), transB=1),
    row("Gemm", "transA", x(4, 2), weights(4, 5), transA=1),
    row("MatMul", "weights computed", x(B, 4), x(4, 5)),
    row("Add", "broadcast", x(B, 5), x(B, 1)),
]


@dataclass(frozen=True)
class Built:
    """A case as a graph with the output ``logits``."""

    model: ir.Model
    targets: tuple[str, ...]
    feeds: Arrays


def build(case: Case, batch: int = 2, *, computes_logits: bool = False) -> Built:
    """Make the graph and the inputs of a case.

    The logits are [1, COTANGENTS]: all outputs of the operator, multiplied by as many cotangents; or, where
    it is to compute the logits, the operator's own output.
    """
    rng = np.random.default_rng(sum(map(ord, str(case))))
    names = ["" if given is None else f"x{index}" for index, given in enumerate(case.inputs)]
    named = dict(zip(names, case.inputs, strict=True))
    inputs = {name: given for name, given in named.items() if isinstance(given, X)}
    constants = {name: given for name, given in named.items() if isinstance(given, np.ndarray)}
    feeds = {name: given.draw(rng, batch) for name, given in inputs.items()}
    shapes = {name: list(given.shape) for name, given in inputs.items()}
    if computes_logits:
        nodes = [helper.make_node(case.operator, names, ["logits"], name="the_node", **case.attributes)]
    else:
        outputs = [f"y{index}" for index in range(len(case.outputs))]
        used = [index for index, is_used in enumerate(case.outputs) if is_used]
        nodes = [
            helper.make_node(case.operator, names, outputs, name="the_node", **case.attributes),
            *(helper.make_node("Reshape", [f"y{index}", "row"], [f"flat{index}"]) for index in used),
            helper.make_node("Concat", [f"flat{index}" for index in used], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "cotangents"], ["logits"]),
        ]
        constants["row"] = ints(1, -1)
        shapes["cotangents"] = ["elements", COTANGENTS]
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = finished(proto, constants)
    if not computes_logits:
        elements = in_float64(model, feeds, ["flat"])["flat"].size
        feeds["cotangents"] = rng.standard_normal((elements, COTANGENTS)).astype(np.float32)
    return Built(model, tuple(inputs), feeds)


def classes_of(built: Built, rows: int = COTANGENTS) -> Array:
    """Return indices of logits, [rows, batch], each image's and each row's different."""
    batch, count = in_float64(built.model, built.feeds, ["logits"])["logits"].shape
    return (np.arange(rows)[:, None] + np.arange(batch)) % count


def check_slopes(built: Built, model: ir.Model, classes: Array) -> None:
    """Compare every input's gradient with central differences of the logits along random directions."""
    names = [gradient_name(target) for target in built.targets]
    found = in_float64(model, {**built.feeds, "classes": classes}, names)
    forward = Float64Graph(built.model, list(built.feeds), ["logits"], {})
    rng = np.random.default_rng(0)
    step = 1e-5
    for target, name in zip(built.targets, names, strict=True):
        point, gradient = built.feeds[target].astype(np.float64), found[name]
        assert gradient.shape == (len(classes), *point.shape)
        assert np.linalg.norm(gradient) > 0.01
        for _ in range(3):
            direction = rng.standard_normal(point.shape)
            ahead, behind = (
                forward.run({**built.feeds, target: point + sign * step * direction})["logits"]
                for sign in (1, -1)
            )
            slope = np.take_along_axis((ahead - behind) / (2 * step), classes.T, axis=1).sum(axis=0)
            product = (gradient * direction).reshape(len(classes), -1).sum(axis=1)
            size = np.linalg.norm(gradient) * np.linalg.norm(direction)
            np.testing.assert_allclose(product, slope, rtol=0, atol=1e-7 * size)


SUPPORTED = [case for case in CASES if not case.error]
DYNAMIC = [
    case for case in SUPPORTED if any(isinstance(given, X) and B in given.shape for given in case.inputs)
]


def test_every_operator_has_a_case():
    assert {case.operator for case in SUPPORTED} == set(RULES)
    assert {case.operator for case in SELECTION_CASES} == set(SELECTION_RULES)
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", SUPPORTED, ids=str)
def test_rule(case):
    built = build(case)
    model = differentiated(built.model, *built.targets)
    check_slopes(built, model, classes_of(built))


@pytest.mark.parametrize("case", SUPPORTED, ids=str)
def test_rule_in_onnxruntime(case):
    check_onnxruntime(build(case), COTANGENTS)


@pytest.mark.parametrize("case", DYNAMIC, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_rule_with_another_batch(case, batch):
    check_onnxruntime(build(case, batch), COTANGENTS)


@pytest.mark.parametrize("case", SUPPORTED, ids=str)
def test_rule_without_classes(case):
    check_onnxruntime(build(case), 0)


def check_onnxruntime(built: Built, rows: int) -> None:
    """Compare float32 in onnxruntime with float64 in the reference evaluator, within float32's rounding."""
    classes = classes_of(built, rows)
    names = [gradient_name(target) for target in built.targets]
    model = differentiated(built.model, *built.targets)
    single = in_onnxruntime(model, {**built.feeds, "classes": classes})
    for name, target in zip(names, built.targets, strict=True):
        assert single[name].dtype == np.float32
        assert single[name].shape == (rows, *built.feeds[target].shape)
    if rows:
        double = in_float64(model, {**built.feeds, "classes": classes}, names)
        for name in names:
            largest = np.abs(double[name]).max()
            np.testing.assert_allclose(single[name], double[name], rtol=0, atol=3e-6 * largest)


@pytest.mark.parametrize("case", [case for case in CASES if case.error], ids=str)
def test_unsupported_case(case):
    built = build(case)
    with pytest.raises(UnsupportedOperatorError, match=rf"{case.error} \(node 'the_node'\)"):
        differentiated(built.model, *built.targets)


@pytest.mark.parametrize("case", SELECTION_CASES, ids=str)
def test_selection_rule(case, monkeypatch):
    """The rule that uses the classes' indices takes the case, and the general one isn't asked."""

    def general(*arguments: object) -> None:
        raise AssertionError("the general rule was applied")

    monkeypatch.setitem(RULES, case.operator, replace(RULES[case.operator], rule=general))
    built = build(case, batch=3, computes_logits=True)
    model = differentiated(built.model, *built.targets)
    check_slopes(built, model, classes_of(built))
    check_onnxruntime(build(case, batch=3, computes_logits=True), rows=4)
    check_onnxruntime(build(case, batch=3, computes_logits=True), rows=0)


@pytest.mark.parametrize("case", GENERAL_CASES, ids=str)
def test_general_rule_of_the_logits(case):
    built = build(case, batch=3, computes_logits=True)
    model = differentiated(built.model, *built.targets)
    check_slopes(built, model, classes_of(built))
    check_onnxruntime(build(case, batch=3, computes_logits=True), rows=4)
    check_onnxruntime(build(case, batch=3, computes_logits=True), rows=0)
