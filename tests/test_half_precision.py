"""Half precision: the network in float16, its gradients in float32 and those of what was rounded, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torchvision.models import VisionTransformer, resnet18, swin_t, vit_b_16

from graphs import Array
from onnxplain.errors import SourceError, VerificationError
from onnxplain_export import export, half_precision, verify
from onnxplain_export.half_precision import logits_in_half
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import ReferenceGraph
from redraw import redraw
from spoilt import enlarge_backward_kernel

SIZE, CLASSES = 16, 5
OUTPUTS = ["logits", "activations", "gradients"]


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


SMOOTH = """
    stem = Conv <pads = [1, 1, 1, 1]> (image, w1)
    first = Sigmoid (stem)
    pooled = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (first)
    inner = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (pooled, w2, b2)
    maps = Tanh (inner)
    deep = Conv <group = 2> (maps, w3)
    last = Sigmoid (deep)
    mean = ReduceMean <axes = [2, 3], keepdims = 0> (last)
    scores = Gemm <transB = 1> (mean, fc, bias)
"""
WEIGHTS = {
    "w1": drawn(16, 3, 3, 3) / 3,
    "w2": drawn(24, 16, 3, 3) / 8,
    "b2": drawn(24) / 5,
    "w3": drawn(32, 12, 1, 1) / 2,
    "fc": drawn(CLASSES, 32),
    "bias": drawn(CLASSES, seed=1),
}


def write(path: Path, body: str = SMOOTH, *, kind: str = "float", **weights: Array) -> Path:
    """Write a classifier; `kind` is that of its image and scores."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({kind}[batch, 3, {SIZE}, {SIZE}] image)'
        f" => ({kind}[batch, {CLASSES}] scores) {{ {body} }}"
    )
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in {**WEIGHTS, **weights}.items()
        if name in used
    )
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    onnx.save(proto, path)
    return path


def rounded(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float32)


def images(count: int = 3) -> dict[str, Array]:
    return {"image": drawn(count, 3, SIZE, SIZE), "class_index": np.tile([[-1, 3]], (count, 1))}


def run(path: Path, feeds: dict[str, Array], names: Sequence[str] = OUTPUTS) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), feeds), strict=True))


