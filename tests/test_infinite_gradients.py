"""Where nothing of an infinite gradient goes back it is 0, as in PyTorch, and not 0 times infinity."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from autograd import autograd
from graphs import Array, differentiated, gradient_name, in_float64, in_onnxruntime, parse
from onnxplain.manifest import GUIDED_GRADIENTS
from onnxplain_export import export
from onnxplain_export.graph import operand
from other_engines import assert_equal

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from engine_runs import in_openvino

Function = Callable[[torch.Tensor], torch.Tensor]

POINTS = np.array([[-7, -3, -1, -0.5, 0, 0.5, 1, 3, 6, 7]], np.float32)
NUMBERS: dict[str, Array] = {
    name: np.array(value, np.float32)
    for name, value in {"nought": 0, "half": 0.5, "one": 1, "six": 6, "minus_one": -1}.items()
}
NUMBERS |= {"last": np.array([-1]), "scales": np.ones(10, np.float32)}

#: Behind each operator stands its output less a number, or a number less its output: 0 where nothing of a
#: gradient comes back through it, as far as the operator has such a part.
ELEMENTWISE: dict[str, tuple[str, Function]] = {
    "relu": ("y = Relu (x)", functional.relu),
    "clip, below": ("y = Clip (x, nought, six)", functional.relu6),
    "clip, above": ("c = Clip (x, nought, six) y = Sub (six, c)", lambda x: 6 - functional.relu6(x)),
    "clip, one bound": ("y = Clip (x, nought)", functional.relu),
    "hardsigmoid, below": (
        "y = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)",
        functional.hardsigmoid,
    ),
    "hardsigmoid, above": (
        "s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Sub (one, s)",
        lambda x: 1 - functional.hardsigmoid(x),
    ),
    "hardswish": ("y = HardSwish (x)", functional.hardswish),
    "threshold": ("y = ThresholdedRelu <alpha = 0.5> (x)", lambda x: functional.threshold(x, 0.5, 0)),
    "softshrink": ("y = Shrink <lambd = 0.5, bias = 0.5> (x)", functional.softshrink),
    "maximum": ("m = Max (x, half) y = Sub (m, half)", lambda x: torch.maximum(x, HALF) - 0.5),
    "minimum": ("m = Min (x, half) y = Sub (half, m)", lambda x: 0.5 - torch.minimum(x, HALF)),
    "where": (
        "b = Greater (x, nought) y = Where (b, x, nought)",
        lambda x: torch.where(x > 0, x, torch.zeros(())),
    ),
    "to the power of 0": ("p = Pow (x, nought) y = Sub (p, one)", lambda x: x**0 - 1),
    # PyTorch multiplies by these zeros itself.
    "abs": ("y = Abs (x)", torch.abs),
    "leaky_relu, slope 0": ("y = LeakyRelu <alpha = 0.0> (x)", lambda x: functional.leaky_relu(x, 0.0)),
    "prelu, slope 0": ("y = PRelu (x, nought)", lambda x: functional.prelu(x, torch.zeros(1))),
}
HALF = torch.tensor(0.5)
MULTIPLIED = ("abs", "leaky_relu, slope 0", "prelu, slope 0")

#: Functions of y whose slope is infinite where y is 0.
STEEP: dict[str, Function] = {
    "z = Sqrt (y)": torch.sqrt,
    "z = Pow (y, half)": lambda y: y**0.5,
    "z = Pow (y, minus_one)": lambda y: y**-1.0,
    "z = Log (y)": torch.log,
    "z = Reciprocal (y)": torch.reciprocal,
    "z = Div (one, y)": lambda y: 1 / y,
    "z = Div (y, y)": lambda y: y / y,
    "n = Sub (one, y) z = Acos (n)": lambda y: torch.acos(1 - y),
    "n = Sub (one, y) z = Asin (n)": lambda y: torch.asin(1 - y),
    "n = Add (one, y) z = Acosh (n)": lambda y: torch.acosh(1 + y),
    "n = Sub (one, y) z = Atanh (n)": lambda y: torch.atanh(1 - y),
    "z = ReduceLogSum <keepdims = 1> (y, last)": lambda y: torch.log(y.sum(-1, keepdim=True)),
    # A mask behind, so that 0 arrives at an infinite slope.
    "s = Sqrt (y) z = Relu (s)": lambda y: functional.relu(torch.sqrt(y)),
    "s = Sqrt (y) e = Exp (s) z = Mul (e, y)": lambda y: torch.exp(torch.sqrt(y)) * y,
}


def jacobian(function: Function, x: Array) -> Array:
    """Return the gradients of a function's outputs by autograd, each by itself, [outputs, *x.shape]."""
    point = torch.from_numpy(x).requires_grad_()
    outputs = function(point).flatten()
    rows = [torch.autograd.grad(output, point, retain_graph=True)[0] for output in outputs]
    return torch.stack(rows).numpy()


