"""Finished `.onnx` files as sources: other exporters' habits, layers by name, and what can't be explained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from cli_helpers import assert_one_line_error, run, write_picture
from onnxplain import Explainer, Preprocessing
from onnxplain.errors import LayerError, OutputError, SourceError, UnsupportedOperatorError
from onnxplain_export import OnnxModel, export, list_layers, verify
from onnxplain_export.rules import RULES

Array = npt.NDArray[Any]
CLASSES = 5

# Each test's nodes: (operator, inputs, output, attributes). A node is named after its output.
Row = tuple[str, str, str, dict[str, Any]]
TRUNK: list[Row] = [
    ("Conv", "image w1", "conv1", {"pads": [1] * 4, "strides": [2, 2]}),
    ("Relu", "conv1", "relu1", {}),
    ("Conv", "relu1 w2", "conv2", {"pads": [1] * 4}),
    ("Sigmoid", "conv2", "maps", {}),
]
HEAD: list[Row] = [
    ("GlobalAveragePool", "maps", "pooled", {}),
    ("Reshape", "pooled flat", "features", {}),
    ("Gemm", "features fc bias", "scores", {}),
]
CHANNELS_LAST: list[Row] = [("Transpose", "picture", "image", {"perm": [0, 3, 1, 2]})]


def constants(batch: int) -> dict[str, Array]:
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return {
        "w1": normal(8, 3, 3, 3),
        "w2": normal(6, 8, 3, 3),
        "fc": 5 * normal(6, CLASSES),
        "bias": normal(CLASSES, 1)[:, 0],
        "flat": np.array([batch, 6], np.int64),
        "axis": np.array([1], np.int64),
    }


def nodes(rows: list[Row]) -> list[NodeProto]:
    made = []
    for operator, inputs, output, attributes in rows:
        own = dict(attributes)
        domain = own.pop("domain", "")
        outputs = output.split()
        made.append(
            helper.make_node(operator, inputs.split(), outputs, f"{outputs[0]}_node", domain=domain, **own)
        )
    return made


def write(
    path: Path,
    rows: list[Row],
    *,
    shape: tuple[int | str, ...] = (1, 3, 16, 16),
    opset: int = 11,
    outputs: dict[str, int] | None = None,
    more_inputs: list[onnx.ValueInfoProto] | None = None,
    weights: dict[str, Array] | None = None,
    domains: tuple[str, ...] = (),
) -> Path:
    """Write a classifier; the input is what the first node takes, the output what the last one puts out."""
    batch = shape[0] if isinstance(shape[0], int) else -1
    arrays = {**constants(batch), **(weights or {})}
    used = {name for _, inputs, _, _ in rows for name in inputs.split()}
    graph = helper.make_graph(
        nodes(rows),
        "classifier",
        [
            helper.make_tensor_value_info(rows[0][1].split()[0], TensorProto.FLOAT, shape),
            *(more_inputs or []),
        ],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in (outputs or {rows[-1][2]: TensorProto.FLOAT}).items()
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=6 if opset < 15 else 8), path)
    return path


def keras_like(path: Path) -> Path:
    """Opset 11, channels last, a static batch of one, and a Softmax at the end."""
    rows = [*CHANNELS_LAST, *TRUNK, *HEAD, ("Softmax", "scores", "probabilities", {})]
    return write(path, rows, shape=(1, 16, 16, 3))


def source_outputs(path: Path, name: str, feeds: dict[str, Array]) -> Array:
    """Run a file as it is, one image at a time, with a tensor of it as the output."""
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ((key, images),) = feeds.items()
    return np.concatenate([session.run([name], {key: image[None]})[0] for image in images])


def images(count: int) -> Array:
    return np.random.default_rng(3).standard_normal((count, 3, 16, 16)).astype(np.float32)


def explained(path: Path, image: Array, classes: list[int]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    index = np.tile(np.array(classes, np.int64), (len(image), 1))
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image, "class_index": index}), strict=True))


@pytest.mark.parametrize(
    "index", [[[0], [4], [CLASSES]], [[0, 3, CLASSES], [1, 2, -1]], np.zeros((3, 0), int)]
)
def test_a_division_by_a_filled_tensor(index, tmp_path):
    """As torch's older exporter writes ``x / torch.full_like(x, 2)``: it isn't a mean's, and has a batch."""
    rows: list[Row] = [
        *TRUNK,
        ("Shape", "maps", "shape", {}),
        ("ConstantOfShape", "shape", "twos", {"value": numpy_helper.from_array(np.float32([2]))}),
        ("Div", "maps twos", "halves", {}),
        ("GlobalAveragePool", "halves", "pooled", {}),
        *HEAD[1:],
    ]
    source = write(tmp_path / "source.onnx", rows, shape=("N", 3, 16, 16))
    export(OnnxModel(source), None, tmp_path / "model.onnx", layer="maps")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = np.random.default_rng(1).standard_normal((len(index), 3, 16, 16)).astype(np.float32)
    feeds = {"image": images, "class_index": np.array(index, np.int64)}
    gradients, explained = session.run(["gradients", "explained_class"], feeds)
    rows_of_classes = np.concatenate(
        [constants(-1)["fc"], np.full((6, 1), np.nan)], axis=1
    ).T  # the last: none
    expected = rows_of_classes[explained] / (2 * 8 * 8)
    assert gradients.shape == (*feeds["class_index"].shape, 6, 8, 8)
    np.testing.assert_allclose(
        gradients, np.broadcast_to(expected[..., None, None], gradients.shape), rtol=1e-6
    )


