"""Quantisers: the gradient goes straight through them, and an int8 network is explained as it is.

A pair of them makes whole numbers of numbers and numbers of those. So it has tests of its own, where
`test_rules.py` takes one operator with a smooth result.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from graphs import (
    Array,
    differentiated,
    gradient_name,
    in_float64,
    in_onnxruntime,
    numeric_gradient,
    parse,
    value_named,
)
from onnxplain.errors import OnnxplainError, UnsupportedOperatorError, VerificationError
from onnxplain_export import export, verify
from onnxplain_export.ranges import range_of
from onnxplain_export.rules import RULES
from spoilt import enlarge_backward_kernel

GRADIENT = gradient_name("x")
CLASSES = np.array([[0, 1], [2, 0]])


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# --- The rules ---

PAIRS: dict[str, tuple[str, dict[str, Array]]] = {
    "uint8": ("", {"scale": np.float32(0.01), "zero": np.uint8(100)}),
    "uint8, zero at the bottom": ("", {"scale": np.float32(0.01), "zero": np.uint8(0)}),
    "int8": ("", {"scale": np.float32(0.01), "zero": np.int8(-20)}),
    "no zero point": ("", {"scale": np.float32(0.01)}),
    "a list of one scale": ("", {"scale": np.array([0.01], np.float32), "zero": np.array([9], np.int8)}),
    "by channel": ("<axis = 1>", {"scale": drawn(5) ** 2 / 40 + 0.004, "zero": np.arange(5, dtype=np.uint8)}),
    "by channel, from the end": ("<axis = -1>", {"scale": drawn(7) ** 2 / 40 + 0.004}),
}


def pair(case: str, before: str = "", x: str = "x", opset: int = 20) -> Any:
    """Make a graph of a quantiser and its dequantiser, with logits that weigh what comes out."""
    attributes, constants = PAIRS[case]
    operands = ", ".join(constants)
    text = f"""agraph (float[batch, 5, 7] x) => (float[batch, 3] logits) {{
        {before}
        q = QuantizeLinear {attributes} ({x}, {operands})
        y = DequantizeLinear {attributes} (q, {operands})
        row = Flatten (y)
        logits = MatMul (row, mix)
    }}"""
    return parse(text, f'"": {opset}', **constants, mix=drawn(35, 3, seed=1))


@pytest.mark.parametrize("case", PAIRS)
def test_slopes(case: str) -> None:
    """In float64, where nothing is rounded: the slope is that of what is cut off at both ends."""
    feeds = {"x": drawn(2, 5, 7)}
    found = in_float64(differentiated(pair(case), "x"), {**feeds, "classes": CLASSES}, [GRADIENT])[GRADIENT]
    expected = numeric_gradient(pair(case), feeds, "x", CLASSES)
    assert 0.1 < np.mean(expected == 0) < 0.9
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear"])
@pytest.mark.parametrize("factor", [-1.0, 1.01])
def test_wrong_rule(operator: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = RULES[operator]

    def wrong(op: Any, *arguments: Any) -> Any:
        return op.Mul(entry.rule(op, *arguments), factor)

    monkeypatch.setitem(RULES, operator, replace(entry, rule=wrong))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_slopes("uint8")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", PAIRS)
def test_against_torch(case: str, batch: int) -> None:
    """In onnxruntime, against fake quantisation, which tells what is cut off by the numbers before.

    It lets through what is rounded to an end from within half a step; here the end itself tells.
    """
    attributes, constants = PAIRS[case]
    scale, zero = constants["scale"], constants.get("zero", np.uint8(0))
    ends = np.iinfo(zero.dtype)
    x = torch.tensor(drawn(batch, 5, 7), requires_grad=True)
    if scale.size == 1:
        y = torch.fake_quantize_per_tensor_affine(x, scale.item(), zero.item(), ends.min, ends.max)
        numbers = x.detach() / scale.item() + zero.item()
    else:
        axis = 1 if "= 1" in attributes else 2
        zeros = torch.tensor(np.broadcast_to(zero, scale.shape).astype(np.int32))
        y = torch.fake_quantize_per_channel_affine(x, torch.tensor(scale), zeros, axis, ends.min, ends.max)
        shape = [-1 if place == axis else 1 for place in range(3)]
        numbers = x.detach() / torch.tensor(scale).reshape(shape) + zeros.reshape(shape)
    logits = y.reshape(batch, -1) @ torch.tensor(drawn(35, 3, seed=1))
    logits[:, 1].sum().backward()
    assert x.grad is not None
    feeds = {"x": x.detach().numpy(), "classes": np.ones((1, batch), np.int64)}
    found = in_onnxruntime(differentiated(pair(case), "x"), feeds)
    np.testing.assert_allclose(found["logits"], logits.detach(), rtol=1e-5, atol=1e-5)
    at_an_end = (numbers.round() <= ends.min) | (numbers.round() >= ends.max)
    expected = x.grad.numpy() * ~at_an_end.numpy()
    assert 0.1 < np.mean(expected == 0) < 0.9
    np.testing.assert_allclose(found[GRADIENT][0], expected, rtol=1e-6)


@pytest.mark.parametrize("opset", [10, 13, 19])
def test_without_classes(opset: int) -> None:
    feeds = {"x": drawn(2, 5, 7), "classes": np.zeros((0, 2), np.int64)}
    assert in_onnxruntime(differentiated(pair("uint8"), "x"), feeds)[GRADIENT].shape == (0, 2, 5, 7)


@pytest.mark.parametrize(
    ("before", "sides"),
    [
        ("", {"Greater": 1, "Less": 1}),
        # Nothing is below the range of a positive number, and nothing above that of a number in it.
        ("a = Relu (x)", {"Less": 1}),
        ("b = Relu (x) a = Transpose <perm = [0, 1, 2]> (b)", {"Less": 1}),
        ("b = Relu (x) a = Concat <axis = 1> (b, x)", {"Greater": 1, "Less": 1}),
        ("p = QuantizeLinear (x, scale, zero) a = DequantizeLinear (p, scale, zero)", {}),
        (
            "p = QuantizeLinear (x, scale, zero) b = DequantizeLinear (p, scale, zero)"
            " c = MaxPool <kernel_shape = [2]> (b) a = AveragePool <kernel_shape = [2], pads = [1, 1]> (c)",
            {},
        ),
        ("a = Softmax (x)", {}),
        ("b = Sigmoid (x) a = Mul (b, x)", {"Greater": 1, "Less": 1}),
    ],
)
def test_ends_out_of_reach(before: str, sides: dict[str, int]) -> None:
    """Where nothing can be cut off at an end, the numbers that stand there were rounded: they count."""
    text = f"""agraph (float[batch, 4, 6] x) => (float[batch, 3] logits) {{
        {before or "a = Identity (x)"}
        q = QuantizeLinear (a, scale, zero)
        y = DequantizeLinear (q, scale, zero)
        row = ReduceMean <keepdims = 0> (y, axes)
        logits = MatMul (row, mix)
    }}"""
    constants = {
        "scale": np.float32(0.006),
        "zero": np.uint8(0),
        "mix": drawn(4, 3, seed=1),
        "axes": np.array([2]),
    }
    plain = parse(text.replace("[batch, 4, 6]", "[batch, 2, 6]") if "Concat" in before else text, **constants)
    a = value_named(plain, "a")
    model = differentiated(plain.clone(), "a")
    kinds = Counter(node.op_type for node in model.graph)
    assert {kind: kinds[kind] for kind in ("Greater", "Less") if kinds[kind]} == sides
    low, high = range_of(a)
    feeds = {"x": drawn(2, *[int(size) for size in value_named(plain, "x").shape[1:]])}
    values = in_onnxruntime(parse_output(plain, "a"), feeds)["a"]
    assert low <= values.min()
    assert values.max() <= high


def parse_output(model: Any, name: str) -> Any:
    """Return a copy of a model whose only output is a value of it."""
    copy = model.clone()
    copy.graph.outputs[:] = [value_named(copy, name)]
    return copy


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "s = ReduceMax <keepdims = 0> (x) q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)",
            "DequantizeLinear whose scale depends on the layer",
        ),
        (
            "s = ReduceMax <keepdims = 0> (x) q = QuantizeLinear (x, s) y = DequantizeLinear (q, scale)",
            "DequantizeLinear of another scale",
        ),
        (
            "q = QuantizeLinear (x, scale) y = DequantizeLinear (q, other)",
            "DequantizeLinear of another scale than its QuantizeLinear's",
        ),
        (
            "q = QuantizeLinear <axis = 1> (x, scales) y = DequantizeLinear <axis = 2> (q, scales)",
            "DequantizeLinear of another scale than its QuantizeLinear's",
        ),
        (
            "q = QuantizeLinear <axis = 1> (x, scales) r = Transpose (q) s = DequantizeLinear (r, scale)"
            " y = Add (x, s)",
            "Transpose of quantised numbers",
        ),
        (
            "q = QuantizeLinear (x, scale) r = Cast <to = 1> (q) y = Mul (r, scale)",
            "Cast of quantised numbers",
        ),
        (
            "q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)",
            "DequantizeLinear whose scale depends on the layer",
        ),
        (
            "q = QuantizeLinear (x, scale, zero8) y = DequantizeLinear (q, scale, zero8)",
            "QuantizeLinear to FLOAT8E4M3FN",
        ),
    ],
)
def test_refused(body: str, message: str) -> None:
    text = f"""agraph (float[batch, 4, 4] x) => (float[batch, 3] logits) {{
        {body}
        row = ReduceMean <keepdims = 0> (y, axes)
        logits = MatMul (row, mix)
    }}"""
    constants: dict[str, Any] = {
        "scale": np.float32(0.01),
        "other": np.float32(0.02),
        "scales": np.full(4, 0.01, np.float32) + np.arange(4, dtype=np.float32) / 100,
        "mix": drawn(4, 3),
        "axes": np.array([2]),
    }
    if "zero8" in body:
        constants["zero8"] = numpy_helper.to_array(onnx.helper.make_tensor("zero8", 17, [], [0.0]))
    model = parse(text, **{name: array for name, array in constants.items() if name in text})
    with pytest.raises(UnsupportedOperatorError, match=rf"{message}.* \(node "):
        differentiated(model, "x")


WEIGHTS = np.random.default_rng(4).integers(-100, 100, (4, 3)).astype(np.int8)
SCALES, ZEROS = np.array([0.01, 0.02, 0.005], np.float32), np.array([3, -2, 0], np.int8)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("by_feature", "scale", "zero", "whole"),
    [
        (False, np.float32(0.01), np.int8(5), False),
        (False, SCALES, np.zeros(3, np.int8), False),
        (False, SCALES, ZEROS, True),
        (True, np.append(SCALES, np.float32(0.03)), np.append(ZEROS, np.int8(9)), True),
    ],
)
def test_the_logits_weights(
    by_feature: bool, scale: Array, zero: Array, whole: bool, transposed: bool
) -> None:
    """The class's row is gathered, where that is possible before it is dequantised."""
    axis = int(by_feature == transposed)
    text = f"""agraph (float[batch, 4] x) => (float[batch, 3] logits) {{
        w = DequantizeLinear <axis = {axis}> (numbers, scale, zero)
        logits = Gemm <transB = {int(transposed)}> (x, w)
    }}"""
    weights = {"numbers": WEIGHTS.T if transposed else WEIGHTS, "scale": scale, "zero": zero}
    model = differentiated(parse(text, **weights), "x")
    gathers = [node.inputs[0].name for node in model.graph if node.op_type == "Gather"]
    assert ("w" in gathers) == whole
    feeds = {"x": drawn(2, 4), "classes": np.array([[0, 2], [1, 1]])}
    found = in_onnxruntime(model, feeds)[GRADIENT]
    shape = (-1, 1) if by_feature else (1, -1)
    expected = (WEIGHTS - zero.reshape(shape).astype(np.float32)) * scale.reshape(shape)
    np.testing.assert_allclose(found, expected.T[feeds["classes"]], rtol=1e-6)
    without = in_onnxruntime(model, {**feeds, "classes": np.zeros((0, 2), np.int64)})
    assert without[GRADIENT].shape == (0, 2, 4)