def elementwise(text: str, result: str = "z") -> ir.Model:
    constants = {name: number for name, number in NUMBERS.items() if name in text}
    lines = text.replace(") ", ")\n")
    graph = f"agraph (float[1, 10] x) => (logits) {{\n{lines}\nlogits = Identity ({result})\n}}"
    return differentiated(parse(graph, **constants), "x")


@pytest.mark.parametrize("engine", [in_float64, in_onnxruntime])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_operator(name, engine):
    text, function = ELEMENTWISE[name]
    check_elementwise(f"{text} z = Sqrt (y)", lambda x: torch.sqrt(function(x)), engine)
    slopes = np.diagonal(jacobian(lambda x: torch.sqrt(function(x)), POINTS)[:, 0])
    assert (slopes == 0).any() == (name not in MULTIPLIED)


@pytest.mark.parametrize("engine", [in_float64, in_onnxruntime])
@pytest.mark.parametrize("text", STEEP)
def test_function_with_an_infinite_slope(text, engine):
    function = STEEP[text]
    check_elementwise(f"y = Relu (x) {text}", lambda x: function(functional.relu(x)), engine)


def check_elementwise(text: str, function: Function, engine: Callable[..., dict[str, Array]]) -> None:
    """Compare with autograd, numbers that aren't finite among them."""
    model, expected = elementwise(text), jacobian(function, POINTS)
    feeds = {"x": POINTS, "classes": np.arange(len(expected))[:, None]}
    name = gradient_name("x")
    found = in_float64(model, feeds, [name]) if engine is in_float64 else in_onnxruntime(model, feeds)
    np.testing.assert_allclose(found[name][:, 0], expected[:, 0], rtol=1e-5, atol=1e-6)


