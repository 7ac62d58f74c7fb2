"""Maps and heatmaps that the file itself puts out: equal to the runtime's, for each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

from onnxplain.cli import main
from onnxplain.errors import MethodError, VerificationError
from onnxplain.heatmap import heatmap
from onnxplain.manifest import Manifest
from onnxplain.maps import METHODS
from onnxplain_export import export, verify
from onnxplain_export.maps import METHODS as EMITTED
from test_verification import with_metadata

EXAMPLE = torch.zeros(1, 3, 20, 28)
CLASSES = np.array([[-1, 2, 0], [4, -2, 1]])


def network(head: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential()
    model.first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    model.last = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU())
    model.pool, model.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model.head = head
    return model


def outputs_of(path: Path, size: tuple[int, int], classes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(8).standard_normal((2, 3, *size)).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image, "class_index": classes}), strict=True))


def test_every_method_is_emitted() -> None:
    assert list(EMITTED) == list(METHODS)


@pytest.mark.parametrize("any_size", [False, True], ids=["one size", "any size"])
@pytest.mark.parametrize("method", METHODS)
def test_equal_to_the_runtime(method: str, any_size: bool, tmp_path: Path) -> None:
    """At a size that the export hasn't seen, where the file takes any."""
    path, size = tmp_path / "model.onnx", (34, 22) if any_size else (20, 28)
    report = export(
        network(nn.Linear(8, 5)), EXAMPLE, path, layer="last", heatmap=method, dynamic_size=any_size
    )
    assert report.manifest.heatmap == method
    found = outputs_of(path, size, CLASSES)
    maps = METHODS[method].maps(found["activations"], found["gradients"])
    np.testing.assert_allclose(found["cam"], maps, rtol=0, atol=1e-5 * np.abs(maps).max())
    expected = [[heatmap([map_], size) for map_ in row] for row in maps]
    np.testing.assert_allclose(found["heatmap"], expected, rtol=0, atol=1e-5)
    assert found["heatmap"].max() == 1
    assert found["heatmap"].shape == (2, 3, *size)
    assert outputs_of(path, size, CLASSES[:, :0])["heatmap"].shape == (2, 0, *size)
    assert verify(path).rules < 1e-6


def test_several_layers_have_maps_of_their_own(tmp_path: Path) -> None:
    """And one heatmap, the mean of theirs."""
    path = tmp_path / "model.onnx"
    export(network(nn.Linear(8, 5)), EXAMPLE, path, layer=["first", "last"], heatmap="layercam")
    found = outputs_of(path, (20, 28), CLASSES)
    maps = [
        METHODS["layercam"].maps(found[f"activations.{layer}"], found[f"gradients.{layer}"])
        for layer in ("first", "last")
    ]
    for layer, own in zip(("first", "last"), maps, strict=True):
        np.testing.assert_allclose(found[f"cam.{layer}"], own, rtol=0, atol=1e-6)
    for place in np.ndindex(CLASSES.shape):
        expected = heatmap([own[place] for own in maps], (20, 28))
        np.testing.assert_allclose(found["heatmap"][place], expected, rtol=0, atol=1e-5)


def test_a_class_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(network(nn.Linear(8, 5)), EXAMPLE, path, layer="last", heatmap="gradcam")
    found = outputs_of(path, (20, 28), np.array([[0, 5], [-6, 1]]))
    for name in ("cam", "heatmap"):
        nowhere = np.isnan(found[name]).reshape(2, 2, -1)
        assert nowhere.all(axis=2).tolist() == nowhere.any(axis=2).tolist() == [[False, True], [True, False]]


def test_a_constant_map_is_black(tmp_path: Path) -> None:
    """Where everything speaks against a class, Grad-CAM's ReLU leaves nothing."""
    head = nn.Linear(8, 5)
    nn.init.constant_(head.weight[3], -1.0)
    path = tmp_path / "model.onnx"
    export(network(head), EXAMPLE, path, layer="last", heatmap="gradcam")
    found = outputs_of(path, (20, 28), np.array([[3], [3]]))
    assert not found["cam"].any()
    assert not found["heatmap"].any()


def test_methods_that_can_not_be(tmp_path: Path) -> None:
    model = network(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5)))
    with pytest.raises(MethodError, match="cam needs global average pooling"):
        export(model, EXAMPLE, tmp_path / "model.onnx", layer="last", heatmap="cam")
    with pytest.raises(MethodError, match="unknown method 'camera'; there are cam, gradcam"):
        export(model, EXAMPLE, tmp_path / "model.onnx", layer="last", heatmap="camera")
    assert list(tmp_path.iterdir()) == []


def test_verification_sees_another_map(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(network(nn.Linear(8, 5)), EXAMPLE, path, layer="last", heatmap="gradcam")
    changed = with_metadata(path, tmp_path / "changed.onnx", '"heatmap": "gradcam"', '"heatmap": "layercam"')
    with pytest.raises(VerificationError, match="the file's cam isn't the runtime's"):
        verify(changed)


def test_files_without_have_no_such_key(tmp_path: Path) -> None:
    """Their bytes stay what they were."""
    report = export(network(nn.Linear(8, 5)), EXAMPLE, tmp_path / "model.onnx", layer="last")
    assert '"heatmap"' not in report.manifest.to_json()
    assert Manifest.from_json(report.manifest.to_json()).heatmap is None


FACTORY = """
from torch import nn

def build():
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_network.py").write_text(FACTORY)
    path = str(tmp_path / "model.onnx")
    arguments = ["export", "small_network:build", "-o", path, "--size", "32", "--heatmap", "gradcam++"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(main, ["inspect", path]).output
    assert "gradcam++" in shown
    assert "[batch, classes, 32, 32]" in shown
