"""Files on other engines than onnxruntime in Python: OpenVINO, and onnxruntime in Node and as WebAssembly.

Skipped where an engine isn't installed and, for npm's packages, can't be.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from graphs import Arrays, differentiated, in_onnxruntime
from onnxplain.web_page import ORT_WEB
from onnxplain_export import export
from rule_cases.case import Case
from test_heatmap_outputs import network
from test_pixels import SPECS, Passing, noise, write
from test_rules import COTANGENTS, SUPPORTED, build, classes_of
from test_tokens import ChannelsLast, VisionTransformer

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from engine_runs import Runner, in_node, in_openvino, many_in_node, node_modules, on_provider

ROOT = Path(__file__).resolve().parents[1]
NODE = json.loads((ROOT / "examples" / "node" / "package.json").read_text())["dependencies"]
PACKAGES = {"onnxruntime-node": f"onnxruntime-node@{NODE['onnxruntime-node']}", "onnxruntime-web": ORT_WEB}
ENGINES = ["OpenVINO", *PACKAGES]
#: Of five: ranks, classes, and two that don't exist.
CLASSES = np.array([[-1, 3, -2, 5], [0, -6, 4, -3]])
MISSING = np.array([[0, 0, 0, 1], [0, 1, 0, 0]], bool)

in_python = on_provider("CPUExecutionProvider")


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have npm's packages where NODE_PATH says: those that are there, or those that the project pins."""
    if node_modules(*PACKAGES):
        yield
        return
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node and its npm are not here")
    folder = tmp_path_factory.mktemp("npm")
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", "--fetch-retries=1"]
    command = ["npm", "install", "--prefix", str(folder), *options, *PACKAGES.values()]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"npm can't install the packages: {installed.stderr.splitlines()[:1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODE_PATH", str(folder / "node_modules"))
        yield


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Runner:
    if request.param == "OpenVINO":
        pytest.importorskip("openvino")
        return in_openvino
    request.getfixturevalue("npm_packages")
    return in_node(request.param)


def image(*size: int) -> NDArray[np.float32]:
    return np.random.default_rng(8).standard_normal((2, 3, *size)).astype(np.float32)


class SquareConvolutions(nn.Module):
    """As many channels behind as before each: with strides, without, in groups, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.strided, self.grouped = nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1, groups=2)
        self.transposed, self.point = nn.ConvTranspose2d(16, 16, 2, 2), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.stem(image)
        for layer in (self.strided, self.transposed, self.grouped, self.point):
            maps = torch.tanh(layer(maps))
        return self.head(maps.mean((2, 3)))


def square_head() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))


#: A network, and how it is exported.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "average pooling": (lambda: network(nn.Linear(8, 5)), {"layer": "last"}),
    "square linear layers": (lambda: network(square_head()), {"layer": "last"}),
    "two layers": (lambda: network(square_head()), {"layer": ["first", "last"]}),
    "no weights at the end": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), Mean()), {"layer": "0"}),
    "square convolutions": (SquareConvolutions, {"layer": "stem"}),
    "of any size": (SquareConvolutions, {"layer": "stem", "dynamic_size": True}),
    "class token": (lambda: VisionTransformer(1, "token"), {"layer": "blocks.0"}),
    "mean of the tokens": (lambda: VisionTransformer(2, "mean"), {"layer": "blocks.0"}),
    "channels last": (ChannelsLast, {"layer": "features"}),
}


class Mean(nn.Module):
    """Global average pooling, and nothing behind it."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3))


def assert_equal(found: Arrays, expected: Arrays, tolerance: float = 1e-5) -> None:
    """Compare an engine's outputs with onnxruntime's, over the largest; heatmaps as they are."""
    assert found.keys() >= expected.keys()  # OpenVINO has all names of one value
    for name, array in expected.items():
        scale = np.nanmax(np.abs(array), initial=0) if name != "heatmap" else 1.0
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_onnxruntimes(name: str, run: Runner, tmp_path: Path) -> None:
    """Ranks, classes that don't exist, several, one and none."""
    torch.manual_seed(3)
    build_network, options = NETWORKS[name]
    path = tmp_path / "model.onnx"
    export(build_network(), torch.zeros(1, 3, 24, 32), path, heatmap="gradcam", **options)
    size = (40, 24) if options.get("dynamic_size") else (24, 32)
    feeds = [{"image": image(*size), "class_index": CLASSES[:, :count]} for count in (4, 1, 0)]
    expected, found = in_python(path, feeds), run(path, feeds)
    for ours, theirs in zip(expected, found, strict=True):
        assert_equal(theirs, ours)
    everything, _, nothing = found
    np.testing.assert_array_equal(everything["explained_class"] == -1, MISSING)
    np.testing.assert_array_equal(np.isnan(everything["heatmap"]).all(axis=(2, 3)), MISSING)
    assert nothing["heatmap"].shape == (2, 0, *size)


