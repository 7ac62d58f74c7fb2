"""Methods that compare classes, smoothing, and a scale that is common to several classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from onnxplain import Explainer, MethodError, Preprocessing
from onnxplain.heatmap import heatmap
from onnxplain.preprocessing import preprocess
from onnxplain_export import export

SIZE = (24, 32)
PICTURE = np.random.default_rng(1).integers(0, 256, (40, 52, 3), np.uint8)
# Inputs of both signs, so that no class's map is blank.
PREPROCESSING = Preprocessing(
    height=SIZE[0], width=SIZE[1], mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def network(classes: int = 6) -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU())
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, classes)))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def path(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("options") / "model.onnx"
    export(model, torch.zeros(1, 3, *SIZE), path, layer=["1", "3"], preprocessing=PREPROCESSING)
    return path


@pytest.fixture(scope="module")
def explainer(path: Path) -> Explainer:
    return Explainer(path)


def tensor_of(explainer: Explainer) -> torch.Tensor:
    return torch.from_numpy(preprocess(PICTURE, explainer.manifest.input)[0])[None]


class Difference:
    """A target of the grad-cam package: a class's logit less the mean of some others'."""

    def __init__(self, index: int, rivals: NDArray[np.int64]) -> None:
        self.index, self.rivals = index, rivals.tolist()

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.index] - logits[self.rivals].mean()


class BeforeUpsampling(GradCAM):
    def get_target_width_height(self, input_tensor: object) -> None:
        return None


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_finercam_is_grad_cam_of_the_difference(rank: int, model: nn.Module, explainer: Explainer) -> None:
    """Against the three most likely other classes, whichever class is asked about."""
    tensor = tensor_of(explainer)
    with torch.no_grad():
        ranking = model(tensor)[0].argsort(descending=True).numpy()
    index = int(ranking[rank - 1])
    found = explainer.explain(PICTURE, -rank, "finercam", "3")
    assert found.index == index
    rivals = np.array([other for other in ranking if other != index][:3])
    with BeforeUpsampling(model, [model[3]]) as theirs:
        expected = theirs(tensor, [Difference(index, rivals)])[0]
    assert expected.max() > 0.9
    np.testing.assert_allclose(heatmap([found.cam], found.cam.shape), expected, rtol=0, atol=1e-4)


def test_finercam_with_few_classes(tmp_path: Path) -> None:
    """Two classes have one rival each, and one class has none: that is Grad-CAM."""
    for classes in (2, 1):
        path = tmp_path / f"{classes}.onnx"
        export(network(classes), torch.zeros(1, 3, *SIZE), path, layer="3")
        explainer = Explainer(path)
        found = explainer.explain(PICTURE, 0, "finercam").cam
        if classes == 1:
            np.testing.assert_array_equal(found, explainer.explain(PICTURE, 0).cam)
        else:
            signed = [explainer.explain(PICTURE, index, "gradcam_signed").cam for index in (0, 1)]
            np.testing.assert_allclose(found, np.maximum(signed[0] - signed[1], 0), rtol=0, atol=1e-6)


def test_finercam_of_a_batch(explainer: Explainer) -> None:
    pictures = [PICTURE, PICTURE[::-1], PICTURE[:, ::-1]]
    for batched, picture, target in zip(
        explainer.explain_batch(pictures, [0, -1, 4], "finercam"), pictures, [0, -1, 4], strict=True
    ):
        alone = explainer.explain(picture, target, "finercam")
        assert batched.index == alone.index
        for mine, its in zip(batched.cams, alone.cams, strict=True):
            np.testing.assert_allclose(mine, its, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", ["3", None])
def test_augmentation_smoothing_is_that_of_the_grad_cam_package(
    layer: str | None, model: nn.Module, explainer: Explainer
) -> None:
    """But for the last step: our heatmap ends at 1."""
    index = 4
    found = explainer.explain(PICTURE, index, layer=layer, aug_smooth=True)
    assert len(found.augmented) == 5
    layers = [model[3]] if layer else [model[1], model[3]]
    with GradCAM(model, layers) as theirs:
        expected = theirs(tensor_of(explainer), [ClassifierOutputTarget(index)], aug_smooth=True)[0]
    ours = found._heat(SIZE, None)  # as if the network's input were the picture
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    # They add 1e-7 to what they divide by, and these maps reach 3e-4.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)
    plain = explainer.explain(PICTURE, index, layer=layer)
    assert np.abs(plain.heatmap - found.heatmap).max() > 0.1
    assert found.heatmap.max() == 1
    assert found.boxes()


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_eigen_smoothing_is_that_of_the_grad_cam_package(
    method: str, model: nn.Module, explainer: Explainer
) -> None:
    """Up to the sign, which theirs leaves to chance."""
    found = explainer.explain(PICTURE, 4, method, "3", eigen_smooth=True).cam
    with {"gradcam": GradCAM, "layercam": LayerCAM}[method](model, [model[3]]) as theirs:
        theirs.get_target_width_height = lambda _: None
        expected = theirs(tensor_of(explainer), [ClassifierOutputTarget(4)], eigen_smooth=True)[0]
    plain = explainer.explain(PICTURE, 4, method, "3").cam
    assert (plain * found).sum() > 0
    difference = np.abs(heatmap([found], found.shape) - expected).max()
    if difference > 1e-3:  # the other sign
        signed = explainer.explain(PICTURE, 4, "gradcam_signed", "3", eigen_smooth=True).cam
        assert method == "gradcam"
        difference = np.abs(heatmap([-signed], found.shape) - expected).max()
    assert difference < 1e-3


def test_a_common_scale(explainer: Explainer) -> None:
    """The hottest class's heatmap reaches 1, and the others are as hot as their maps say."""
    found = explainer.explain_classes(PICTURE, top=6, layer="3", common_scale=True)
    peaks = [one.cam.max() for one in found]
    assert min(peaks) < 0.9 * max(peaks)
    own = explainer.explain_classes(PICTURE, top=6, layer="3")
    for one, alone, peak in zip(found, own, peaks, strict=True):
        np.testing.assert_array_equal(one.cam, alone.cam)
        expected = heatmap([one.cam / max(peaks)], PICTURE.shape[:2], one.view, peaks=[1.0])
        np.testing.assert_allclose(one.heatmap, expected, rtol=0, atol=1e-6)
        # A cell's own heat is met at its centre or near it.
        assert one.heatmap.max() == pytest.approx(peak / max(peaks), rel=0.1)
        assert one.heatmap.min() >= 0
        assert one.boxes()


