"""`onnxplain bench`: what it prints; how long things take is for nobody to test."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from cli_helpers import assert_one_line_error, run, write_explainer, write_picture
from onnxplain.bench import Latency, Ratio, alternate, in_own_process
from onnxplain.errors import ModelError
from tiny_explainer import Network, tiny_explainer, tiny_manifest, two_layers

QUICK = ("--rounds", "5", "--batch", "2", "--threads", "1")


def test_ratio_is_taken_round_by_round():
    base = [1.0, 10.0, 2.0]
    assert Ratio.of([2.0, 20.0, 4.0], base) == Ratio(2.0, 2.0, 2.0)
    assert Ratio.of([1.0, 20.0, 6.0], base).median == 2.0


def test_latency_is_quantiles():
    found = Latency.of(list(np.linspace(0, 1, 101)))
    assert (found.median, found.p90, found.p99) == pytest.approx((0.5, 0.9, 0.99))


def test_runs_take_turns():
    calls: list[str] = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 4)
    assert calls == ["a", "b"] * 7  # three of them to warm up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}


def test_json(tmp_path):
    model, picture = write_explainer(tmp_path / "m.onnx"), write_picture(tmp_path / "p.png")
    result = run("bench", model, picture, *QUICK, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found["latencies"]) == ["prediction", "explanation", "explanation of 4 classes"]
    assert list(found["ratios"]) == list(found["latencies"])[1:]
    assert list(found["stages"]) == ["decode", "prepare", "infer", "heatmap", "overlay", "in all"]
    assert [(row["threads"], row["batch"]) for row in found["throughput"]] == [(1, 2)]
    assert found["throughput"][0]["pictures_per_second"] > 0
    assert found["providers"] == ["CPUExecutionProvider"]
    assert (found["model"], found["bytes"]) == (str(model), model.stat().st_size)
    assert all(found["machine"][name] for name in ("onnxplain", "onnxruntime", "numpy", "opencv"))


def test_process_that_dies():
    with pytest.raises(ModelError, match="ended suddenly"):
        in_own_process(os._exit, 9)


def too_much() -> None:
    raise MemoryError


def test_too_little_memory():
    with pytest.raises(ModelError, match="not enough memory"):
        in_own_process(too_much)


def warn(text: str) -> int:
    warnings.warn(text, RuntimeWarning, stacklevel=1)
    return 7


def test_warnings_come_back(capfd):
    assert in_own_process(warn, "runs on the CPU") == (7, ["runs on the CPU"])
    assert capfd.readouterr().err == ""


def cut(model: bytes, output: str, axis: int, length: int) -> bytes:
    """Cut an output of a file to a length that the graph computes, so that loading it doesn't tell."""
    found = onnx.load_from_string(model)
    nodes = found.graph.node
    for names in [*(node.input for node in nodes), *(node.output for node in nodes)]:
        names[:] = ["whole" if name == output else name for name in names]
    constants = {"nothing": np.float32(0), "start": np.array([0]), "axis": np.array([axis])}
    constants["length"] = np.array([length])
    found.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes.extend(
        [
            helper.make_node("ReduceMax", ["image"], ["brightest"], keepdims=0),
            helper.make_node("Mul", ["brightest", "nothing"], ["zero_of_image"]),
            helper.make_node("Cast", ["zero_of_image"], ["none"], to=onnx.TensorProto.INT64),
            helper.make_node("Add", ["none", "length"], ["end"]),
            helper.make_node("Slice", ["whole", "start", "end", "axis"], [output]),
        ]
    )
    (value,) = (value for value in found.graph.output if value.name == output)
    value.type.tensor_type.shape.dim[axis].dim_param = "open"
    return bytes(found.SerializeToString())


def test_no_more_classes_than_the_network_has(tmp_path):
    manifest = replace(tiny_manifest(classes=3), labels=None)
    model = cut(tiny_explainer(Network.random(classes=3), manifest), "logits", 1, 3)
    (tmp_path / "m.onnx").write_bytes(model)
    result = run("bench", tmp_path / "m.onnx", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["latencies"])[2] == "explanation of 3 classes"


def test_outputs_that_are_not_what_the_manifest_says(tmp_path):
    (tmp_path / "m.onnx").write_bytes(cut(tiny_explainer(), "gradients", 2, 2))
    result = run("bench", tmp_path / "m.onnx", *QUICK)
    assert_one_line_error(result, 1, "the model's 'gradients' came out as (1, 1, 2, 6, 8)")


def test_text(tmp_path):
    result = run("bench", write_explainer(tmp_path / "m.onnx"), *QUICK)
    assert result.exit_code == 0, result.output
    assert "x PREDICTION" in result.stdout
    assert "FROM PICTURE TO OVERLAY" in result.stdout
    assert "peak memory" in result.stdout
    assert result.stderr == ""


def test_several_layers(tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_explainer(manifest=two_layers(tiny_manifest())))
    result = run("bench", tmp_path / "m.onnx", *QUICK)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.onnx"], 1, "no model file missing.onnx"),
        (["m.onnx", "missing.jpg"], 1, "no file missing.jpg"),
        (["m.onnx", "m.onnx"], 1, "m.onnx is damaged, or is not a picture"),
        (["m.onnx", "--size", "64"], 1, "export it again with --dynamic-size"),
        (["m.onnx", "--rounds", "0"], 2, "--rounds"),
    ],
)
def test_one_line_errors(arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch):
    write_explainer(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run("bench", *arguments), code, words)