def in_float64(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    return ReferenceGraph(ir.load(path), list(feeds), OUTPUTS, {}).run(feeds)


def kinds_of(path: Path) -> dict[str, Any]:
    """Return the type of what each node puts out, by name of the node and of its first output."""
    found = {}
    for node in ir.load(path).graph:
        found[node.name] = found[node.outputs[0].name] = node.outputs[0].dtype
    return found


def error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- What the file is ---


def test_inputs_and_outputs_stay_as_they_are(tmp_path: Path) -> None:
    source = write(tmp_path / "c.onnx")
    export(source, None, tmp_path / "float.onnx", layer="inner_node")
    export(source, None, tmp_path / "half.onnx", layer="inner_node", fp16=True)
    described = [
        [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
        for session in (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("float", "half"))
    ]
    assert described[0] == described[1]


def test_weights_and_nodes_in_float16(tmp_path: Path) -> None:
    source = write(tmp_path / "c.onnx")
    export(source, None, tmp_path / "e.onnx", layer="pooled_node", fp16=True)
    graph = ir.load(tmp_path / "e.onnx").graph
    own = {"stem_node", "first_node", "pooled_node", "inner_node", "maps_node", "deep_node", "last_node"}
    for node in graph:
        if node.name in {*own, "mean_node", "scores_node"}:
            assert {
                value.dtype for value in (*node.inputs, *node.outputs) if value.dtype != ir.DataType.INT64
            } == {ir.DataType.FLOAT16}, node.name
        elif node.op_type in ("Conv", "ConvTranspose", "Mul", "MatMul"):
            assert node.outputs[0].dtype == ir.DataType.FLOAT, node.name
    large = [
        value for value in graph.initializers.values() if value.shape.numpy() and np.prod(value.shape) > 16
    ]
    # The network's own, and no copies for the backward pass.
    assert {value.name for value in large} == {name for name, array in WEIGHTS.items() if array.size > 16}
    assert {value.dtype for value in large} == {ir.DataType.FLOAT16}


def test_half_the_size(tmp_path: Path) -> None:
    wide = {"w2": drawn(128, 16, 3, 3) / 8, "b2": drawn(128), "w3": drawn(256, 64, 1, 1) / 8}
    source = write(tmp_path / "c.onnx", **wide, fc=drawn(CLASSES, 256))
    sizes = [
        export(source, None, tmp_path / "e.onnx", layer="pooled_node", fp16=fp16).size
        for fp16 in (True, False)
    ]
    assert sizes[0] < 0.55 * sizes[1]


def test_the_same_bytes_again(tmp_path: Path) -> None:
    source = write(tmp_path / "c.onnx")
    for name in "ab":
        export(source, None, tmp_path / f"{name}.onnx", fp16=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_without_classes(tmp_path: Path) -> None:
    export(write(tmp_path / "c.onnx"), None, tmp_path / "e.onnx", layer="pooled_node", fp16=True)
    found = run(tmp_path / "e.onnx", {**images(), "class_index": np.zeros((3, 0), np.int64)})
    assert found["gradients"].shape == (3, 0, 16, 8, 8)
    assert np.isfinite(found["logits"]).all()


# --- What it computes ---


@pytest.mark.parametrize("layer", ["pooled_node", "maps_node", "last_node"])
def test_the_gradients_of_the_rounded_network(layer: str, tmp_path: Path) -> None:
    """In float64 the file computes what a network does whose weights were rounded before."""
    rough = {name: rounded(array) for name, array in WEIGHTS.items()}
    export(write(tmp_path / "c.onnx"), None, tmp_path / "half.onnx", layer=layer, fp16=True)
    export(write(tmp_path / "r.onnx", **rough), None, tmp_path / "rounded.onnx", layer=layer)
    found, expected = (in_float64(tmp_path / f"{name}.onnx", images()) for name in ("half", "rounded"))
    export(write(tmp_path / "c.onnx"), None, tmp_path / "float.onnx", layer=layer)
    exact = in_float64(tmp_path / "float.onnx", images())
    for name in OUTPUTS:
        assert error(found[name], expected[name]) < 1e-13, name
        assert 1e-5 < error(found[name], exact[name]) < 2e-3, name


def test_in_onnxruntime(tmp_path: Path) -> None:
    source = write(tmp_path / "c.onnx")
    report = export(source, None, tmp_path / "half.onnx", layer="pooled_node", fp16=True)
    export(source, None, tmp_path / "float.onnx", layer="pooled_node")
    found, expected = (run(tmp_path / f"{name}.onnx", images()) for name in ("half", "float"))
    for name in OUTPUTS:
        assert found[name].dtype == np.float32
        assert error(found[name], expected[name]) < 3e-3, name
    assert 1e-5 < report.verification.logits < 2e-3
    assert report.manifest.verification["logits"] == float(f"{report.verification.logits:.0e}")


def test_pytorch(tmp_path: Path) -> None:
    """The source's own float16, where PyTorch has it on the CPU, is as far from float32."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).eval()
    export(network, torch.zeros(1, 3, SIZE, SIZE), tmp_path / "e.onnx", layer="1", fp16=True)
    found = run(tmp_path / "e.onnx", images())["logits"]
    with torch.no_grad():
        exact = network(torch.tensor(images()["image"])).numpy()
        half = network.half()(torch.tensor(images()["image"]).half()).float().numpy()
    assert error(found, exact) < max(3 * error(half, exact), 1e-3)


# --- What stays in float32 ---

STAYS = {
    "a power, and what follows up to the next convolution": (
        """squares = Pow (stem, two)
        variance = ReduceMean <axes = [1], keepdims = 1> (squares)
        safe = Add (variance, epsilon)
        deviation = Sqrt (safe)
        normal = Div (stem, deviation)""",
        {"squares", "variance", "safe", "deviation", "normal"},
    ),
    "a softmax": ("weights = Softmax <axis = 1> (stem) normal = Mul (weights, stem)", {"weights", "normal"}),
    "a normalisation": ("normal = LayerNormalization (stem, scale)", {"normal"}),
    "numbers that are too large": (
        "large = Mul (stem, million) normal = Div (large, million)",
        {"large", "normal"},
    ),
    "numbers that are too small": (
        "small = Mul (stem, millionth) normal = Div (small, millionth)",
        {"small", "normal"},
    ),
    "a constant that loses digits": (
        "moved = Add (stem, millionth) normal = Sub (moved, millionth)",
        {"moved", "normal"},
    ),
    "nothing": ("positive = Relu (stem) normal = Mul (positive, two)", set()),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_stays_in_float32(case: str, tmp_path: Path) -> None:
    middle, expected = STAYS[case]
    body = f"""
        stem = Conv <pads = [1, 1, 1, 1]> (image, w1)
        {middle}
        behind = Conv <pads = [1, 1, 1, 1]> (normal, w2)
        maps = Sigmoid (behind)
        mean = ReduceMean <axes = [2, 3], keepdims = 0> (maps)
        scores = Gemm <transB = 1> (mean, fc, bias)
    """
    constants = {
        "two": np.float32(2),
        "epsilon": np.float32(1e-6),
        "scale": np.linspace(0.5, 1.5, SIZE, dtype=np.float32),
        "million": np.float32(1e6),
        "millionth": np.float32(1e-6),
        "fc": drawn(CLASSES, 24),
    }
    source = write(tmp_path / "c.onnx", body, **constants)
    export(source, None, tmp_path / "e.onnx", layer="stem_node", fp16=True)
    kinds = kinds_of(tmp_path / "e.onnx")
    names = [node.output[0] for node in onnx.load(source).graph.node]
    wide = {name for name in names if kinds[f"{name}_node"] == ir.DataType.FLOAT}
    assert wide == expected
    export(source, None, tmp_path / "float.onnx", layer="stem_node")
    found, exact = (run(tmp_path / f"{name}.onnx", images()) for name in ("e", "float"))
    assert error(found["logits"], exact["logits"]) < 2e-3


LARGE = """
    stem = Conv <pads = [1, 1, 1, 1]> (image, w1)
    large = Mul (stem, million)
    maps = Conv <pads = [1, 1, 1, 1]> (large, w2)
    small = Mul (maps, millionth)
    last = Sigmoid (small)
    mean = ReduceMean <axes = [2, 3], keepdims = 0> (last)
    scores = Gemm <transB = 1> (mean, fc, bias)
"""
LARGE_WEIGHTS = {"million": np.float32(1e6), "millionth": np.float32(1e-6), "fc": drawn(CLASSES, 24)}


def test_activations_that_overflow(tmp_path: Path) -> None:
    """A convolution, too, stays in float32 where its numbers don't fit, and so do the layer's maps."""
    source = write(tmp_path / "c.onnx", LARGE, **LARGE_WEIGHTS)
    report = export(source, None, tmp_path / "e.onnx", layer="maps_node", fp16=True)
    kinds = kinds_of(tmp_path / "e.onnx")
    assert kinds["maps_node"] == ir.DataType.FLOAT
    assert kinds["stem_node"] == kinds["scores_node"] == ir.DataType.FLOAT16
    assert np.abs(run(tmp_path / "e.onnx", images())["activations"]).max() > 65504
    probe = Probe.draw(report.manifest.input, CLASSES, any_size=False)
    assert np.isfinite(logits_in_half(ir.load(tmp_path / "e.onnx"), probe)).all()


def test_an_overflow_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's CPU provider, which runs these nodes in float32, doesn't show it."""
    monkeypatch.setattr(half_precision, "_LARGEST", np.inf)
    source = write(tmp_path / "c.onnx", LARGE, **LARGE_WEIGHTS)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VerificationError, match="in float16 the logits are off"):
        export(source, None, tmp_path / "e.onnx", layer="stem_node", fp16=True)
    assert sorted(tmp_path.iterdir()) == before


def test_half_arithmetic_by_reference(tmp_path: Path) -> None:
    """What a node in float16 puts out is rounded to it, though its sums are in float32."""
    body = "p = Mul (image, third) maps = Conv (p, w1) mean = ReduceMean <axes = [2, 3], keepdims = 0> (maps)"
    body += "scores = Gemm <transB = 1> (mean, fc, bias)"
    halves = {"third": np.float32(1 / 3), "fc": drawn(CLASSES, 16)}
    path = tmp_path / "e.onnx"
    export(write(tmp_path / "c.onnx", body, **halves), None, path, layer="maps_node", fp16=True)
    feeds = images(1)
    graph = ReferenceGraph(ir.load(path), list(feeds), OUTPUTS, {}, in_float64=False)
    found = graph.run(feeds)
    third, kernel = (
        array.astype(np.float16).astype(np.float32) for array in (halves["third"], WEIGHTS["w1"])
    )
    product = (rounded(feeds["image"]) * third).astype(np.float16).astype(np.float32)
    expected = torch.conv2d(torch.tensor(product), torch.tensor(kernel)).numpy().astype(np.float16)
    assert found["activations"].dtype == np.float32
    # The sums' order is another, and so are a few last digits.
    assert np.mean(found["activations"] == expected) > 0.99
    np.testing.assert_allclose(found["activations"], expected, rtol=2**-10, atol=2**-24)


# --- Options, sources, networks ---


@pytest.mark.parametrize(
    "options",
    [
        {"heatmap": "gradcam", "pixels": True},
        {"heatmap": "layercam", "input_gradient": True, "guided": True},
        {"layer": ["1", "4"], "heatmap": "gradcam"},
        {"dynamic_size": True, "heatmap": "hirescam"},
    ],
)
def test_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    report = export(network, torch.zeros(1, 3, 32, 32), tmp_path / "e.onnx", fp16=True, **options)
    assert report.verification.rules < 1e-7
    assert verify(tmp_path / "e.onnx").rules < 1e-7


def test_a_changed_kernel_is_found(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    export(write(tmp_path / "c.onnx"), None, path, layer="pooled_node", fp16=True)
    enlarge_backward_kernel(path)
    with pytest.raises(VerificationError, match="gradient rules differ"):
        verify(path)


HALVES = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
CAST_IN = SMOOTH.replace("(image, w1)", "(narrow, w1)").replace(
    "stem =", "narrow = Cast <to = 10> (image) stem ="
)
BOTH = CAST_IN.replace("scores =", "close =") + "scores = Cast <to = 1> (close)"
# 1.5, written as the bits that it has in float16.
CONSTANT = BOTH.replace("(inner)", "(larger)").replace(
    "maps =", "factor = Constant <value = float16 {15872}> () larger = Mul (inner, factor) maps ="
)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(SMOOTH, "float16"), (BOTH, "float"), (CONSTANT, "float")],
    ids=["whole", "inside", "constant"],
)
@pytest.mark.parametrize("layer", [None, "stem_node", "maps"])
def test_a_source_in_float16(body: str, kind: str, layer: str | None, tmp_path: Path) -> None:
    """Its explainer is in half precision too, with float32 around, and no larger than it need be."""
    source = write(tmp_path / "c.onnx", body, kind=kind, **HALVES)
    report = export(source, None, tmp_path / "e.onnx", layer=layer)
    kinds = kinds_of(tmp_path / "e.onnx")
    assert (
        kinds["stem_node"]
        == kinds["scores_node" if kind == "float16" else "close_node"]
        == ir.DataType.FLOAT16
    )
    found = run(tmp_path / "e.onnx", images())
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    image = images()["image"].astype(np.float16 if kind == "float16" else np.float32)
    (expected,) = session.run(None, {"image": image})
    assert error(found["logits"], expected.astype(np.float32)) < 2e-3
    # Against the same network in float32.
    plain = body.replace("to = 10", "to = 1").replace("float16 {15872}", "float {1.5}")
    layers = {} if layer is None else {"layer": layer}
    wide = write(tmp_path / "f.onnx", plain, **{name: rounded(array) for name, array in WEIGHTS.items()})
    export(wide, None, tmp_path / "float.onnx", **layers)
    exact = run(tmp_path / "float.onnx", images())
    for name in OUTPUTS:
        assert error(found[name], exact[name]) < 3e-3, name
    assert report.verification.rules < 1e-8


def test_a_source_in_float16_with_its_channels_last_and_one_image(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float16[1, {SIZE}, {SIZE}, 3] picture)'
        f" => (float16[1, {CLASSES}] scores) {{ image = Transpose <perm = [0, 3, 1, 2]> (picture) {SMOOTH} }}"
    )
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in HALVES.items())
    onnx.save(proto, tmp_path / "c.onnx")
    export(tmp_path / "c.onnx", None, tmp_path / "e.onnx", layer="inner")
    export(
        write(tmp_path / "n.onnx", kind="float16", **HALVES), None, tmp_path / "n_e.onnx", layer="inner_node"
    )
    found, expected = (run(tmp_path / f"{name}.onnx", images()) for name in ("e", "n_e"))
    for name in OUTPUTS:
        assert error(found[name], expected[name]) < 2e-3, name