def test_channels_last_static_batch_softmax(tmp_path: Path) -> None:
    """The gradients are those of the logits, derived here by hand from the trunk's activations."""
    source = keras_like(tmp_path / "source.onnx")
    report = export(source, None, tmp_path / "out.onnx")
    assert report.automatic
    (layer,) = report.manifest.layers
    assert (layer.name, layer.channels, layer.height, layer.width) == ("maps_node", 6, 8, 8)
    assert layer.head == "gap_linear"
    assert report.manifest.activation == "softmax"
    assert report.manifest.source["kind"] == "onnx"
    assert report.manifest.source["name"] == "source.onnx"
    assert set(report.manifest.producer) == {"onnxplain", "onnx"}
    image = images(3)
    found = explained(tmp_path / "out.onnx", image, [1, 4])
    feeds = {"picture": np.ascontiguousarray(np.moveaxis(image, 1, -1))}
    np.testing.assert_allclose(found["logits"], source_outputs(source, "scores", feeds), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        found["activations"], source_outputs(source, "maps", feeds), rtol=1e-5, atol=1e-6
    )
    columns = constants(1)["fc"].T[[1, 4]] / 64
    expected = np.broadcast_to(columns[None, :, :, None, None], (3, 2, 6, 8, 8))
    np.testing.assert_allclose(found["gradients"], expected, rtol=1e-5)
    assert verify(tmp_path / "out.onnx").rules < 1e-6


@pytest.mark.parametrize(
    ("tail", "activation"),
    [
        ([("Softmax", "scores", "end", {})], "softmax"),
        ([("LogSoftmax", "scores", "end", {})], "softmax"),
        ([("Sigmoid", "scores", "end", {})], "sigmoid"),
        ([("Softmax", "scores", "p", {}), ("Identity", "p", "end", {})], "softmax"),
        ([("Softmax", "scores", "p", {}), ("Reshape", "p shape", "end", {})], "softmax"),
        (
            [("Softmax", "scores", "p", {}), ("Cast", "p", "q", {"to": 10}), ("Cast", "q", "end", {"to": 1})],
            "softmax",
        ),
        ([("Identity", "scores", "end", {})], "softmax"),
    ],
)
def test_what_stands_behind_the_logits(tail: list[Row], activation: str, tmp_path: Path) -> None:
    shape = {"shape": np.array([1, CLASSES], np.int64)}
    source = write(tmp_path / "source.onnx", [*TRUNK, *HEAD, *tail], weights=shape)
    report = export(source, None, tmp_path / "out.onnx")
    assert report.manifest.activation == activation
    image = images(2)
    found = explained(tmp_path / "out.onnx", image, [-1])
    expected = source_outputs(source, "scores", {"image": image})
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-6)


