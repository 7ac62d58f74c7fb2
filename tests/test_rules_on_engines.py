"""Every gradient rule on other engines than onnxruntime in Python, with classes and without."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from graphs import differentiated, in_onnxruntime
from onnxplain_export.reference_graph import Arrays
from other_engines import PACKAGES, assert_equal
from rule_cases.case import Case
from test_rules import COTANGENTS, SUPPORTED, build, classes_of

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from engine_runs import in_openvino, many_in_node

#: What OpenVINO 2026.4 gets wrong: with dynamic sizes and its indices asked for, this MaxPool isn't padded.
OPENVINO_FAILS = "MaxPool: SAME_UPPER, dynamic size"
SQUARE = [case for case in SUPPORTED if "square" in case.note]


def write_rule(case: Case, rows: int, path: Path) -> tuple[Arrays, Arrays]:
    """Write the graph of a rule's case; return feeds, and what onnxruntime makes of them."""
    built = build(case)
    feeds = {**built.feeds, "classes": classes_of(built, rows)}
    model = differentiated(built.model, *built.targets)
    ir.save(model, path)
    return feeds, in_onnxruntime(model, feeds)


def check_rule_in_openvino(case: Case, rows: int, folder: Path) -> None:
    feeds, expected = write_rule(case, rows, folder / "rule.onnx")
    (found,) = in_openvino(folder / "rule.onnx", [feeds])
    assert_equal(found, expected)


@pytest.mark.parametrize("rows", [COTANGENTS, 0])
@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_square_weights_in_openvino(case: Case, rows: int, tmp_path: Path) -> None:
    """It takes a square constant for its transpose where one graph has both."""
    pytest.importorskip("openvino")
    check_rule_in_openvino(case, rows, tmp_path)


def skip_what_openvino_lacks(case: Case, folder: Path) -> None:
    """Skip an operator that it doesn't compute as onnxruntime does, with no gradient around."""
    built, path = build(case), folder / "plain.onnx"
    ir.save(built.model, path)
    try:
        (found,) = in_openvino(path, [built.feeds])
        assert_equal(found, in_onnxruntime(built.model, built.feeds))
    except Exception:  # whatever it raises
        pytest.skip("OpenVINO doesn't compute the operator itself")


@pytest.mark.slow
@pytest.mark.parametrize("rows", [COTANGENTS, 0])
@pytest.mark.parametrize("case", SUPPORTED, ids=str)
def test_rules_in_openvino(case: Case, rows: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("openvino")
    if str(case) == OPENVINO_FAILS:
        request.applymarker(pytest.mark.xfail(reason="a bug of OpenVINO's", strict=True))
    skip_what_openvino_lacks(case, tmp_path)
    check_rule_in_openvino(case, rows, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("npm_packages")
@pytest.mark.parametrize("rows", [COTANGENTS, 0])
@pytest.mark.parametrize("package", PACKAGES)
def test_rules_in_node(package: str, rows: int, tmp_path: Path) -> None:
    """All in one process of Node."""
    paths = [tmp_path / f"{number}.onnx" for number in range(len(SUPPORTED))]
    written = [write_rule(case, rows, path) for case, path in zip(SUPPORTED, paths, strict=True)]
    jobs = [(path, [feeds]) for path, (feeds, _) in zip(paths, written, strict=True)]
    problems = {}
    for case, (_, expected), found in zip(SUPPORTED, written, many_in_node(package, jobs), strict=True):
        try:
            assert not isinstance(found, str), found
            assert_equal(found[0], expected)
        except AssertionError as error:
            problems[str(case)] = str(error)
    assert problems == {}
