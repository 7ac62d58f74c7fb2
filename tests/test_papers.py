"""The papers' identities, on the networks that ship with the package and the weights they were trained to."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load

from onnxplain import Explainer, MethodError
from onnxplain.images import decode_image
from onnxplain.preprocessing import preprocess
from onnxplain_models import explainer_file, samples, weights_file

CLASSES = range(10)


@pytest.fixture(scope="module")
def pictures():
    return [decode_image(sample.picture.read_bytes(), sample.name) for sample in samples()]


def explain(name, pictures, method):
    explainer = Explainer(explainer_file(name).read_bytes())
    return [one for picture in pictures for one in explainer.explain_classes(picture, CLASSES, method=method)]


def head(name):
    """Return the weight [10, channels] and bias [10] of the layer after the average; `nin` has none."""
    if name == "nin":
        return np.eye(10, dtype=np.float32), np.zeros(10, np.float32)
    tensors = load(weights_file(name).read_bytes())
    weight = next(tensor for tensor in tensors.values() if tensor.ndim == 2)
    bias = next(tensor for key, tensor in tensors.items() if key.endswith("bias") and tensor.shape == (10,))
    return weight, bias


def rounding(one):
    """Return by how much float32 may change a map, and the logit that is its mean."""
    return 1e-5 * float(np.abs(one.cam).max())


@pytest.mark.parametrize("name", ["vgg_cam", "nin"])
def test_the_mean_of_cam_and_the_bias_make_the_logit(name, pictures):
    _, bias = head(name)
    explanations = explain(name, pictures, "cam")
    assert len(explanations) >= 30
    for one in explanations:
        assert one.cam.mean(dtype=np.float64) + bias[one.index] == pytest.approx(
            one.logit, rel=0, abs=rounding(one)
        )


@pytest.mark.parametrize("name", ["vgg_cam", "nin"])
def test_cam_is_the_weighted_sum_of_the_activations(name, pictures):
    """The papers' own definition, from the trained weights instead of the gradients."""
    weight, _ = head(name)
    model = explainer_file(name).read_bytes()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    spec = Explainer(model).manifest.input
    for picture in pictures[:3]:
        feeds = {"image": preprocess(picture, spec)[0][None], "class_index": np.zeros((1, 0), np.int64)}
        (activations,) = session.run(["activations"], feeds)
        expected = np.einsum("ck,kyx->cyx", weight, activations[0])
        for one in explain(name, [picture], "cam"):
            np.testing.assert_allclose(one.cam, expected[one.index], rtol=0, atol=rounding(one))


@pytest.mark.parametrize("name", ["vgg_cam", "nin"])
def test_cam_is_grad_cam_before_its_relu_times_the_area(name, pictures):
    for c, g in zip(explain(name, pictures, "cam"), explain(name, pictures, "gradcam"), strict=True):
        np.testing.assert_allclose(np.maximum(c.cam, 0), g.cam * c.cam.size, rtol=0, atol=rounding(c))


def test_cam_cannot_explain_an_mlp(pictures):
    with pytest.raises(MethodError, match=r"cam needs global average pooling.*'features'.*use gradcam"):
        explain("vgg_mlp", pictures[:1], "cam")
    assert len(explain("vgg_mlp", pictures[:1], "gradcam")) == 10
