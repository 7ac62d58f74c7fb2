"""The three reference networks: `nin`, `vgg_mlp` and `vgg_cam`.

`nin()`, `vgg_mlp()` and `vgg_cam()` return the trained networks; `untrained(name)` a new one. Each takes
float32 [batch, 3, 96, 96], normalised as `onnxplain_models.PREPROCESSING` says, and returns ten logits.
"""

from __future__ import annotations

from collections import OrderedDict

from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from torch import nn

from onnxplain.errors import ModelError
from onnxplain_export.cam_head import with_cam_head
from onnxplain_models.catalog import LABELS, NETWORKS, weights_file

CLASSES = len(LABELS)


def nin() -> nn.Module:
    """Return the trained Network in Network, in evaluation mode.

    Lin, Chen and Yan, "Network In Network", 2014. Its last layer, `classes`, has one feature map for
    each class; their averages over space are the logits. There is no linear layer.
    """
    return load("nin")


def vgg_mlp() -> nn.Module:
    """Return the trained small VGG with a multilayer perceptron on its features, in evaluation mode.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015.
    CAM can't explain it, Grad-CAM can.
    """
    return load("vgg_mlp")


def vgg_cam() -> nn.Module:
    """Return the trained VGG with a CAM head, in evaluation mode.

    Zhou et al., "Learning Deep Features for Discriminative Localization", 2016: `vgg_mlp` with its classifier
    replaced by global average pooling and one linear layer, and trained again.
    """
    return load("vgg_cam")


def load(name: str) -> nn.Module:
    """Return a trained network, in evaluation mode, with the weights that ship with the package.

    Raises
    ------
    ModelError
        There is no such network, or its weights are missing or damaged.
    """
    weights = weights_file(name)
    network = untrained(name)
    try:
        network.load_state_dict(parse_weights(weights.read_bytes()))
    except FileNotFoundError:
        raise ModelError(
            f"{name} has no weights at {weights}; install onnxplain again, or train it: "
            f"python -m onnxplain_models.train --network {name}"
        ) from None
    except (SafetensorError, RuntimeError):
        raise ModelError(f"the weights at {weights} are damaged; install onnxplain again") from None
    return network.eval()


def untrained(name: str) -> nn.Module:
    """Return a network as it is before its training."""
    if name == "nin":
        return _nin()
    if name == "vgg_mlp":
        return _vgg_mlp()
    if name == "vgg_cam":
        return with_cam_head(_vgg_features(), CLASSES)
    raise ModelError(f"no reference network is named {name!r}; choose one of {', '.join(NETWORKS)}")


def _nin() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            mlpconv1=_mlpconv(3, 32, stride=2),
            pool1=nn.MaxPool2d(2),
            mlpconv2=_mlpconv(32, 48),
            pool2=nn.MaxPool2d(2),
            mlpconv3=_mlpconv(48, 96),
            classes=nn.Conv2d(96, CLASSES, 1),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )


def _vgg_mlp() -> nn.Sequential:
    classifier = nn.Sequential(
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96 * 6 * 6, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(64, CLASSES),
    )
    return nn.Sequential(OrderedDict(features=_vgg_features(), classifier=classifier))


def _vgg_features() -> nn.Sequential:
    """Return the convolutions: [batch, 3, 96, 96] to [batch, 96, 12, 12]."""
    return nn.Sequential(
        *_convolution(3, 16, 3),
        nn.MaxPool2d(2),
        *_convolution(16, 16, 3),
        *_convolution(16, 32, 3),
        nn.MaxPool2d(2),
        *_convolution(32, 32, 3),
        *_convolution(32, 64, 3),
        nn.MaxPool2d(2),
        *_convolution(64, 64, 3),
        *_convolution(64, 96, 3),
    )


def _mlpconv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, then a perceptron of two layers at each place: two convolutions of 1 x 1."""
    return nn.Sequential(
        *_convolution(inputs, outputs, 5, stride),
        *_convolution(outputs, outputs, 1),
        *_convolution(outputs, outputs, 1),
    )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