#: Of rectified maps r [1, 2, 4, 4], of which a channel is all zeros.
SPATIAL: dict[str, tuple[str, Function]] = {
    "max_pool2d": (
        "y = MaxPool <kernel_shape = [2, 2], strides = [1, 1]> (r)",
        lambda r: functional.max_pool2d(r, 2, 1),
    ),
    "adaptive_max_pool2d": ("y = GlobalMaxPool (r)", lambda r: functional.adaptive_max_pool2d(r, 1)),
    "amax": ("y = ReduceMax (r, places)", lambda r: r.amax((2, 3), keepdim=True)),
    "avg_pool2d": (
        "y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (r)",
        lambda r: functional.avg_pool2d(r, 2, 1, 1, count_include_pad=False),
    ),
    "adaptive_avg_pool2d": ("y = GlobalAveragePool (r)", lambda r: functional.adaptive_avg_pool2d(r, 1)),
    "conv2d, 3x3": ("y = Conv <group = 2> (r, wide)", lambda r: functional.conv2d(r, WIDE, groups=2)),
    "conv2d, 1x1 with strides": (
        "y = Conv <group = 2, strides = [2, 2]> (r, single)",
        lambda r: functional.conv2d(r, SINGLE, stride=2, groups=2),
    ),
    "conv_transpose2d": (
        "y = ConvTranspose <group = 2> (r, wide)",
        lambda r: functional.conv_transpose2d(r, WIDE, groups=2),
    ),
    "pad with zeros": ("y = Pad (r, sides)", lambda r: functional.pad(r, (1, 1, 1, 1))),
    "pad, cropping": ("y = Pad (r, inwards)", lambda r: functional.pad(r, (-1, -1, -1, -1))),
    "pad, reflect": (
        'y = Pad <mode = "reflect"> (r, sides)',
        lambda r: functional.pad(r, (1, 1, 1, 1), mode="reflect"),
    ),
    "pad, replicate": (
        'y = Pad <mode = "edge"> (r, sides)',
        lambda r: functional.pad(r, (1, 1, 1, 1), mode="replicate"),
    ),
    "pad, circular": (
        'y = Pad <mode = "wrap"> (r, sides)',
        lambda r: functional.pad(r, (1, 1, 1, 1), mode="circular"),
    ),
    "slice with steps": ("y = Slice (r, first, end, axis, step)", lambda r: r[..., 1:4:2]),
    "interpolate, nearest": (
        'y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
        " (r, , scales)",
        lambda r: functional.interpolate(r, scale_factor=2, mode="nearest"),
    ),
    "interpolate, bilinear": (
        'y = Resize <mode = "linear"> (r, , scales)',
        lambda r: functional.interpolate(r, scale_factor=2, mode="bilinear"),
    ),
    "einsum, diagonal": ('y = Einsum <equation = "bcii->bci"> (r)', lambda r: r.diagonal(0, 2, 3)),
    "tril": ("y = Trilu <upper = 0> (r)", torch.tril),
    "fold": (
        "f = Reshape (r, columns) y = Col2Im (f, image, block)",
        lambda r: functional.fold(r.reshape(1, 8, 4), (3, 3), 2),
    ),
    "scatter": (
        "y = ScatterElements <axis = 3> (r, index, put)",
        lambda r: r.scatter(3, INDEX, torch.zeros(1, 2, 4, 1)),
    ),
    "pixel_shuffle": (
        'd = Reshape (r, deep) y = DepthToSpace <blocksize = 2, mode = "CRD"> (d)',
        lambda r: functional.pixel_shuffle(r.reshape(1, 8, 2, 2), 2),
    ),
}
WIDE, SINGLE = torch.rand(2, 1, 3, 3) + 0.1, torch.rand(2, 1, 1, 1) + 0.1
INDEX = torch.tensor([0, 1, 2, 3] * 2).reshape(1, 2, 4, 1)
SPATIAL_CONSTANTS = {
    "places": np.array([2, 3]),
    "wide": WIDE.numpy(),
    "single": SINGLE.numpy(),
    "sides": np.array([0, 0, 1, 1] * 2),
    "inwards": np.array([0, 0, -1, -1] * 2),
    "first": np.array([1]),
    "end": np.array([4]),
    "axis": np.array([3]),
    "step": np.array([2]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "columns": np.array([1, 8, 4]),
    "image": np.array([3, 3]),
    "block": np.array([2, 2]),
    "index": INDEX.numpy(),
    "put": np.zeros((1, 2, 4, 1), np.float32),
    "deep": np.array([1, 8, 2, 2]),
}


def maps(seed: int = 0) -> Array:
    """Return maps that are below 0 in half of the places, and in all of a channel."""
    x = np.random.default_rng(seed).standard_normal((1, 2, 4, 4)).astype(np.float32)
    x[:, 1] = -np.abs(x[:, 1])
    return x


def spatial(text: str) -> ir.Model:
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    constants = {name: array for name, array in SPATIAL_CONSTANTS.items() if name in words}
    lines = text.replace(") ", ")\n")
    graph = f"""agraph (float[1, 2, 4, 4] x) => (logits) {{
        r = Relu (x)
        {lines}
        z = Sqrt (y)
        flat = Reshape (z, rows)
        logits = ReduceSum <keepdims = 0> (flat, last)
    }}"""
    return differentiated(parse(graph, **constants, rows=np.array([1, 2, -1]), last=np.array([2])), "x")


@pytest.mark.parametrize("name", SPATIAL)
def test_spatial_operator(name):
    text, function = SPATIAL[name]
    x = maps()
    model = spatial(text)
    found = in_onnxruntime(model, {"x": x, "classes": np.arange(2)[:, None]})[gradient_name("x")]

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(function(functional.relu(x))).reshape(2, -1).sum(1)

    expected = jacobian(logits, x)
    # PyTorch's is no number where it multiplies by an interpolation's weight of 0.
    is_finite = np.isfinite(expected)
    assert is_finite.all() == (name != "interpolate, bilinear")
    assert np.abs(expected[is_finite]).max() > 0.05
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0][is_finite[:, 0]], expected[:, 0][is_finite[:, 0]], rtol=1e-5)


class Steep(nn.Module):
    """A network that ends in a function of an infinite slope, behind rectified maps."""

    def __init__(self, pooled: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.features = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU6())
        self.pooled = pooled
        self.head = nn.Linear(6, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.pooled(self.features(self.stem(image))))


def generalised_mean(maps: torch.Tensor) -> torch.Tensor:
    """GeM pooling (Radenović et al. 2019), without a bound to keep it from 0."""
    return (maps**3).mean((2, 3)) ** (1 / 3)