@pytest.mark.parametrize("batch", [1, 3])
def test_classes_of_another_batch(batch: int, run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(network(nn.Linear(8, 5)), torch.zeros(1, 3, 24, 32), path, layer="last")
    with pytest.raises(Exception, match="Concat"):
        run(path, [{"image": image(24, 32), "class_index": np.zeros((batch, 2), np.int64)}])


#: The resizes that OpenVINO computes: it ignores `antialias`.
OPENVINO_SPECS = ("nearest", "nearest, padded")


@pytest.mark.parametrize("name", ["usual", "padded", "bicubic", *OPENVINO_SPECS])
def test_pictures(name: str, run: Runner, tmp_path: Path) -> None:
    """Larger and smaller than the network's input."""
    if run is in_openvino and name not in OPENVINO_SPECS:
        pytest.skip("OpenVINO ignores antialias")
    path = write(tmp_path / "model.onnx", SPECS[name], Passing(SPECS[name]))
    classes = np.array([[-1, 2, 4], [0, -5, -2]])
    for size in ((50, 75), (13, 17)):
        feeds = [{"image": noise(size, 2), "class_index": classes[:, :count]} for count in (3, 0)]
        for ours, theirs in zip(in_python(path, feeds), run(path, feeds), strict=True):
            assert_equal(theirs, ours)


#: What OpenVINO 2026.4 gets wrong: with dynamic sizes and its indices asked for, this MaxPool isn't padded.
OPENVINO_FAILS = "MaxPool: SAME_UPPER, dynamic size"
SQUARE = [case for case in SUPPORTED if "square" in case.note]
PRODUCTS = [case for case in SUPPORTED if case.operator in ("MatMul", "Gemm", "Einsum", "LRN")]


def write_rule(case: Case, rows: int, path: Path) -> tuple[Arrays, Arrays]:
    """Write the graph of a rule's case; return feeds, and what onnxruntime makes of them."""
    built = build(case)
    feeds = {**built.feeds, "classes": classes_of(built, rows)}
    model = differentiated(built.model, *built.targets)
    ir.save(model, path)
    return feeds, in_onnxruntime(model, feeds)


def check_rule_in_openvino(case: Case, rows: int, folder: Path) -> None:
    built, path = build(case), folder / "rule.onnx"
    ir.save(built.model, path)
    try:
        (plain,) = in_openvino(path, [built.feeds])
        assert_equal(plain, in_onnxruntime(built.model, built.feeds))
    except Exception:  # whatever it raises where it lacks the operator
        pytest.skip("OpenVINO doesn't compute the operator itself")
    feeds, expected = write_rule(case, rows, path)
    (found,) = in_openvino(path, [feeds])
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
    check_rule_in_openvino(case, rows, tmp_path)


def check_rules_in_node(package: str, cases: list[Case], rows: int, folder: Path) -> None:
    """All in one process of Node."""
    paths = [folder / f"{number}.onnx" for number in range(len(cases))]
    written = [write_rule(case, rows, path) for case, path in zip(cases, paths, strict=True)]
    jobs = [(path, [feeds]) for path, (feeds, _) in zip(paths, written, strict=True)]
    problems = {}
    for case, (_, expected), found in zip(cases, written, many_in_node(package, jobs), strict=True):
        try:
            assert not isinstance(found, str), found
            assert_equal(found[0], expected)
        except AssertionError as error:
            problems[str(case)] = str(error)
    assert problems == {}


@pytest.mark.usefixtures("npm_packages")
@pytest.mark.parametrize("package", PACKAGES)
def test_products_without_classes_in_node(package: str, tmp_path: Path) -> None:
    """onnxruntime before 1.32 fails to multiply one matrix by a stack of none."""
    check_rules_in_node(package, PRODUCTS, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("npm_packages")
@pytest.mark.parametrize("rows", [COTANGENTS, 0])
@pytest.mark.parametrize("package", PACKAGES)
def test_rules_in_node(package: str, rows: int, tmp_path: Path) -> None:
    check_rules_in_node(package, SUPPORTED, rows, tmp_path)
