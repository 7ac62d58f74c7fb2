"""CAM's procedure for a network that CAM can't explain: give its features a head that CAM can."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from onnxplain.errors import SourceError
from onnxplain_export.torch_model import evaluation_mode, one_line


def with_cam_head(
    features: nn.Module, num_classes: int, example_input: torch.Tensor | None = None
) -> nn.Sequential:
    """Put global average pooling and one linear layer on top of convolutional features.

    With this head the logit of class c is ``b_c + sum_k w_k^c mean(A_k)``, A_k being the k-th feature map, so
    that the class activation map ``sum_k w_k^c A_k`` says how much each place adds to it. The linear layer is
    new: the network must be trained again, the head alone or all of it.

    Parameters
    ----------
    features
        Maps pictures to feature maps [batch, channels, height, width]; for instance torchvision's
        ``vgg16(weights="DEFAULT").features``. The paper leaves out the last pooling for finer maps:
        ``vgg16(weights="DEFAULT").features[:-1]``. It is used as it is, not copied.
    num_classes
        How many classes the new head tells apart.
    example_input
        What `features` takes, to see how many channels come out. By default zeros of
        [1, channels of the first convolution, 224, 224].

    Returns
    -------
    nn.Sequential
        ``features``, ``pool``, ``flatten``, and ``classifier``, the linear layer. The layer to explain is
        ``features``.

    Raises
    ------
    SourceError
        `num_classes` is below 1, or `features` doesn't turn the example into feature maps.

    References
    ----------
    Zhou, Khosla, Lapedriza, Oliva, Torralba: "Learning Deep Features for Discriminative Localization",
    CVPR 2016.
    """
    if num_classes < 1:
        raise SourceError(f"num_classes is {num_classes}; a classifier needs at least one class")
    if example_input is None:
        example_input = _zeros_for(features)
    maps = _dry_run(features, example_input)
    if not isinstance(maps, torch.Tensor) or maps.ndim != 4:
        shape = f"shape {list(maps.shape)}" if isinstance(maps, torch.Tensor) else f"a {type(maps).__name__}"
        raise SourceError(
            f"the features come out as {shape}, not as maps [batch, channels, height, width]; "
            "pass the convolutional part of the network alone"
        )
    return nn.Sequential(
        OrderedDict(
            features=features,
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(maps.shape[1], num_classes, device=maps.device, dtype=maps.dtype),
        )
    )


def _zeros_for(features: nn.Module) -> torch.Tensor:
    first = next((module for module in features.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise SourceError("the features have no Conv2d to read the input's channels from; pass example_input")
    return first.weight.new_zeros(1, first.in_channels, 224, 224)


def _dry_run(features: nn.Module, example_input: torch.Tensor) -> object:
    try:
        with torch.no_grad(), evaluation_mode(features):
            return features(example_input)
    except (RuntimeError, ValueError, TypeError) as error:
        raise SourceError(
            f"the features don't run on an input of shape {list(example_input.shape)} ({one_line(error)}); "
            "pass an example_input that they take"
        ) from None