def test_a_few_halves_in_a_source_in_float32(tmp_path: Path) -> None:
    """They stay as they are, and so does the rest."""
    body = SMOOTH.replace("(inner)", "(again)").replace(
        "maps =",
        "half = Cast <to = 10> (inner) twice = Mul (half, two) again = Cast <to = 1> (twice) maps =",
    )
    source = write(tmp_path / "c.onnx", body, two=np.float16(2))
    export(source, None, tmp_path / "e.onnx", layer="pooled_node")
    kinds = kinds_of(tmp_path / "e.onnx")
    assert kinds["twice_node"] == ir.DataType.FLOAT16
    assert kinds["stem_node"] == kinds["inner_node"] == kinds["maps_node"] == ir.DataType.FLOAT


def small_transformer() -> nn.Module:
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=CLASSES
    )
    return redraw(network, torch.zeros(1, 3, 32, 32), 3)


@pytest.mark.parametrize("layer", [None, "encoder.layers.encoder_layer_0"])
def test_a_transformer(layer: str | None, tmp_path: Path) -> None:
    network = small_transformer()
    example = torch.zeros(1, 3, 32, 32)
    export(network, example, tmp_path / "half.onnx", layer=layer, fp16=True)
    export(network, example, tmp_path / "float.onnx", layer=layer)
    feeds = {"image": drawn(2, 3, 32, 32), "class_index": np.array([[0, 1], [2, -1]])}
    found, expected = (run(tmp_path / f"{name}.onnx", feeds) for name in ("half", "float"))
    for name in OUTPUTS:
        assert error(found[name], expected[name]) < 1e-2, name
    proto = ir.load(tmp_path / "half.onnx")
    for node in proto.graph:
        if node.op_type in ("Softmax", "LayerNormalization"):
            assert node.outputs[0].dtype == ir.DataType.FLOAT