# --- Whole networks ---

NETWORK = """
g (float[batch, 3, 16, 16] image) => (float[batch, 5] scores) {
    stem = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
    relu1 = Relu (stem)
    pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (relu1)
    inner = Conv <pads = [1, 1, 1, 1]> (pooled, w2, b2)
    relu2 = Relu (inner)
    outer = Conv <pads = [1, 1, 1, 1]> (relu2, w3, b3)
    sum = Add (outer, pooled)
    block = Relu (sum)
    last = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (block, w4, b4)
    maps = Clip (last, zero, six)
    HEAD
    scores = Gemm <transB = 1> (features, fc, bias)
}
"""
POOLED = "mean = GlobalAveragePool (maps) features = Flatten (mean)"
# What is only arranged in another way is no layer of its own, quantised or not.
CHANNELS_LAST = """turned = Transpose <perm = [0, 2, 3, 1]> (maps)
    features = ReduceMean <axes = [1, 2], keepdims = 0> (turned)"""
LAYERS = {"pooled": "pooled_node", "block": "block_DequantizeLinear", "maps": "maps_DequantizeLinear"}
SYMMETRIC = {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}}
OPTIONS: dict[str, dict[str, Any]] = {
    "uint8": {"activation_type": QuantType.QUInt8},
    "uint8, by channel": {"activation_type": QuantType.QUInt8, "per_channel": True},
    "int8": {"activation_type": QuantType.QInt8},
    "int8, symmetric": SYMMETRIC,
    "activations kept": {"extra_options": {"QDQKeepRemovableActivations": True}},
    "a pair for each reader": {"extra_options": {"DedicatedQDQPair": True}},
    "weights quantised in the file": {"extra_options": {"AddQDQPairToWeight": True}},
    "before the standard": {"extra_options": {"UseQDQContribOps": True}},
}


