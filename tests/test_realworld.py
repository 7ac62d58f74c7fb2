"""A trained MobileNetV2 on real photographs: our maps against the grad-cam package's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchvision.models import mobilenet_v2

from onnxplain import Explainer, TargetError
from onnxplain.heatmap import heatmap
from onnxplain.preprocessing import preprocess
from onnxplain_export import export

REALWORLD = Path(__file__).resolve().parents[2] / "shared" / "realworld"
PHOTOGRAPHS = sorted((REALWORLD / "images").glob("*.*"))
DOG, CAT = 243, 282

pytestmark = pytest.mark.skipif(not PHOTOGRAPHS, reason="the photographs of ../shared are not here")


@pytest.fixture(scope="module")
def network():
    network = mobilenet_v2()
    network.load_state_dict(torch.load(REALWORLD / "mobilenet_v2_imagenet.pth", weights_only=True))
    return network.eval()


@pytest.fixture(scope="module")
def explainer(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("realworld") / "mobilenet_v2.onnx"
    labels = json.loads((REALWORLD / "imagenet_labels.json").read_text())
    export(network, torch.randn(1, 3, 224, 224), path, labels=labels)
    return Explainer(path)


class BeforeUpsampling(GradCAM):
    """grad-cam, but for the last step: the maps keep the layer's size."""

    def get_target_width_height(self, input_tensor):
        return None


@pytest.mark.slow
def test_a_deep_layer_is_verified_by_the_files_own_decisions(network, tmp_path):
    """One unit of 23 ReLU6 lies within rounding of 0: asked for more outputs, onnxruntime puts it on."""
    report = export(network, torch.zeros(1, 3, 224, 224), tmp_path / "deep.onnx", layer="features.6")
    assert report.verification.gradients < 1e-5


def test_maps_are_those_of_the_grad_cam_package(network, explainer):
    ours = explainer.explain_batch(PHOTOGRAPHS, [-1 - number % 3 for number in range(len(PHOTOGRAPHS))])
    assert len(ours) == 41
    tensors = [preprocess(one.image, explainer.manifest.input)[0] for one in ours]
    with BeforeUpsampling(network, [network.features[-1]]) as theirs:
        expected = theirs(
            torch.from_numpy(np.stack(tensors)), [ClassifierOutputTarget(one.index) for one in ours]
        )
    assert expected.shape == (41, 7, 7)
    for explanation, map_ in zip(ours, expected, strict=True):
        assert np.abs(heatmap([explanation.cam], (7, 7)) - map_).max() < 1e-3
        assert map_.max() > 0.99


def test_heatmaps_are_those_of_the_grad_cam_package(network, explainer):
    """Theirs has the size of the network's input; ours, where the crop lay in the picture."""
    explanation = explainer.explain(REALWORLD / "images" / "dog_and_cat.png", DOG)
    tensor = torch.from_numpy(preprocess(explanation.image, explainer.manifest.input)[0])[None]
    with GradCAM(network, [network.features[-1]]) as theirs:
        expected = theirs(tensor, [ClassifierOutputTarget(DOG)])[0]
    ours = heatmap([explanation.cam], (224, 224))
    assert np.abs(ours - expected).max() < 1e-3
    # The picture is 224 x 224: resized to 256 and cropped again, the network saw its middle 196 x 196.
    assert not explanation.heatmap[:14].any()
    np.testing.assert_allclose(
        explanation.heatmap[14:210, 14:210], heatmap([explanation.cam], (196, 196)), atol=1e-5
    )


def test_most_predictions_are_right(explainer):
    """40 of the photographs have their class in their name."""
    named = [path for path in PHOTOGRAPHS if path.stem[:3].isdigit()]
    found = [explanation.index for explanation in explainer.explain_batch(named)]
    assert len(named) == 40
    assert sum(index == int(path.stem[:3]) for index, path in zip(found, named, strict=True)) >= 34


def test_the_dog_and_the_cat(explainer):
    """Each class lights up its own animal: the dog sits above, the cat lies below it to the right."""
    dog, cat = explainer.explain_classes(REALWORLD / "images" / "dog_and_cat.png", [DOG, "tiger cat"])
    assert (dog.label, cat.index) == ("bull mastiff", CAT)
    for explanation, (x0, y0, x1, y1) in ((dog, (75, 12, 172, 120)), (cat, (45, 122, 190, 216))):
        y, x = np.unravel_index(explanation.heatmap.argmax(), explanation.heatmap.shape)
        assert x0 <= x < x1
        assert y0 <= y < y1
        inside = explanation.heatmap[y0:y1, x0:x1].sum() / explanation.heatmap.sum()
        assert inside > 0.5, inside
    assert np.corrcoef(dog.heatmap.ravel(), cat.heatmap.ravel())[0, 1] < 0.5


def test_crane_is_ambiguous(explainer):
    with pytest.raises(TargetError, match="names 2 classes; give an index: 134, 517"):
        explainer.explain(PHOTOGRAPHS[0], "crane")
