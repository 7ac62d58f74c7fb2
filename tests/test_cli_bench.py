"""`onnxplain bench`: what it prints; how long things take is for nobody to test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli_helpers import assert_one_line_error, run, write_explainer, write_picture
from onnxplain.bench import Latency, Ratio, alternate

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
    assert found["machine"]["onnxruntime"]


def test_text(tmp_path):
    result = run("bench", write_explainer(tmp_path / "m.onnx"), *QUICK)
    assert result.exit_code == 0, result.output
    assert "x PREDICTION" in result.stdout
    assert "FROM FILE TO OVERLAY" in result.stdout
    assert "peak memory" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.onnx"], 1, "no model file missing.onnx"),
        (["m.onnx", "missing.jpg"], 1, "no file missing.jpg"),
        (["m.onnx", "m.onnx"], 1, "is damaged, or is not a picture"),
        (["m.onnx", "--size", "64"], 1, "export it again with --dynamic-size"),
        (["m.onnx", "--rounds", "0"], 2, "--rounds"),
    ],
)
def test_one_line_errors(arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch):
    write_explainer(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run("bench", *arguments), code, words)
