"""The check by randomised parameters: maps change with what the network has learned, or don't."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from cli_helpers import assert_one_line_error, run, write_picture
from onnxplain import Explainer, SourceError
from onnxplain_export import export
from onnxplain_export.sanity import check_sanity, correlation, ranks

NETWORK = """
import torch
from torch import nn

def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(10 * 14 * 14, 6)
    ).eval()
"""


def make_network() -> nn.Module:
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    network: nn.Module = made["network"]()
    return network


@pytest.fixture(scope="module")
def explainer_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sanity") / "m.onnx"
    export(make_network(), torch.zeros(1, 3, 64, 64), path, layer="4")
    return path.read_bytes()


@pytest.fixture
def network(explainer_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network, and in the current folder its explainer m.onnx, its source and two pictures."""
    monkeypatch.chdir(tmp_path)
    Path("source_of_sanity.py").write_text(NETWORK)
    Path("m.onnx").write_bytes(explainer_file)
    for number in range(2):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    return make_network()


def test_ranks_by_hand():
    assert ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]


def test_correlation_of_ranks_is_spearmans():
    a, b = np.random.default_rng(0).integers(0, 9, (2, 50)).astype(float)
    assert correlation(ranks(a), ranks(b)) == pytest.approx(spearmanr(a, b).statistic)
    assert correlation(a, np.zeros(50)) == 0
    assert correlation(a, -a) == pytest.approx(-1)


def test_maps_change_with_the_layers_that_they_use(network):
    """Eigen-CAM sees activations alone: the last layer's weights are nothing to it."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pictures = sorted(Path("photos").iterdir())
    steps: list[str] = []
    found = check_sanity(
        Explainer("m.onnx"), network, pictures, ["gradcam", "eigencam"], progress=steps.append
    )
    assert [(one.method, one.layers, one.of) for one in found] == [
        (method, count, 4) for count in (1, 2, 4) for method in ("gradcam", "eigencam")
    ]
    by_stage = {(one.method, one.layers): one for one in found}
    assert by_stage["eigencam", 1].ranks == pytest.approx(1, abs=1e-6)
    assert by_stage["eigencam", 1].values == pytest.approx(1, abs=1e-6)
    assert by_stage["gradcam", 1].ranks < 0.9
    assert by_stage["eigencam", 4].ranks < 0.9
    assert len(steps) == 3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_network_is_refused(network):
    with torch.no_grad():
        network[-1].weight *= 2
    with pytest.raises(SourceError, match="the source's logits aren't the explainer's"):
        check_sanity(Explainer("m.onnx"), network, [Path("photos/0.png")], ["gradcam"])


def test_command(network):
    torch.save(network.state_dict(), "weights.pth")
    source = ("--sanity", "source_of_sanity:network", "--checkpoint", "weights.pth")
    result = run(
        "evaluate", "m.onnx", "photos", "--method", "gradcam", "--method", "cam", "--metric", "drop", *source
    )
    assert_one_line_error(result, 1, "cam")  # the head isn't one
    result = run("evaluate", "m.onnx", "photos", "--method", "gradcam", "--metric", "drop", *source)
    assert result.exit_code == 0, result.output
    assert "BY LAYERS RANDOMISED\nMETHOD   1 OF 4  2 OF 4  4 OF 4" in result.stdout
    with Path("evaluation/sanity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["layers_randomised"], row["layers"]) for row in rows] == [
        ("gradcam", "1", "4"),
        ("gradcam", "2", "4"),
        ("gradcam", "4", "4"),
    ]
    assert all(-1 <= float(row[name]) <= 1 for row in rows for name in ("rank_correlation", "correlation"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--checkpoint", "w.pth"], 2, "--checkpoint goes with --sanity"),
        (["--sanity", "m.onnx"], 2, "an .onnx file's layers can't be randomised"),
        (["--sanity", "nothing"], 1, "'nothing' is no source"),
    ],
)
def test_one_line_errors(arguments, code, words, network):
    result = run("evaluate", "m.onnx", "photos", "--metric", "drop", *arguments)
    assert_one_line_error(result, code, words)
    assert not Path("evaluation").exists()
