"""A file is written once, byte by byte as protobuf would write it, and engines get weights as arrays."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from graphs import Array, in_onnxruntime, parse
from onnxplain.errors import VerificationError
from onnxplain.manifest import METADATA_KEY
from onnxplain_export import export, exporter, files, verify
from onnxplain_export.onnx_session import session_of
from onnxplain_export.protobuf import pieces, without_weights

RNG = np.random.default_rng(0)


def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)]
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.SiLU(), *head).eval()


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("once") / "explainer.onnx"
    export(network(), torch.zeros(1, 3, 16, 16), path)
    return path


def weighted(**more: Array) -> ir.Model:
    """Return a network of a product, with weights of several types beside it."""
    constants = {"w": RNG.standard_normal((64, 64)).astype(np.float32), **more}
    return parse("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", **constants)


@pytest.mark.parametrize("threshold", [files.EXTERNAL_DATA_THRESHOLD, 1000])
@pytest.mark.parametrize("options", [{}, {"fp16": True}, {"pixels": True}, {"pixels": True, "fp16": True}])
def test_the_weights_are_written_once(
    options: dict[str, bool], threshold: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved: list[Path] = []

    def counted(model: ir.Model, path: Path) -> None:
        saved.append(path)
        files.save(model, path)

    def refused(*arguments: object, **more: object) -> None:
        raise AssertionError("the model is serialised whole")

    monkeypatch.setattr(files, "EXTERNAL_DATA_THRESHOLD", threshold)
    monkeypatch.setattr(exporter, "save", counted)
    if threshold > 1000:
        monkeypatch.setattr(ir, "save", refused)
        monkeypatch.setattr(onnx, "save", refused)
    export(network(), torch.zeros(1, 3, 16, 16), tmp_path / "e.onnx", **options)
    assert [path.name for path in saved] == ["e.onnx"]
    monkeypatch.undo()
    assert verify(tmp_path / "e.onnx").rules < 1e-6


def with_a_wrong_gradient(path: Path) -> None:
    """Change one weight of the backward pass alone: the node that reads it is fed a copy."""
    proto = onnx.load(path)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    gather = next(node for node in proto.graph.node if node.op_type == "Gather" and node.input[0] in weights)
    changed = numpy_helper.to_array(weights[gather.input[0]]).copy()
    changed[:, 0] *= 2
    proto.graph.initializer.append(numpy_helper.from_array(changed, "changed"))
    gather.input[0] = "changed"
    onnx.save(proto, path)


@pytest.mark.parametrize("options", [{}, {"fp16": True}, {"pixels": True}, {"pixels": True, "fp16": True}])
def test_what_is_verified_is_what_was_written(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(model: ir.Model, path: Path) -> None:
        files.save(model, path)
        with_a_wrong_gradient(path)

    monkeypatch.setattr(exporter, "save", wrong)
    with pytest.raises(VerificationError):
        export(network(), torch.zeros(1, 3, 16, 16), tmp_path / "e.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_the_files_only_metadata(explainer: Path) -> None:
    proto = onnx.load(explainer)
    assert [entry.key for entry in proto.metadata_props] == [METADATA_KEY]
    # As protobuf itself would have written it, from the first byte to the last.
    assert proto.SerializeToString() == explainer.read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"half": RNG.standard_normal(2000).astype(np.float16), "whole": np.arange(3000)},
        {"brain": RNG.standard_normal(2000).astype(ml_dtypes.bfloat16), "truth": np.ones(5000, bool)},
        {
            "empty": np.zeros((0, 3), np.float32),
            "number": np.array(2.0),
            "words": np.array(["a", "b"], object),
        },
        {"large": RNG.standard_normal(200_000)},
    ],
    ids=lambda more: " ".join(more) or "one",
)
def test_as_protobuf_writes_it(more: dict[str, Array]) -> None:
    model = weighted(**more)
    model.metadata_props["key"] = "value"
    expected = ir.to_proto(model).SerializeToString()
    assert b"".join(bytes(piece) for piece in pieces(model)) == expected


def test_weights_stay_where_they_are() -> None:
    model = weighted()
    array = np.ascontiguousarray(RNG.standard_normal((64, 64)).astype(np.float32))
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    proto, weights = without_weights(model)
    assert weights["w"] is array or np.shares_memory(weights["w"], array)
    assert len(proto.SerializeToString()) < 1000
    assert model.graph.initializers["w"].const_value.numpy() is array


@pytest.mark.parametrize("optimised", [False, True])
def test_a_model_in_memory_computes_what_its_file_does(explainer: Path, optimised: bool) -> None:
    feeds = {
        "image": RNG.standard_normal((2, 3, 16, 16)).astype(np.float32),
        "class_index": np.array([[0, -1], [3, 4]]),
    }
    results = [
        session_of(model, optimised=optimised).run(None, feeds) for model in (ir.load(explainer), explainer)
    ]
    for in_memory, of_file in zip(*results, strict=True):
        np.testing.assert_array_equal(in_memory, of_file)


def test_weights_live_as_long_as_their_session() -> None:
    model = weighted()
    array = np.ones((64, 64), np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    alive = weakref.ref(array)
    session = session_of(model)
    del model, array
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((1, 64), np.float32)})[0], [[64.0] * 64])
    del session
    gc.collect()
    assert alive() is None


def test_weights_that_nothing_reads() -> None:
    """Onnxruntime drops them before it is given any."""
    model = weighted(unread=RNG.standard_normal(2000).astype(np.float32))
    x = RNG.standard_normal((2, 64)).astype(np.float32)
    (found,) = session_of(model).run(None, {"x": x})
    np.testing.assert_allclose(found, in_onnxruntime(model, {"x": x})["y"], rtol=1e-5, atol=1e-5)


def test_weights_of_a_file_beside(tmp_path: Path) -> None:
    """Small and large ones, and of types that numpy has not."""
    model = weighted(small=np.ones(3, np.float32), brain=np.ones(2000, ml_dtypes.bfloat16))
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    read = ir.load(tmp_path / "m.onnx")
    assert isinstance(read.graph.initializers["small"].const_value, ir.ExternalTensor)
    x = np.ones((1, 64), np.float32)
    (found,) = session_of(read).run(None, {"x": x})
    np.testing.assert_allclose(found, in_onnxruntime(model, {"x": x})["y"], rtol=1e-5, atol=1e-5)
    files.save(read, tmp_path / "one.onnx")
    (tmp_path / "m.data").unlink()
    onnx.checker.check_model(onnx.load(tmp_path / "one.onnx"))