POOLINGS: dict[str, Function] = {
    "root": lambda maps: torch.sqrt(maps).mean((2, 3)),
    "generalised mean": generalised_mean,
    "signed root of means": lambda maps: torch.sign(maps.mean((2, 3))) * torch.sqrt(maps.mean((2, 3)).abs()),
}


def exported(pooled: str, path: Path, **options: bool) -> tuple[nn.Module, torch.Tensor]:
    """Export a network of which two channels are all zeros; return it with two images."""
    model = Steep(POOLINGS[pooled]).eval()
    with torch.no_grad():
        model.features[2].bias[:2] = -10
    image = torch.randn(2, 3, 12, 12)
    report = export(model, image, path, layer="stem", **options)
    assert report.verification.gradients < 1e-5
    return model, image


CLASSES = torch.tensor([[0, 2], [1, 0]])


@pytest.mark.parametrize("pooled", POOLINGS)
def test_export(pooled, tmp_path):
    path = tmp_path / "model.onnx"
    model, image = exported(pooled, path)
    _, expected = autograd(model, ["stem"], image, CLASSES)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(["gradients"], {"image": image.numpy(), "class_index": CLASSES.numpy()})
    np.testing.assert_allclose(found, expected["stem"].numpy(), rtol=1e-4, atol=1e-6)
    (nothing,) = session.run(["gradients"], {"image": image.numpy(), "class_index": np.zeros((2, 0), int)})
    assert nothing.shape == (2, 0, 6, 12, 12)


def test_half_precision(tmp_path):
    path = tmp_path / "model.onnx"
    _, image = exported("root", path, fp16=True)
    feeds = {"image": image.numpy(), "class_index": CLASSES.numpy()}
    (found,) = onnxruntime.InferenceSession(path).run(["gradients"], feeds)
    assert np.isfinite(found).all()


def test_in_openvino(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.onnx"
    _, image = exported("root", path)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    for classes in (CLASSES.numpy(), np.zeros((2, 0), int)):
        feeds = {"image": image.numpy(), "class_index": classes}
        (found,) = in_openvino(path, [feeds])
        assert_equal(found, dict(zip(names, session.run(names, feeds), strict=True)))


def test_quantised():
    """What was cut off at 0 has no gradient."""
    text = """agraph (float[1, 10] x) => (logits) {
        whole = QuantizeLinear (x, scale, zero)
        y = DequantizeLinear (whole, scale, zero)
        z = Sqrt (y)
        logits = Identity (z)
    }"""
    zero, scale = np.array(0, np.uint8), np.array(0.5, np.float32)
    model = differentiated(parse(text, zero=zero, scale=scale), "x")
    found = in_onnxruntime(model, {"x": POINTS, "classes": np.arange(10)[:, None]})[gradient_name("x")]
    y = np.maximum(POINTS[0], 0)
    with np.errstate(divide="ignore"):
        expected = np.diag(np.where(y > 0, 0.5 / np.sqrt(y), 0))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


def test_guided(tmp_path):
    path = tmp_path / "model.onnx"
    _, image = exported("root", path, guided=True)
    feeds = {"image": image.numpy(), "class_index": CLASSES.numpy()}
    (found,) = onnxruntime.InferenceSession(path).run([GUIDED_GRADIENTS], feeds)
    assert np.isfinite(found).all()
    assert found.any()


#: Behind these y has no infinite gradient. The last one's root is of the number of places.
FLAT = [
    "z = Identity (y)",
    "z = Exp (y)",
    "z = Div (y, six)",
    "z = Pow (y, six)",
    "z = Pow (y, nought)",
    "z = Softmax (y)",
    "z = LayerNormalization (y, scales)",
    "z = ReduceL2 (y, last)",
    "s = Shape (y) n = Cast <to = 1> (s) d = Sqrt (n) l = Gather (d, last) z = Mul (y, l)",
]


@pytest.mark.parametrize("text", FLAT)
def test_a_product_where_all_is_finite(text):
    """It is faster than a choice, which the roots behind need."""
    mask = "y = Relu (x)"
    assert masks(f"{mask} {text}") == 0
    assert masks(f"{mask} {text} r = Sqrt (z)", "r") == 1


def masks(text: str, result: str = "z") -> int:
    """Count the masks of ReLUs that are applied as choices."""
    choices = (node for node in elementwise(text, result).graph if node.op_type == "Where")
    conditions = (operand(node, 0).producer() for node in choices)
    return sum(node is not None and node.op_type == "Cast" for node in conditions)