class Images(CalibrationDataReader):  # type: ignore[misc]
    """What a quantisation is calibrated on."""

    def __init__(self) -> None:
        self.images: Iterator[Array] = iter(drawn(16, 1, 3, 16, 16, seed=2))

    def get_next(self) -> dict[str, Array] | None:
        return next(({"image": image} for image in self.images), None)


@functools.cache
def network(opset: int = 13, head: str = POOLED) -> bytes:
    shapes = {
        "w1": (8, 3, 3, 3),
        "w2": (8, 8, 3, 3),
        "w3": (8, 8, 3, 3),
        "w4": (12, 8, 3, 3),
        "fc": (5, 12),
    }
    weights = {name: drawn(*shape) * (2 / np.prod(shape[1:])) ** 0.5 for name, shape in shapes.items()}
    sizes = {"b1": 8, "b2": 8, "b3": 8, "b4": 12, "bias": 5}
    biases = {name: drawn(size) / 5 for name, size in sizes.items()}
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]>{NETWORK.replace("HEAD", head)}'
    )
    arrays = {**weights, **biases, "zero": np.float32(0), "six": np.float32(1.5)}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
    )
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def write(folder: Path, options: str = "uint8", opset: int = 13, head: str = POOLED) -> tuple[Path, Path]:
    """Write the network in float and quantised."""
    plain, quantised = folder / "float.onnx", folder / "int8.onnx"
    plain.write_bytes(network(opset, head))
    quantize_static(plain, quantised, Images(), quant_format=QuantFormat.QDQ, **OPTIONS[options])
    return plain, quantised


