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


def write_operator(case: Case, path: Path) -> tuple[Arrays, Arrays]:
    """Do the same for the operator alone, with no gradient around it."""
    built = build(case)
    ir.save(built.model, path)
    return built.feeds, in_onnxruntime(built.model, built.feeds)


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


@pytest.mark.slow
@pytest.mark.parametrize("rows", [COTANGENTS, 0])
@pytest.mark.parametrize("case", SUPPORTED, ids=str)
def test_rules_in_openvino(case: Case, rows: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("openvino")
    if str(case) == OPENVINO_FAILS:
        request.applymarker(pytest.mark.xfail(reason="a bug of OpenVINO's", strict=True))
    feeds, expected = write_operator(case, tmp_path / "operator.onnx")
    try:
        assert_equal(in_openvino(tmp_path / "operator.onnx", [feeds])[0], expected)
    except Exception:  # whatever it raises where it lacks the operator
        pytest.skip("OpenVINO doesn't compute the operator itself")
    check_rule_in_openvino(case, rows, tmp_path)


def problems_in_node(
    package: str, paths: list[Path], written: list[tuple[Arrays, Arrays]]
) -> dict[Path, str]:
    """Run models in one process of Node; return what is wrong, by file."""
    jobs = [(path, [feeds]) for path, (feeds, _) in zip(paths, written, strict=True)]
    problems = {}
    for path, (_, expected), found in zip(paths, written, many_in_node(package, jobs), strict=True):
        try:
            assert not isinstance(found, str), found
            assert_equal(found[0], expected)
        except AssertionError as error:
            problems[path] = str(error)
    return problems


@pytest.mark.slow
@pytest.mark.usefixtures("npm_packages")
@pytest.mark.parametrize("rows", [COTANGENTS, 0])
@pytest.mark.parametrize("package", PACKAGES)
def test_rules_in_node(package: str, rows: int, tmp_path: Path) -> None:
    """But for the few operators that fail by themselves: onnxruntime-web infers some shapes wrongly."""
    paths = {case: tmp_path / f"{number}.onnx" for number, case in enumerate(map(str, SUPPORTED))}
    operators = [write_operator(case, paths[str(case)]) for case in SUPPORTED]
    lacking = problems_in_node(package, list(paths.values()), operators)
    cases = [case for case in SUPPORTED if paths[str(case)] not in lacking]
    assert len(lacking) <= 20
    rules = [write_rule(case, rows, paths[str(case)]) for case in cases]
    assert problems_in_node(package, [paths[str(case)] for case in cases], rules) == {}