def test_logits_of_1x1_maps(tmp_path: Path) -> None:
    """As SqueezeNet of the ONNX model zoo ends: class maps, pooled, and a Softmax over the channels."""
    rows: list[Row] = [
        *TRUNK,
        ("Conv", "maps last", "class_maps", {}),
        ("GlobalAveragePool", "class_maps", "pooled", {}),
        ("Softmax", "pooled", "end", {"axis": 1}),
    ]
    last = {"last": np.random.default_rng(2).standard_normal((CLASSES, 6, 1, 1)).astype(np.float32)}
    source = write(tmp_path / "source.onnx", rows, weights=last, opset=13)
    report = export(source, None, tmp_path / "out.onnx")
    assert report.manifest.layers[0].name == "maps_node"
    image = images(2)
    expected = source_outputs(source, "pooled", {"image": image}).reshape(2, CLASSES)
    np.testing.assert_allclose(
        explained(tmp_path / "out.onnx", image, [-1])["logits"], expected, rtol=1e-5, atol=1e-6
    )


def test_label_beside_probabilities(tmp_path: Path) -> None:
    rows: list[Row] = [
        *TRUNK,
        *HEAD,
        ("Softmax", "scores", "probabilities", {}),
        ("ArgMax", "probabilities", "label", {"axis": 1}),
    ]
    outputs = {"label": TensorProto.INT64, "probabilities": TensorProto.FLOAT}
    source = write(tmp_path / "source.onnx", rows, outputs=outputs)
    report = export(source, None, tmp_path / "out.onnx")
    assert report.manifest.activation == "softmax"


def test_layers_by_node_and_by_tensor(tmp_path: Path) -> None:
    source = keras_like(tmp_path / "source.onnx")
    outputs = []
    for name in ("relu1", "relu1_node"):
        report = export(source, None, tmp_path / "out.onnx", layer=name)
        assert report.manifest.layers[0].name == name
        outputs.append(explained(tmp_path / "out.onnx", images(2), [0, 3])["gradients"])
    assert np.array_equal(*outputs)
    assert np.any(outputs[0] != 0)
    names = [layer.name for layer in list_layers(source)]
    assert names[-4:] == ["conv1_node", "relu1_node", "conv2_node", "maps_node"]


def test_several_layers_and_the_image(tmp_path: Path) -> None:
    source = keras_like(tmp_path / "source.onnx")
    export(source, None, tmp_path / "out.onnx", layer=["relu1", "maps"], input_gradient=True)
    found = explained(tmp_path / "out.onnx", images(2), [0])
    assert found["gradients.relu1"].shape == (2, 1, 8, 8, 8)
    assert found["image_gradients"].shape == (2, 1, 3, 16, 16)
    assert verify(tmp_path / "out.onnx").rules < 1e-6


def test_any_size(tmp_path: Path) -> None:
    source = write(tmp_path / "source.onnx", [*TRUNK, *HEAD], shape=("n", 3, "h", "w"))
    with pytest.raises(SourceError, match="--size"):
        export(source, None, tmp_path / "out.onnx")
    report = export(source, None, tmp_path / "out.onnx", preprocessing=Preprocessing.for_size(3, 24, 16))
    assert report.manifest.layers[0].height == 12
    assert report.manifest.layers[0].width == 8


