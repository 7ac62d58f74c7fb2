"""Every gradient rule against central differences in float64, and in float32 against float64.

A case is one operator with its inputs and attributes. Its outputs are multiplied by random cotangents u, so
that the logits are <u, y>, and the gradient with respect to an input x is Jᵀu. For random directions v,
<Jᵀu, v> must equal the slope of <u, y> along v. An operator more is a rule and a row here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import rule_cases
from graphs import Array, differentiated, finished, gradient_name, in_float64, in_onnxruntime, value_named
from onnxplain.errors import UnsupportedOperatorError
from onnxplain_export.graph import static_dims
from onnxplain_export.reference_graph import Arrays, ReferenceGraph
from onnxplain_export.rules import RULES, SELECTION_RULES
from onnxplain_export.rules.parts import INPUT_AXES
from rule_cases.case import B, Case, Fed, X, ints, row, weights, x

COTANGENTS = 2
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

#: The rows of every file in `rule_cases`, which are named as the files of rules are.
CASES: list[Case] = [
    case
    for family in pkgutil.iter_modules(rule_cases.__path__)
    for case in getattr(importlib.import_module(f"rule_cases.{family.name}"), "CASES", [])
]

SELECTION_CASES = [
    row("Gemm", "linear layer", x(B, 4), weights(5, 4), weights(5), transB=1),
    row("Gemm", "not transposed, alpha", x(B, 4), weights(4, 5), alpha=0.5),
    row("MatMul", "plain", x(B, 4), weights(4, 5)),
    row("Identity", "logits as they are", x(B, 5)),
    row("Add", "a bias", x(B, 5), weights(5)),
    row("Add", "two branches", x(B, 5), x(B, 5)),
    row("Reshape", "maps of one place", x(B, 5, 1, 1), ints(-1, 5)),
    row("Flatten", "maps of one place", x(B, 5, 1, 1)),
    row("Squeeze", "maps of one place", x(B, 5, 1, 1), ints(2, 3)),
    row("ReduceMean", "of maps", x(B, 5, 3, 4), ints(2, 3), keepdims=0),
]
#: Those whose result isn't logits, but maps: `test_class_maps` has them.
ON_CLASS_MAPS = {"Conv", "GlobalAveragePool", "Relu"}

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


def build(
    case: Case,
    batch: int = 2,
    *,
    computes_logits: bool = False,
    read: tuple[int, int] | None = None,
    divided: bool = False,
) -> Built:
    """Make the graph and the inputs of a case.

    The logits are [1, COTANGENTS]: all outputs of the operator, multiplied by as many cotangents; or, where
    it is to compute the logits, the operator's own output. With `read`, an axis and a place, that place of
    the output alone is read. With `divided` the logits are all elements of the outputs, each over a number
    that is fed.
    """
    rng = np.random.default_rng(sum(map(ord, str(case))))
    names = ["" if given is None else f"x{index}" for index, given in enumerate(case.inputs)]
    named = dict(zip(names, case.inputs, strict=True))
    inputs = {name: given for name, given in named.items() if isinstance(given, X)}
    constants = {name: given for name, given in named.items() if isinstance(given, np.ndarray)}
    numbers = {name: given.array for name, given in named.items() if isinstance(given, Fed)}
    feeds = {name: given.draw(rng, batch) for name, given in inputs.items()} | numbers
    shapes = {name: list(given.shape) for name, given in inputs.items()}
    if computes_logits:
        nodes = [helper.make_node(case.operator, names, ["logits"], name="the_node", **case.attributes)]
    else:
        outputs = ["" if is_used is None else f"y{index}" for index, is_used in enumerate(case.outputs)]
        used = [index for index, is_used in enumerate(case.outputs) if is_used]
        all_or_part = "y" if read is None else "part"
        nodes = [
            helper.make_node(case.operator, names, outputs, name="the_node", **case.attributes),
            *(helper.make_node("Reshape", [f"{all_or_part}{i}", "row"], [f"row{i}"]) for i in used),
            # What is cast to another type meets the cotangents as float32.
            *(helper.make_node("Cast", [f"row{index}"], [f"flat{index}"], to=FLOAT) for index in used),
            helper.make_node("Concat", [f"flat{index}" for index in used], ["flat"], axis=1),
            helper.make_node("Div" if divided else "MatMul", ["flat", "cotangents"], ["logits"]),
        ]
        constants["row"] = ints(1, -1)
        if read is not None:
            axis, place = read
            nodes.insert(1, helper.make_node("Gather", ["y0", "place"], ["part0"], axis=axis))
            constants["place"] = np.array(place)
        shapes["cotangents"] = [1, "elements"] if divided else ["elements", COTANGENTS]
    graph = helper.make_graph(
        nodes,
        "case",
        [
            *(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in shapes.items()
            ),
            *(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in numbers.items()
            ),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = finished(proto, constants)
    if not computes_logits:
        found = in_float64(model, feeds, ["flat", *(outputs[index] for index in used)])
        elements = found["flat"].size
        for index in used:
            # Where an input is only known when it is fed, inference doesn't find the rank, and in a pooling
            # with `ceil_mode` it may count a window too many; exporters know better.
            value, shape = value_named(model, outputs[index]), found[outputs[index]].shape
            inferred = value.shape or [None] * len(shape)
            value.shape = ir.Shape(
                [
                    size if isinstance(known, int) else known
                    for known, size in zip(inferred, shape, strict=True)
                ]
            )
        drawn = rng.standard_normal((elements, COTANGENTS)).astype(np.float32)
        feeds["cotangents"] = np.ones((1, elements), np.float32) if divided else drawn
    return Built(model, tuple(inputs), feeds)


def classes_of(built: Built, rows: int = COTANGENTS) -> Array:
    """Return indices of logits, [rows, batch], each image's and each row's different."""
    batch, count = in_float64(built.model, built.feeds, ["logits"])["logits"].shape
    return (np.arange(rows)[:, None] + np.arange(batch)) % count


def check_slopes(built: Built, model: ir.Model, classes: Array, least: float = 0.01) -> None:
    """Compare every input's gradient with central differences of the logits along random directions.

    A norm below `least` fails: nothing would have been compared.
    """
    names = [gradient_name(target) for target in built.targets]
    found = in_float64(model, {**built.feeds, "classes": classes}, names)
    forward = ReferenceGraph(built.model, list(built.feeds), ["logits"], {})
    rng = np.random.default_rng(0)
    step = 1e-5
    for target, name in zip(built.targets, names, strict=True):
        point, gradient = built.feeds[target].astype(np.float64), found[name]
        assert gradient.shape == (len(classes), *point.shape)
        assert np.linalg.norm(gradient) >= least
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


#: Neither makes sense without the other: they have tests of their own, in `test_quantization.py`.
QUANTISERS = {"QuantizeLinear", "DequantizeLinear"}
SUPPORTED = [case for case in CASES if not case.error]
DYNAMIC = [
    case for case in SUPPORTED if any(isinstance(given, X) and B in given.shape for given in case.inputs)
]


def test_every_operator_has_a_case():
    assert {case.operator for case in SUPPORTED} == set(RULES) - QUANTISERS
    assert {case.operator for case in SELECTION_CASES} == set(SELECTION_RULES) - ON_CLASS_MAPS
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", SUPPORTED, ids=str)
def test_rule(case):
    built = build(case)
    model = differentiated(built.model, *built.targets)
    check_slopes(built, model, classes_of(built))


GENERAL_SLIPS: dict[str, Callable[[Any, Any], Any]] = {
    "negated": lambda op, gradient: op.Neg(gradient),
    "a hundredth more": lambda op, gradient: op.Mul(gradient, 1.01),
}


@pytest.mark.parametrize("slip", GENERAL_SLIPS)
@pytest.mark.parametrize("operator", sorted(set(RULES) - QUANTISERS))
def test_wrong_rule(operator, slip, monkeypatch):
    """The first row of each operator fails where its rule is wrong."""
    entry = RULES[operator]

    def wrong(op: Any, node: ir.Node, *arguments: Any) -> Any:
        gradient = entry.rule(op, node, *arguments)
        # Wrong in the case alone: the nodes around it may be of the same operator, and two signs cancel.
        if gradient is None or node.name != "the_node":
            return gradient
        return GENERAL_SLIPS[slip](op, gradient)

    monkeypatch.setitem(RULES, operator, replace(entry, rule=wrong))
    built = build(next(case for case in SUPPORTED if case.operator == operator))
    model = differentiated(built.model, *built.targets)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
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
        double = in_float64(model, {**built.feeds, "classes": classes}, ["logits", *names])
        # What the two engines make of the operator itself; its inputs, which may cancel out, are of size 1.
        np.testing.assert_allclose(single["logits"], double["logits"], rtol=3e-6, atol=3e-6)
        for name in names:
            largest = np.abs(double[name]).max()
            np.testing.assert_allclose(single[name], double[name], rtol=0, atol=3e-6 * largest)


#: Zeros that are numbers of the network or its padding: PyTorch, too, multiplies by them.
ZEROS_ARE_NUMBERS = {
    "Conv: weights computed",
    "Mod: both",
    "ScatterElements: times zero",
    "ScatterElements: times zeros",
}
DIVIDED = [
    case for case in SUPPORTED if case.operator not in QUANTISERS and str(case) not in ZEROS_ARE_NUMBERS
]


@pytest.mark.parametrize("case", DIVIDED, ids=str)
def test_what_an_infinite_gradient_reaches(case):
    """A place of the output with an infinite gradient leaves alone what that place doesn't depend on."""
    built = build(case, divided=True)
    names = [gradient_name(target) for target in built.targets]
    count = built.feeds["cotangents"].size
    places = np.unique(np.linspace(0, count - 1, 12).astype(int))
    model = differentiated(built.model, *built.targets)
    feeds = {**built.feeds, "classes": places[:, None]}
    slopes = in_onnxruntime(model, feeds)
    for number in (0, len(places) // 2):
        divisors = np.ones((1, count), np.float32)
        divisors[0, places[number]] = 0.0
        found = in_onnxruntime(model, {**feeds, "cotangents": divisors})
        for name in names:
            is_reached = np.broadcast_to(slopes[name][number] != 0, slopes[name].shape)
            assert not np.isfinite(found[name][is_reached]).any()
            size = np.abs(slopes[name]).max(initial=0.0)
            np.testing.assert_allclose(
                found[name][~is_reached], slopes[name][~is_reached], rtol=0, atol=1e-6 * size
            )


PLACES_APART = [case for case in SUPPORTED if case.operator in INPUT_AXES and case.outputs == (True,)]


@pytest.mark.parametrize("case", PLACES_APART, ids=str)
def test_rule_where_one_place_is_read(case):
    """The gradient is zero but for a place along an axis of the output, whichever that is."""
    for axis, length in enumerate(static_dims(value_named(build(case).model, "y0"))):
        if length is not None and length > 1:
            built = build(case, read=(axis, length - 1))
            model = differentiated(built.model, *built.targets)
            # The place may be one that doesn't count.
            check_slopes(built, model, classes_of(built), least=0.0)
            check_onnxruntime(build(case, read=(axis, length - 1)), COTANGENTS)
            check_onnxruntime(build(case, read=(axis, length - 1)), 0)


@pytest.mark.parametrize("operator", sorted(INPUT_AXES))
def test_rule_sees_one_place_alone(operator, monkeypatch):
    """Of each operator that computes places apart there is a case in which the rule gets one of them."""
    entry, seen = RULES[operator], set()

    def watched(op: Any, node: ir.Node, *arguments: Any) -> Any:
        seen.add(tuple(static_dims(node.outputs[0])))
        return entry.rule(op, node, *arguments)

    for case in (case for case in PLACES_APART if case.operator == operator):
        whole = static_dims(value_named(build(case).model, "y0"))
        for axis, length in enumerate(whole):
            if length is not None and length > 1:
                built = build(case, read=(axis, length - 1))
                with monkeypatch.context() as patched:
                    patched.setitem(RULES, operator, replace(entry, rule=watched))
                    differentiated(built.model, *built.targets)
                if (*whole[:axis], 1, *whole[axis + 1 :]) in seen:
                    return
    raise AssertionError(f"no case of {operator} was seen at one place")


@pytest.mark.parametrize("operator", ["GatherND", "Gather", "GatherElements"])
def test_copies_are_added_up_in_several_threads(operator):
    """onnxruntime's ScatterND adds up copies of one slice in several threads at once, and loses some."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, 8, (2048, 64 if operator == "GatherElements" else 1))
    if operator == "Gather":
        places = places[:, 0]
    built = build(row(operator, "many copies", x(8, 64), Fed(places)))
    model = differentiated(built.model, *built.targets)
    feeds = {**built.feeds, "classes": classes_of(built)}
    (name,) = map(gradient_name, built.targets)
    double = in_float64(model, feeds, [name])[name]
    for _ in range(10):
        single = in_onnxruntime(model, feeds, threads=4)[name]
        np.testing.assert_allclose(single, double, rtol=0, atol=1e-4 * np.abs(double).max())


@pytest.mark.parametrize("like", [False, True])
def test_half_precision(like):
    """The gradient comes back through float16, rounded there: exact in float64, near it in onnxruntime."""
    half = np.array(1, np.float16)
    case = row("CastLike", "half", x(B, 3), half) if like else row("Cast", "half", x(B, 3), to=HALF)
    built = build(case)
    model = differentiated(built.model, *built.targets)
    classes = classes_of(built)
    check_slopes(built, model, classes)
    feeds = {**built.feeds, "classes": classes}
    (name,) = map(gradient_name, built.targets)
    single, double = in_onnxruntime(model, feeds)[name], in_float64(model, feeds, [name])[name]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, rtol=2**-11)


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


CLASS_MAPS = {
    "all by their class's map": ("conv1x1", ["Relu", "GlobalAveragePool", "Flatten"], {"Conv", "Relu"}),
    "no ReLU": ("conv1x1", ["GlobalAveragePool", "Flatten"], {"Conv", "GlobalAveragePool", "Flatten"}),
    "a wider kernel": ("conv3x3", ["Relu", "GlobalAveragePool", "Flatten"], {"Relu"}),
    "another activation": ("conv1x1", ["Tanh", "GlobalAveragePool", "Flatten"], {"GlobalAveragePool"}),
    "an average of the row alone": ("conv1x1", ["ReduceMean", "Flatten"], set()),
    "maps of several places": ("conv1x1", ["Flatten"], set()),
}


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_class_maps(name, monkeypatch):
    """Logits that are averages of class maps: by the rules for one channel where these apply, else not."""
    convolution, operators, by_selection = CLASS_MAPS[name]
    kernel = 3 if convolution == "conv3x3" else 1

    def general(*arguments: object) -> None:
        raise AssertionError("the general rule was applied")

    for operator in by_selection:
        monkeypatch.setitem(RULES, operator, replace(RULES[operator], rule=general))
    rng = np.random.default_rng(5)
    constants = {
        "weights": rng.standard_normal((6, 4, kernel, kernel)).astype(np.float32),
        "bias": rng.standard_normal(6).astype(np.float32),
        "axes": ints(3),
    }
    names = [f"y{number}" for number in range(len(operators))] + ["logits"]
    nodes = [helper.make_node("Conv", ["x", "weights", "bias"], ["y0"], pads=[kernel // 2] * 4)]
    for operator, given, result in zip(operators, names, names[1:], strict=False):
        inputs = [given, "axes"] if operator == "ReduceMean" else [given]
        nodes.append(helper.make_node(operator, inputs, [result]))
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 3, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )

    def built(batch: int) -> Built:
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        feeds = {"x": rng.standard_normal((batch, 4, 3, 5)).astype(np.float32)}
        return Built(finished(proto, constants), ("x",), feeds)

    for batch, rows in ((3, 4), (1, 2)):
        case = built(batch)
        check_slopes(case, differentiated(case.model, "x"), classes_of(case, rows))
        check_onnxruntime(built(batch), rows)
    check_onnxruntime(built(2), 0)


@pytest.mark.parametrize("case", GENERAL_CASES, ids=str)
def test_general_rule_of_the_logits(case):
    built = build(case, batch=3, computes_logits=True)
    model = differentiated(built.model, *built.targets)
    check_slopes(built, model, classes_of(built))
    check_onnxruntime(build(case, batch=3, computes_logits=True), rows=4)
    check_onnxruntime(build(case, batch=3, computes_logits=True), rows=0)
