"""`onnxplain inspect` and `onnxplain verify`: what a file says, and whether it is true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cli_helpers import assert_one_line_error, run, write_explainer
from onnxplain import Explainer
from tiny_explainer import tiny_explainer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_explainer(tmp_path / "model.onnx")


def test_inspect(model: Path) -> None:
    result = run("inspect", model)
    assert (result.exit_code, result.stderr) == (0, "")
    for words in (
        f"{model}, {model.stat().st_size / 1000:.1f} kB",
        "resized to 24x32, mean 0.5 0.4 0.3",
        "4: tabby cat, tiger cat, crane, crane\n",
        "softmax",
        "features, 5 maps of 6x8; CAM and Grad-CAM",
    ):
        assert words in result.stdout
    lines = {tuple(line.split(maxsplit=3)) for line in result.stdout.splitlines()}
    for line in (
        ("in", "image", "float32", "[batch, 3, 24, 32]"),
        ("in", "class_index", "int64", "[batch, classes]"),
        ("out", "gradients", "float32", "[batch, classes, 5, 6, 8]"),
    ):
        assert line in lines


def test_inspect_json_is_the_manifest(model: Path) -> None:
    result = run("inspect", model, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(Explainer(model).manifest.to_json())


def test_verify(model: Path) -> None:
    result = run("verify", model)
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("gradient rules", "logits", "gradients", "right within rounding"):
        assert words in result.stdout


def test_verify_finds_a_wrong_gradient(tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny_explainer())
    (area,) = (tensor for tensor in model.graph.initializer if tensor.name.startswith("area"))
    area.CopyFrom(numpy_helper.from_array(np.float32(numpy_helper.to_array(area) * 1.01), area.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    result = run("verify", tmp_path / "wrong.onnx")
    assert_one_line_error(result, 1, "gradient rules differ")
    assert "right" not in result.stdout


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, ["bad.onnx"]),
        (b"", ["bad.onnx"]),
        (b"no model", ["bad.onnx"]),
        (tiny_explainer()[:-700], ["bad.onnx"]),
    ],
)
def test_verify_bad_file(data: bytes | None, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if data is not None:
        path.write_bytes(data)
    assert_one_line_error(run("verify", path), 1, *words)