def session(path: Path, *, optimised: bool = True) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(path.with_suffix(".optimised"))
    if not optimised:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def explained(path: Path, classes: list[int], *, optimised: bool = True) -> dict[str, Array]:
    image = drawn(3, 3, 16, 16, seed=3)
    loaded = session(path, optimised=optimised)
    names = [value.name for value in loaded.get_outputs()]
    feeds = {"image": image, "class_index": np.tile(np.array(classes), (3, 1))}
    return dict(zip(names, loaded.run(names, feeds), strict=True))


def cosine(a: Array, b: Array) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.filterwarnings("ignore:the layer .* is taken before its quantiser")
@pytest.mark.parametrize("options", OPTIONS)
def test_every_layer(options: str, tmp_path: Path) -> None:
    """Right at each layer, at the image, and near the gradients of the network in float."""
    plain, quantised = write(tmp_path, options)
    layers = [*LAYERS.values(), "inner_node"]
    report = export(quantised, None, tmp_path / "out.onnx", layer=layers, input_gradient=True)
    assert report.verification.rules < 1e-7
    assert report.verification.gradients < 1e-5
    assert report.verification.logits < 1e-6
    alone = verify(tmp_path / "out.onnx")
    assert alone.rules < 1e-7
    assert alone.gradients < 1e-5
    export(plain, None, tmp_path / "float_out.onnx", layer=list(LAYERS), input_gradient=True)
    found = explained(tmp_path / "out.onnx", [0, 3])
    expected = explained(tmp_path / "float_out.onnx", [0, 3])
    for name, layer in LAYERS.items():
        similarity = cosine(found[f"gradients.{layer}"], expected[f"gradients.{name}"])
        # From the earlier ones on, units behind are on or off that aren't in float.
        assert similarity > (0.999 if name == "maps" else 0.9), name


