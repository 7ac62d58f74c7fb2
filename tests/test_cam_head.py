"""with_cam_head: global average pooling and one linear layer on a user's own features."""

import pytest
import torch
from torch import nn

from onnxplain.errors import SourceError
from onnxplain_export import with_cam_head


def small_features(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()
    )


def test_logit_is_the_mean_of_the_class_activation_map_plus_the_bias():
    model = with_cam_head(small_features(), 7).eval()
    images = torch.randn(4, 3, 40, 32)
    maps = torch.einsum("bkhw,ck->bchw", model.features(images), model.classifier.weight)
    expected = maps.mean(dim=(2, 3)) + model.classifier.bias
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (4, 7)


def test_features_are_kept_and_left_as_they_were():
    features = small_features().train()
    features[3].eval()
    before = {name: value.clone() for name, value in features.state_dict().items()}
    model = with_cam_head(features, 5)
    assert model.features is features
    assert [module.training for module in features] == [True, True, True, False, True]
    after = features.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_head_trains_together_with_the_features():
    model = with_cam_head(small_features(), 5)
    nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 4])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("channels", [1, 5])
def test_input_channels_come_from_the_first_convolution(channels):
    model = with_cam_head(small_features(channels), 2)
    assert model(torch.randn(2, channels, 16, 16)).shape == (2, 2)


def test_head_has_the_precision_of_the_features():
    model = with_cam_head(small_features().double(), 2)
    assert model(torch.randn(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_example_input_serves_features_without_a_convolution():
    features = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
    with pytest.raises(SourceError, match="pass example_input"):
        with_cam_head(features, 3)
    model = with_cam_head(features, 3, example_input=torch.zeros(1, 6, 8, 8))
    assert model.classifier.in_features == 6


def test_torchvision_vgg16():
    vgg = pytest.importorskip("torchvision.models.vgg")
    features = vgg.make_layers(vgg.cfgs["D"])
    model = with_cam_head(features[:-1], 10, example_input=torch.zeros(1, 3, 32, 32))
    assert model.classifier.weight.shape == (10, 512)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    assert with_cam_head(features, 4).classifier.in_features == 512


@pytest.mark.parametrize(
    ("features", "num_classes", "example_input", "message"),
    [
        (small_features(), 0, None, "at least one class"),
        (nn.Sequential(small_features(), nn.Flatten()), 2, None, r"shape \[1, 142572\].*convolutional part"),
        (small_features(), 2, torch.zeros(1, 4, 32, 32), r"don't run on an input of shape \[1, 4, 32, 32\]"),
        (nn.LSTM(4, 4), 2, torch.zeros(3, 4), "a tuple"),
    ],
    ids=["no classes", "flattened", "wrong channels", "tuple"],
)
def test_bad_calls_are_refused(features, num_classes, example_input, message):
    with pytest.raises(SourceError, match=message) as caught:
        with_cam_head(features, num_classes, example_input)
    assert "\n" not in str(caught.value)