def test_external_data(tmp_path: Path) -> None:
    source = keras_like(tmp_path / "inside.onnx")
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(source), outside, save_as_external_data=True, location="weights", size_threshold=0)
    export(outside, None, tmp_path / "out.onnx")
    export(source, None, tmp_path / "other.onnx")
    (tmp_path / "weights").unlink()
    image = images(2)
    first, second = (explained(tmp_path / name, image, [1]) for name in ("out.onnx", "other.onnx"))
    assert np.array_equal(first["gradients"], second["gradients"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")}


def names_of(source: Path) -> list[Path]:
    """Other paths that lead to a file: through folders, links, and the file system that ignores case."""
    link, hard = source.with_name("link.onnx"), source.with_name("hard.onnx")
    link.symlink_to(source)
    os.link(source, hard)
    other_case = source.with_name(source.name.swapcase())
    return [
        source,
        source.parent / ".." / source.parent.name / source.name,
        link,
        hard,
        *([other_case] if other_case.exists() else []),
    ]


def test_the_source_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = keras_like(tmp_path / "own.onnx")
    outputs = names_of(source)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for output in [*outputs, Path("own.onnx")]:
        for given in (source, OnnxModel(source)):
            with pytest.raises(OutputError, match=r"would be replaced; .*\.explainer\.onnx"):
                export(given, None, output)
        result = run("export", source, "-o", output)
        assert_one_line_error(result, 1, "is read here", f"such as {output.with_suffix('')}.explainer.onnx")
    assert contents(tmp_path) == before
    (tmp_path / "own.explainer.onnx").write_bytes(b"mine")
    assert_one_line_error(run("export", source, "-o", source), 1, "own.explainer-2.onnx")


def test_the_sources_weights_are_not_replaced(tmp_path: Path) -> None:
    """torch's exporter calls them NAME.onnx.data, and the file may have been renamed since."""
    source = tmp_path / "net.onnx"
    external = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(onnx.load(keras_like(tmp_path / "inside.onnx")), source, **external)
    before = contents(tmp_path)
    for name in ("model.onnx", "model.onnx.data"):
        with pytest.raises(OutputError, match=r"model\.onnx\.data"):
            export(source, None, tmp_path / name)
        assert_one_line_error(run("export", source, "-o", tmp_path / name), 1, "model.onnx.data")
    assert contents(tmp_path) == before
    assert run("export", source, "-o", tmp_path / "other.onnx").exit_code == 0
    assert contents(tmp_path) == {**before, "other.onnx": (tmp_path / "other.onnx").read_bytes()}


@pytest.mark.parametrize("location", ["../weights", "/etc/hostname", "missing"])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    source = keras_like(folder / "source.onnx")
    model = onnx.load(source)
    onnx.save(model, source, save_as_external_data=True, location="weights", size_threshold=0)
    (folder / "weights").rename(tmp_path / "weights")
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    source.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"source\.onnx"):
        export(source, None, tmp_path / "out.onnx")


def test_damaged_files(tmp_path: Path) -> None:
    whole = keras_like(tmp_path / "source.onnx").read_bytes()
    source = tmp_path / "damaged.onnx"
    generator = np.random.default_rng(0)
    for cut in [0, 1, 10, *generator.integers(11, len(whole) - 1, 12).tolist()]:
        source.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"damaged\.onnx"):
            export(source, None, tmp_path / "out.onnx")
    with pytest.raises(SourceError, match="no file"):
        export(tmp_path / "missing.onnx", None, tmp_path / "out.onnx")


def test_an_explainer_is_no_source(tmp_path: Path) -> None:
    export(keras_like(tmp_path / "source.onnx"), None, tmp_path / "out.onnx")
    with pytest.raises(SourceError, match="explainer already"):
        export(tmp_path / "out.onnx", None, tmp_path / "again.onnx")


def failing(tmp_path: Path, layer: str | None = None, **keywords: Any) -> None:
    rows = keywords.pop("rows", [*TRUNK, *HEAD])
    export(write(tmp_path / "source.onnx", rows, **keywords), None, tmp_path / "out.onnx", layer=layer)


def test_unfit_inputs_and_outputs(tmp_path: Path) -> None:
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1])
    with pytest.raises(SourceError, match=r"2 inputs \(image, scale\)"):
        failing(tmp_path, rows=[*TRUNK, *HEAD, ("Mul", "scores scale", "end", {})], more_inputs=[scale])
    with pytest.raises(SourceError, match="takes no pictures"):
        failing(tmp_path, shape=(1, 3, 1 << 40, 16))
    with pytest.raises(SourceError, match="how many channels"):
        failing(tmp_path, shape=("n", "c", 16, 16))
    with pytest.raises(SourceError, match="several outputs"):
        failing(tmp_path, outputs={"scores": TensorProto.FLOAT, "features": TensorProto.FLOAT})
    with pytest.raises(SourceError, match="no output is"):
        failing(tmp_path, rows=TRUNK)
    assert not (tmp_path / "out.onnx").exists()


# Each from `maps` [1, 6, 8, 8] to `features` [1, 6], with the batch merged into another axis in between.
SEQUENCE_FIRST: list[Row] = [
    ("Reshape", "maps shape1", "tokens", {}),
    ("Transpose", "tokens", "sequence", {"perm": [2, 0, 1]}),
    ("Reshape", "sequence shape2", "rows", {}),
    ("MatMul", "rows mix", "mixed", {}),
    ("Reshape", "mixed shape3", "heads", {}),
    ("Sigmoid", "heads", "squashed", {}),
    ("Transpose", "squashed", "heads_first", {"perm": [1, 0, 2]}),
    ("ReduceMean", "heads_first", "means", {"axes": [1], "keepdims": 0}),
    ("Reshape", "means flat", "features", {}),
]
WINDOWS: list[Row] = [
    ("Reshape", "maps shape1", "cut", {}),
    ("Transpose", "cut", "cut_last", {"perm": [0, 2, 4, 3, 5, 1]}),
    ("Reshape", "cut_last shape2", "windows", {}),
    ("ReduceMax", "windows", "largest", {"axes": [1], "keepdims": 0}),
    ("Reshape", "largest shape3", "by_image", {}),
    ("ReduceMean", "by_image", "features", {"axes": [1], "keepdims": 0}),
]
# Its first states and its lengths are those of one image.
RECURRENT: list[Row] = [
    ("Reshape", "maps shape1", "tokens", {}),
    ("Transpose", "tokens", "sequence", {"perm": [2, 0, 1]}),
    ("LSTM", "sequence gates_x gates_h gates_b lengths first_h first_c", "states last", {"hidden_size": 6}),
    ("Squeeze", "last", "features", {"axes": [0]}),
]