@pytest.mark.filterwarnings("ignore:the layer .* is taken before its quantiser")
def test_rounding_in_another_way(tmp_path: Path) -> None:
    """Halfway between two steps, onnxruntime rounds otherwise in whole numbers than in floats.

    The layer keeps the first convolution in float, which the source runs in whole numbers; the block's sum is
    run in these by both. So the logits of the two, optimised or not, differ by much more than the tolerance.
    Run as they are written, they don't.
    """
    _, quantised = write(tmp_path)
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(quantised).graph.initializer}
    step = 126 * scales["image_scale"] * scales["w1_scale"]
    for name, scale in (("relu1_scale", step), ("outer_scale", step), ("block_scale", 2 * step)):
        changed(quantised, name, lambda _, scale=scale: scale)
    report = export(quantised, None, tmp_path / "out.onnx", layer="stem_node")
    assert report.verification.logits < 1e-6
    assert report.verification.gradients < 1e-6
    found = [
        explained(tmp_path / "out.onnx", [0], optimised=optimised)["logits"] for optimised in (True, False)
    ]
    found += session(quantised).run(None, {"image": drawn(3, 3, 16, 16, seed=3)})
    for one, other in itertools.combinations(found, 2):
        assert np.linalg.norm(one - other) > 1e-3 * np.linalg.norm(other)


@pytest.mark.filterwarnings("ignore:the layer .* is taken before its quantiser")
def test_one_reader_of_several(tmp_path: Path) -> None:
    """Of two pairs that quantise the same value alike, the layer is the one that is named."""
    _, quantised = write(tmp_path, "a pair for each reader")
    layers = [f"pooled_DequantizeLinear_{number}" for number in (1, 2)]
    export(quantised, None, tmp_path / "out.onnx", layer=layers)
    found = explained(tmp_path / "out.onnx", [1], optimised=False)
    one, other = (found[f"gradients.{layer}"] for layer in layers)
    assert not np.allclose(one, other)
    export(quantised, None, tmp_path / "before.onnx", layer="pooled_node")
    both = explained(tmp_path / "before.onnx", [1], optimised=False)["gradients"]
    np.testing.assert_allclose(one + other, both, atol=1e-6)


def test_a_layer_before_its_quantiser(tmp_path: Path) -> None:
    """It has the name that it has in float, and costs an integer kernel: the warning says what to name."""
    _, quantised = write(tmp_path)
    message = (
        "'inner_node' is taken before its quantiser, and its Conv .* is the layer 'relu2_DequantizeLinear'"
    )
    with pytest.warns(UserWarning, match=message):
        export(quantised, None, tmp_path / "out.onnx", layer="inner_node")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "nobody stated")
        export(quantised, None, tmp_path / "out.onnx", layer="relu2_DequantizeLinear")
        export(quantised, None, tmp_path / "out.onnx")


