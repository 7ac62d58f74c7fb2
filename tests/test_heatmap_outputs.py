"""Maps and heatmaps that the file itself puts out: equal to the runtime's, for each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

from onnxplain import Explainer
from onnxplain.cli import main
from onnxplain.cli._methods import IN_THE_GRAPH, METHOD_NAMES, ONE_RUN
from onnxplain.errors import MethodError, ModelError, VerificationError
from onnxplain.heatmap import heatmap
from onnxplain.image_methods import IMAGE_METHODS
from onnxplain.manifest import Manifest
from onnxplain.maps import METHODS
from onnxplain_export import export, verify
from onnxplain_export.maps import METHODS as EMITTED
from test_tokens import VisionTransformer
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


def test_every_method_is_emitted_and_on_the_command_line() -> None:
    assert list(METHOD_NAMES) == [*METHODS, *IMAGE_METHODS]
    assert list(ONE_RUN) == list(METHODS)
    assert list(IN_THE_GRAPH) == list(EMITTED)
    assert set(METHODS) - set(EMITTED) == {"eigencam", "eigengradcam", "finercam"}


@pytest.mark.parametrize("any_size", [False, True], ids=["one size", "any size"])
@pytest.mark.parametrize("method", EMITTED)
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


@pytest.mark.parametrize("size", [(20, 28), (34, 22)], ids=["one size", "any size"])
def test_several_layers_have_maps_of_their_own(size: tuple[int, int], tmp_path: Path) -> None:
    """And one heatmap, the mean of theirs."""
    path, layers = tmp_path / "model.onnx", ["first", "last"]
    any_size = size != EXAMPLE.shape[2:]
    export(network(nn.Linear(8, 5)), EXAMPLE, path, layer=layers, heatmap="layercam", dynamic_size=any_size)
    found = outputs_of(path, size, CLASSES)
    maps = [
        METHODS["layercam"].maps(found[f"activations.{layer}"], found[f"gradients.{layer}"])
        for layer in ("first", "last")
    ]
    for layer, own in zip(("first", "last"), maps, strict=True):
        np.testing.assert_allclose(found[f"cam.{layer}"], own, rtol=0, atol=1e-6)
    for place in np.ndindex(CLASSES.shape):
        expected = heatmap([own[place] for own in maps], size)
        np.testing.assert_allclose(found["heatmap"][place], expected, rtol=0, atol=1e-5)


class Watched:
    """A session that notes which outputs are fetched."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.fetched: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, names: list[str], *arguments: Any) -> Any:
        self.fetched = names
        return self.session.run(names, *arguments)


@pytest.mark.parametrize("size", [None, (34, 22)], ids=["its own size", "another size"])
@pytest.mark.parametrize("layer", [None, "last"])
def test_the_runtime_takes_the_files_maps(
    layer: str | None, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    """Activations and gradients then stay where the network runs; another method needs them."""
    plain, path, layers = tmp_path / "plain.onnx", tmp_path / "model.onnx", ["first", "last"]
    model = network(nn.Linear(8, 5))
    export(model, EXAMPLE, plain, layer=layers, dynamic_size=True)
    export(model, EXAMPLE, path, layer=layers, dynamic_size=True, heatmap="layercam")
    session = Watched(path)
    explainer, expected = Explainer(session=session, size=size), Explainer(plain, size=size)  # type: ignore[arg-type]
    picture = np.random.default_rng(2).integers(0, 256, (31, 40, 3), np.uint8)
    for method, outputs in (("layercam", {"cam"}), ("gradcam", {"activations", "gradients"})):
        found = explainer.explain(picture, 2, method, layer)
        assert {name.partition(".")[0] for name in session.fetched} == {"logits", "explained_class", *outputs}
        other = expected.explain(picture, 2, method, layer)
        np.testing.assert_allclose(found.heatmap, other.heatmap, rtol=0, atol=1e-5)
        for mine, its in zip(found.cams, other.cams, strict=True):
            np.testing.assert_allclose(mine, its, rtol=0, atol=1e-6)
            assert mine.any()


def test_a_file_without_the_maps_that_its_manifest_promises(tmp_path: Path) -> None:
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    export(network(nn.Linear(8, 5)), EXAMPLE, path, layer="last", heatmap="layercam")
    proto = onnx.load(path)
    (cam,) = (output for output in proto.graph.output if output.name == "cam")
    proto.graph.output.remove(cam)
    onnx.save(proto, other)
    with pytest.raises(ModelError, match="lacks the output 'cam'"):
        Explainer(other)


def test_tokens(tmp_path: Path) -> None:
    """Their maps are those of the grid."""
    torch.manual_seed(5)
    path = tmp_path / "model.onnx"
    export(VisionTransformer(1, "token"), torch.zeros(1, 3, 24, 32), path, heatmap="layercam")
    found = outputs_of(path, (24, 32), CLASSES)
    maps = METHODS["layercam"].maps(found["activations"], found["gradients"])
    assert maps.shape == (2, 3, 3, 4)
    np.testing.assert_allclose(found["cam"], maps, rtol=0, atol=1e-6)
    for place in np.ndindex(CLASSES.shape):
        np.testing.assert_allclose(found["heatmap"][place], heatmap([maps[place]], (24, 32)), atol=1e-4)


class NormalisedPlaces(nn.Module):
    """As Swin's head: each place is normalised, so that there activations times gradients add up to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.norm, self.head = nn.Conv2d(3, 256, 3), nn.LayerNorm(256), nn.Linear(256, 5)
        nn.init.zeros_(self.maps.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.maps(image * 30).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.mark.parametrize("method", ["hirescam", "gradcam++"])
def test_maps_that_are_rounding_alone(method: str, tmp_path: Path) -> None:
    """And maps that divide by what is nearly 0: both are the methods' own, and no fault of the file."""
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    report = export(NormalisedPlaces(), EXAMPLE, path, layer="maps", heatmap=method)
    assert report.manifest.heatmap == method


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


def changed(path: Path, name: str, operator: str) -> Path:
    """Return a copy of a file whose output of that name passes an operator first."""
    proto = onnx.load(path)
    for node in proto.graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = "before"
    proto.graph.node.append(onnx.helper.make_node(operator, ["before"], [name]))
    copy = path.with_name("changed.onnx")
    onnx.save(proto, copy)
    return copy


@pytest.mark.parametrize(("name", "operator"), [("cam", "Neg"), ("heatmap", "Sqrt")])
def test_verification_sees_another_map(name: str, operator: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(network(nn.Linear(8, 5)), EXAMPLE, path, layer="last", heatmap="gradcam")
    with pytest.raises(VerificationError, match=f"the nodes of {name} don't compute the runtime's"):
        verify(changed(path, name, operator))


def test_manifests_that_say_something_else(tmp_path: Path) -> None:
    path, copy, said = tmp_path / "model.onnx", tmp_path / "copy.onnx", '"heatmap": "gradcam"'
    export(network(nn.Linear(8, 5)), EXAMPLE, path, layer="last", heatmap="gradcam")
    with pytest.raises(VerificationError, match="the nodes of cam don't compute the runtime's"):
        verify(with_metadata(path, copy, said, '"heatmap": "layercam"'))
    with pytest.raises(MethodError, match="unknown method 'newcam'"):
        verify(with_metadata(path, copy, said, '"heatmap": "newcam"'))
    with pytest.raises(ModelError, match="doesn't have the heatmaps that its manifest says"):
        verify(with_metadata(path, copy, said, '"heatmap": null'))


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