@pytest.mark.parametrize(
    ("middle", "shapes"),
    [
        (SEQUENCE_FIRST, [[1, 6, 64], [64, 6], [64, 2, 3]]),
        (WINDOWS, [[1, 6, 2, 4, 2, 4], [4, 16, 6], [1, 4, 6]]),
        (RECURRENT, [[1, 6, 64]]),
    ],
    ids=["sequence first", "windows", "recurrent"],
)
def test_a_static_batch_merged_with_other_axes(
    middle: list[Row], shapes: list[list[int]], tmp_path: Path
) -> None:
    weights = {f"shape{index}": np.array(shape, np.int64) for index, shape in enumerate(shapes, 1)}
    random = np.random.default_rng(4)
    weights["lengths"] = np.array([60], np.int32)
    for name, size in {
        "mix": (6, 6),
        "gates_x": (1, 24, 6),
        "gates_h": (1, 24, 6),
        "gates_b": (1, 48),
        "first_h": (1, 1, 6),
        "first_c": (1, 1, 6),
    }.items():
        weights[name] = random.standard_normal(size).astype(np.float32)
    source = write(tmp_path / "source.onnx", [*TRUNK, *middle, HEAD[-1]], weights=weights)
    export(source, None, tmp_path / "out.onnx", layer="maps")
    image = images(3)
    expected = source_outputs(source, "scores", {"image": image})
    found = explained(tmp_path / "out.onnx", image, [0])["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_that_stays_static(tmp_path: Path) -> None:
    """Places picked from the flattened batch are those of its first image."""
    rows: list[Row] = [
        *TRUNK,
        ("GlobalAveragePool", "maps", "pooled", {}),
        ("Reshape", "pooled all", "line", {}),
        ("Gather", "line places", "picked", {}),
        ("Reshape", "picked flat", "features", {}),
        ("Gemm", "features fc bias", "scores", {}),
    ]
    weights = {"all": np.array([-1], np.int64), "places": np.arange(6)}
    with pytest.raises(SourceError, match="batches of 1 only"):
        failing(tmp_path, rows=rows, weights=weights)


@pytest.mark.parametrize(("domain", "operator"), [("com.microsoft", "Inverse"), ("custom.domain", "Blur")])
def test_operators_of_other_domains(domain: str, operator: str, tmp_path: Path) -> None:
    rows: list[Row] = [*TRUNK[:-1], (operator, "conv2", "maps", {"domain": domain}), *HEAD]
    with pytest.raises(SourceError, match=f"{domain}::{operator} .*maps_node"):
        failing(tmp_path, "conv1", rows=rows, domains=(domain,))


def test_an_operator_without_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "Sigmoid")
    with pytest.raises(UnsupportedOperatorError, match=r"operator Sigmoid .*maps_node"):
        failing(tmp_path, "conv1")
    failing(tmp_path, "maps")