@pytest.mark.parametrize("head", [POOLED, CHANNELS_LAST])
def test_automatic_layer(head: str, tmp_path: Path) -> None:
    """The last maps as the head reads them, after their quantiser: its cut is the activation."""
    _, quantised = write(tmp_path, head=head)
    report = export(quantised, None, tmp_path / "out.onnx")
    assert report.manifest.layers[0].name == "maps_DequantizeLinear"
    maps = explained(tmp_path / "out.onnx", [0])["activations"]
    assert maps.min() == 0
    assert len(np.unique(maps)) <= 256


TRANSFORMER = """
g (float[batch, 3, 16, 16] image) => (float[batch, 5] scores) {
    patches = Conv <strides = [4, 4]> (image, kernel)
    rows = Reshape (patches, flat)
    tokens = Transpose <perm = [0, 2, 1]> (rows)
    all = Pad (tokens, one_in_front)
    normal = LayerNormalization (all, scale, shift)
    PROJECTION
    turned = Transpose <perm = [0, 2, 1]> (keys)
    alike = MatMul (queries, turned)
    weights = Softmax (alike)
    attended = MatMul (weights, values)
    sum = Add (attended, all)
    HEAD
    scores = MatMul (read, fc)
}
"""


NORM = "last = LayerNormalization (sum, scale, shift)"
PROJECTIONS = {
    "apart": "queries = MatMul (normal, wq) keys = MatMul (normal, wk) values = MatMul (normal, wv)",
    "together": "all_three = MatMul (normal, wqkv) queries, keys, values = Split <axis = 2> (all_three)",
}


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize(
    ("head", "layer"),
    [
        # The class token alone is read, and all of what is before the attention flows into it.
        (f"{NORM} read = Gather <axis = 1> (last, first)", "normal"),
        (f"{NORM} read = ReduceMean <axes = [1], keepdims = 0> (last)", "sum"),
    ],
)
def test_automatic_layer_of_a_transformer(projection: str, head: str, layer: str, tmp_path: Path) -> None:
    """The same as in float, quantised."""
    text = TRANSFORMER.replace("HEAD", head).replace("PROJECTION", PROJECTIONS[projection])
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>{text}')
    arrays = {
        "kernel": drawn(8, 3, 4, 4) / 5,
        "flat": np.array([0, 8, 16]),
        "one_in_front": np.array([0, 1, 0, 0, 0, 0]),
        "scale": drawn(8, seed=5),
        "shift": drawn(8, seed=6),
        **{name: drawn(8, 8, seed=seed) / 3 for seed, name in enumerate(("wq", "wk", "wv"))},
        "wqkv": drawn(8, 24) / 3,
        "first": np.array(0),
        "fc": drawn(8, 5),
    }
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used
    )
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    plain, quantised = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(proto, plain)
    quantize_static(plain, quantised, Images(), quant_format=QuantFormat.QDQ)
    report = export(plain, None, tmp_path / "out.onnx")
    assert report.manifest.layers[0].name == f"{layer}_node"
    report = export(quantised, None, tmp_path / "out.onnx")
    assert report.manifest.layers[0].name == f"{layer}_DequantizeLinear"


def test_integer_kernels_stay(tmp_path: Path) -> None:
    """The masks are read off the whole numbers: no convolution falls back to float for them."""
    _, quantised = write(tmp_path)
    export(quantised, None, tmp_path / "out.onnx", layer="pooled_DequantizeLinear")
    counts = []
    for path in (quantised, tmp_path / "out.onnx"):
        session(path)
        kinds = [node.op_type for node in onnx.load(path.with_suffix(".optimised")).graph.node]
        counts.append(Counter(kind for kind in kinds if kind.startswith(("QLinear", "QGemm"))))
    assert counts[0]["QLinearConv"] == 4
    assert counts[0] == counts[1]


def test_optimised_and_as_written(tmp_path: Path) -> None:
    """In whole numbers onnxruntime rounds in another way; what it explains is the same."""
    _, quantised = write(tmp_path)
    export(quantised, None, tmp_path / "out.onnx", layer="pooled_DequantizeLinear")
    runs = [explained(tmp_path / "out.onnx", [1], optimised=optimised) for optimised in (True, False)]
    assert cosine(*(run["gradients"] for run in runs)) > 0.99