def test_kinks(tmp_path: Path) -> None:
    """Rounding switches units of a deep network on and off, and it is verified all the same."""
    network = redraw(resnet18(weights=None), torch.zeros(1, 3, 64, 64), 7)
    report = export(network, torch.zeros(1, 3, 64, 64), tmp_path / "e.onnx", layer="conv1", fp16=True)
    assert report.verification.gradients < 1e-5
    assert report.verification.logits < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("network", [resnet18, vit_b_16, swin_t])
def test_whole_networks(network: Any, tmp_path: Path) -> None:
    model = redraw(network(weights=None), torch.zeros(1, 3, 224, 224), 7)
    example = torch.zeros(1, 3, 224, 224)
    half = export(model, example, tmp_path / "half.onnx", fp16=True)
    plain = export(model, example, tmp_path / "float.onnx")
    assert half.size < 0.51 * plain.size
    feeds = {"image": drawn(2, 3, 224, 224), "class_index": np.array([[0, 1], [2, -1]])}
    found, expected = (run(tmp_path / f"{name}.onnx", feeds) for name in ("half", "float"))
    assert error(found["logits"], expected["logits"]) < 1e-2
    for image, classes in np.ndindex(2, 2):
        maps = [
            (o["gradients"][image, classes].mean((1, 2)), o["activations"][image]) for o in (found, expected)
        ]
        one, other = (np.einsum("k,kyx->yx", *pair).ravel() for pair in maps)
        assert np.corrcoef(one, other)[0, 1] > 0.999


def test_a_quantised_source_is_refused(tmp_path: Path) -> None:
    body = SMOOTH.replace("(maps, w3)", "(again, w3)").replace(
        "deep =", "q = QuantizeLinear (maps, scale) again = DequantizeLinear (q, scale) deep ="
    )
    source = write(tmp_path / "c.onnx", body, scale=np.float32(0.01))
    with pytest.raises(SourceError, match="the network is quantised, and has its precision; leave fp16 out"):
        export(source, None, tmp_path / "e.onnx", fp16=True)
    assert not (tmp_path / "e.onnx").exists()