def branches_of(value: str) -> dict[str, onnx.GraphProto]:
    """Return an If's branches, which take a value from around it."""
    return {
        name: helper.make_graph(
            [helper.make_node(operator, [value], [f"{name}_result"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_result", TensorProto.FLOAT, None)],
        )
        for name, operator in (("then_branch", "Relu"), ("else_branch", "Tanh"))
    }


def test_control_flow_beside_the_path(tmp_path: Path) -> None:
    """What the layer decides is made of a value from before the layer."""
    rows: list[Row] = [
        *TRUNK,
        ("ReduceMean", "relu1", "brightness", {"axes": [1, 2, 3]}),
        ("ReduceSum", "maps", "sum", {"keepdims": 0}),
        ("Cast", "sum", "is_positive", {"to": TensorProto.BOOL}),
        ("If", "is_positive", "gate", branches_of("brightness")),
        ("GlobalAveragePool", "maps", "pooled", {}),
        ("Mul", "pooled gate", "gated", {}),
        ("Reshape", "gated flat", "features", {}),
        ("Gemm", "features fc bias", "scores", {}),
    ]
    path = tmp_path / "explainer.onnx"
    export(write(tmp_path / "source.onnx", rows), None, path, layer="maps")
    assert verify(path).rules < 1e-8
    found = explained(path, images(2), [1])
    gate = source_outputs(tmp_path / "source.onnx", "gate", {"image": images(2)})
    expected = gate * constants(1)["fc"][:, 1, None, None] / 64
    np.testing.assert_allclose(found["gradients"][:, 0], expected + np.zeros((1, 6, 8, 8)), rtol=1e-5)


def test_control_flow_on_the_path(tmp_path: Path) -> None:
    rows: list[Row] = [
        *TRUNK[:-1],
        ("ReduceSum", "conv2", "sum", {"keepdims": 0}),
        ("Cast", "sum", "is_positive", {"to": TensorProto.BOOL}),
        ("If", "is_positive", "maps", branches_of("conv2")),
        *HEAD,
    ]
    with pytest.raises(UnsupportedOperatorError, match=r"operator If .*maps_node"):
        failing(tmp_path, "conv1", rows=rows)


def test_a_path_that_is_not_of_floats(tmp_path: Path) -> None:
    rows: list[Row] = [
        *TRUNK[:-1],
        ("Cast", "conv2", "whole", {"to": TensorProto.INT64}),
        ("Cast", "whole", "maps", {"to": TensorProto.FLOAT}),
        *HEAD,
    ]
    with pytest.raises(LayerError, match=r"'conv1'.*Cast .*whole_node"):
        failing(tmp_path, "conv1", rows=rows)
    with pytest.raises(LayerError, match=r"'whole'.*not floating-point"):
        failing(tmp_path, "whole", rows=rows)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("conv3", "no node or tensor 'conv3'.*conv"),
        ("sum", "'sum' is in the file, but was optimised away"),
        ("end", "'end' is in the file, but was optimised away"),
        ("features", "no spatial extent"),
        ("scores", "don't depend on the layer 'scores'"),
    ],
)
def test_layers_that_cannot_be_explained(layer: str, words: str, tmp_path: Path) -> None:
    rows: list[Row] = [
        *TRUNK,
        *HEAD[:-1],
        ("Add", "bias bias", "sum", {}),
        ("Gemm", "features fc sum", "scores", {}),
        ("Softmax", "scores", "end", {}),
    ]
    with pytest.raises(LayerError, match=words):
        failing(tmp_path, layer, rows=rows)


def test_unknown_opset(tmp_path: Path) -> None:
    source = write(tmp_path / "source.onnx", [*TRUNK, *HEAD], opset=11)
    model = onnx.load(source)
    model.opset_import[0].version = 999
    source.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="999"):
        export(source, None, tmp_path / "out.onnx")


def test_size_that_the_file_does_not_take(tmp_path: Path) -> None:
    source = keras_like(tmp_path / "source.onnx")
    with pytest.raises(SourceError, match="16x16, not 20x20"):
        OnnxModel(source, (20, 20))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keras_like(tmp_path / "source.onnx")
    result = run("layers", "source.onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].split() == [
        "maps_node",
        "Sigmoid",
        "6",
        "of",
        "8x8",
        "picked",
        "automatically",
    ]
    assert_one_line_error(run("export", "none.onnx", "-o", "out.onnx"), 1, "none.onnx")
    assert_one_line_error(
        run("export", "source.onnx", "-o", "out.onnx", "--checkpoint", "w.pt"), 2, "--checkpoint"
    )
    assert_one_line_error(
        run("export", "source.onnx", "-o", "out.onnx", "--layer", "mapz"), 1, "'mapz'", "maps"
    )