@pytest.mark.parametrize("opset", [11, 13, 19, 21])
def test_opsets(opset: int, tmp_path: Path) -> None:
    _, quantised = write(tmp_path, opset=opset)
    export(quantised, None, tmp_path / "out.onnx", layer="block_DequantizeLinear")


def changed(path: Path, tensor: str, change: Any) -> None:
    """Change a constant of a file."""
    proto = onnx.load(path)
    (found,) = (entry for entry in proto.graph.initializer if entry.name == tensor)
    found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), tensor))
    onnx.save(proto, path)


def test_a_logit_that_is_cut_off(tmp_path: Path) -> None:
    """The quantiser of the logits cuts off the highest of them, and they are explained all the same."""
    plain, quantised = write(tmp_path)
    changed(quantised, "scores_scale", lambda scale: scale / 8)
    export(quantised, None, tmp_path / "out.onnx")
    found = explained(tmp_path / "out.onnx", [-1, -2, 0])
    highest = np.sort(found["logits"], axis=1)[:, -2:]
    assert np.all(highest[:, 0] == highest[:, 1])
    export(plain, None, tmp_path / "float_out.onnx")
    expected = explained(tmp_path / "float_out.onnx", found["explained_class"][0].tolist())
    a, b = found["gradients"][0], expected["gradients"][0]
    np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * np.abs(b).max())


@pytest.mark.filterwarnings("ignore:the layer .* is taken before its quantiser")
def test_what_is_cut_off_has_no_gradient(tmp_path: Path) -> None:
    """Behind a convolution stands its quantiser, which is its ReLU, too: it cuts off at both ends."""
    _, quantised = write(tmp_path)
    changed(quantised, "relu2_scale", lambda scale: scale / 4)
    scale = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(quantised).graph.initializer}[
        "relu2_scale"
    ]
    export(quantised, None, tmp_path / "out.onnx", layer=["inner_node", "relu2_DequantizeLinear"])
    found = explained(tmp_path / "out.onnx", [1], optimised=False)
    numbers = np.rint(found["activations.inner_node"] / scale)
    assert np.mean(numbers >= 255) > 0.05
    expected = found["gradients.relu2_DequantizeLinear"] * ((numbers > 0) & (numbers < 255))[:, None]
    np.testing.assert_array_equal(found["gradients.inner_node"], expected)


def test_probabilities_at_the_end(tmp_path: Path) -> None:
    """A Softmax is quantised as well: the logits are what goes into it."""
    proto = onnx.load_from_string(network())
    proto.graph.node.append(onnx.helper.make_node("Softmax", ["scores"], ["probabilities"], "softmax"))
    proto.graph.output[0].name = "probabilities"
    plain, quantised = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(proto, plain)
    quantize_static(plain, quantised, Images(), quant_format=QuantFormat.QDQ)
    kinds = [node.op_type for node in onnx.load(quantised).graph.node]
    assert kinds[-3:] == ["Softmax", "QuantizeLinear", "DequantizeLinear"]
    report = export(quantised, None, tmp_path / "out.onnx")
    assert report.manifest.activation == "softmax"
    logits = explained(tmp_path / "out.onnx", [0])["logits"]
    assert logits.min() < 0


def test_a_changed_gradient_is_found(tmp_path: Path) -> None:
    _, quantised = write(tmp_path)
    path = tmp_path / "out.onnx"
    export(quantised, None, path, layer="pooled_DequantizeLinear")
    enlarge_backward_kernel(path)
    with pytest.raises(VerificationError, match="gradient rules differ"):
        verify(path)


def test_another_format(tmp_path: Path) -> None:
    """The operators of whole numbers alone have no gradient: the error names one."""
    plain, quantised = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    plain.write_bytes(network())
    quantize_static(plain, quantised, Images(), quant_format=QuantFormat.QOperator)
    with pytest.raises(OnnxplainError, match="QLinear"):
        export(quantised, None, tmp_path / "out.onnx")