def test_a_common_scale_of_several_layers(explainer: Explainer) -> None:
    """Each layer has its own; their mean is at most 1."""
    found = explainer.explain_classes(PICTURE, top=6, common_scale=True)
    heats = np.array([one.heatmap for one in found])
    assert 0.5 < heats.max() <= 1
    for one in found:
        halves = [
            heatmap([cam], PICTURE.shape[:2], one.view, peaks=[peak])
            for cam, peak in zip(one.cams, one.peaks or (), strict=True)
        ]
        np.testing.assert_allclose(one.heatmap, sum(halves) / 2, rtol=0, atol=1e-6)


def test_no_evidence_for_any_class_is_a_blank_heatmap(path: Path, explainer: Explainer) -> None:
    cams = (np.full((3, 4), -1, np.float32),)
    assert not heatmap(cams, SIZE, peaks=[0.0]).any()


def test_options_that_do_not_go_together(model: nn.Module, explainer: Explainer, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="eigencam is a principal component already"):
        explainer.explain(PICTURE, method="eigencam", eigen_smooth=True)
    path = tmp_path / "pixels.onnx"
    export(model, torch.zeros(1, 3, *SIZE), path, layer="3", pixels=True)
    with pytest.raises(MethodError, match="without --pixels"):
        Explainer(path).explain(PICTURE, aug_smooth=True)


@pytest.mark.parametrize("method", ["eigencam", "finercam"])
def test_methods_that_a_graph_can_not_compute(method: str, model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=f"{method} can't be computed in the file; choose one of cam, "):
        export(model, torch.zeros(1, 3, *SIZE), tmp_path / "model.onnx", layer="3", heatmap=method)