def test_without_torch(tmp_path: Path) -> None:
    """Export, verify and explain in a process in which torch can't be imported."""
    keras_like(tmp_path / "source.onnx")
    write_picture(tmp_path / "picture.png")
    (tmp_path / "labels.txt").write_text("\n".join("abcde"))
    (tmp_path / "how.json").write_text('{"resize": null, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
    stated = ["--labels", "labels.txt", "--preprocessing", "how.json"]
    for args in (
        ["layers", "source.onnx"],
        ["export", "source.onnx", "-o", "out.onnx", "--layer", "relu1", *stated],
        ["verify", "out.onnx"],
        ["explain", "out.onnx", "picture.png"],
    ):
        script = (
            "import sys; sys.modules['torch'] = None; from onnxplain.cli import main; "
            f"sys.exit(main({args!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
        )
        assert (done.returncode, done.stderr) == (0, ""), args
    assert Explainer(tmp_path / "out.onnx").manifest.labels == tuple("abcde")


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_a_ceil_mode_that_has_an_effect_along_one_axis_alone(operator: str, tmp_path: Path) -> None:
    """Along the other one onnx's shape inference counts a window that begins behind the input."""
    rows: list[Row] = [
        ("Conv", "image w1", "conv1", {"pads": [1] * 4}),
        (
            operator,
            "conv1",
            "pooled1",
            {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1] * 4, "ceil_mode": 1},
        ),
        ("Conv", "pooled1 w2", "conv2", {"pads": [1] * 4}),
        ("Sigmoid", "conv2", "maps", {}),
        *HEAD,
    ]
    source = write(tmp_path / "c.onnx", rows, shape=("n", 3, 24, 23))
    report = export(str(source), None, tmp_path / "e.onnx", layer="conv1")
    assert report.verification.rules < 1e-8


def test_recurrent_nodes_that_put_out_their_last_state_alone(tmp_path: Path) -> None:
    """Their first output has no name that constants could be named after."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return (generator.standard_normal(shape) / 3).astype(np.float32)

    weights = {"w1": normal(8, 3, 3, 3), "fc": normal(6, CLASSES), "h": np.zeros((1, 1, 3), np.float32)}
    rows: list[Row] = [
        ("Conv", "image w1", "conv1", {"pads": [1] * 4}),
        ("ReduceMean", "conv1", "rows", {"axes": [3], "keepdims": 0}),
        ("Transpose", "rows", "sequence", {"perm": [2, 0, 1]}),
    ]
    made = nodes(rows)
    for name in "ab":
        weights |= {f"w{name}": normal(1, 12, 8), f"r{name}": normal(1, 12, 3), f"b{name}": normal(1, 24)}
        inputs = ["sequence", f"w{name}", f"r{name}", f"b{name}", "", "h"]
        made.append(helper.make_node("LSTM", inputs, ["", f"last{name}"], f"lstm{name}", hidden_size=3))
        made.append(helper.make_node("Squeeze", [f"last{name}"], [f"state{name}"], axes=[0]))
    made += nodes([("Concat", "statea stateb", "states", {"axis": 1}), ("MatMul", "states fc", "scores", {})])
    graph = helper.make_graph(
        made,
        "recurrent",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6),
        tmp_path / "r.onnx",
    )
    report = export(str(tmp_path / "r.onnx"), None, tmp_path / "e.onnx", layer="conv1")
    assert report.verification.rules < 1e-8


TO_DOUBLE, TO_FLOAT = {"to": TensorProto.DOUBLE}, {"to": TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("trunk", "tail", "message"),
    [
        (
            [
                *TRUNK[:2],
                ("Conv", "relu1 w2", "narrow", {"pads": [1] * 4}),
                ("Cast", "narrow", "conv2", TO_DOUBLE),
                ("Cast", "conv2", "again", TO_FLOAT),
                ("Sigmoid", "again", "maps", {}),
            ],
            [],
            "the layer 'conv2' is DOUBLE, and an explainer's outputs are float32",
        ),
        (
            TRUNK,
            [("Cast", "scores", "logits", TO_DOUBLE)],
            "the logits are DOUBLE, and an explainer's are float32",
        ),
    ],
)
def test_double_precision_inside_is_refused(
    trunk: list[Row], tail: list[Row], message: str, tmp_path: Path
) -> None:
    rows = [*trunk, *HEAD, *tail]
    outputs = {rows[-1][2]: TensorProto.DOUBLE if tail else TensorProto.FLOAT}
    source = write(tmp_path / "d.onnx", rows, shape=("n", 3, 16, 16), outputs=outputs)
    with pytest.raises((LayerError, SourceError), match=message):
        export(str(source), None, tmp_path / "e.onnx", layer="conv2")
    assert not (tmp_path / "e.onnx").exists()
