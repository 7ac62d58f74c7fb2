"""What a module shows of the pictures it was trained on: by its first batch normalisation, by its library."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from onnxplain.errors import ModelError, SourceError
from onnxplain.manifest import IMAGENET, Preprocessing
from onnxplain_export.evidence import Evidence

# Pictures' levels in [0, 1] have about this standard deviation: photographs 0.2 to 0.3, digits 0.3.
_SPREAD = 0.27
# Further from it, by this factor, is nothing that a picture has.
_MOST = 2.5
# How far the running means may be from those of one number of inputs, in standard deviations of what they are
# the means of. Of trained networks it is 0.1 at most, of redrawn ones 1.
_MISFIT = 0.25
# With fewer running means for each unknown mean of a channel, anything fits.
_FEWEST = 5


def evidence_of(model: nn.Module, channels: int, height: int, width: int) -> list[Evidence]:
    """Return what a module shows of how pictures became its inputs, the weightiest first."""
    return [*of_batch_norm(model, channels), *_of_library(model, channels, height, width)]


def of_batch_norm(model: nn.Module, channels: int) -> list[Evidence]:
    """Return the normalisation that fits the mean and spread of the inputs that a module has seen."""
    seen = _seen_inputs(model, channels)
    if seen is None:
        return []
    mean, spread = seen

    def misfit(values: Mapping[str, tuple[float, ...]]) -> float:
        """Say how unlike a picture's the levels would be, before they were normalised so."""
        scale = sum(values["std"]) / channels
        level = mean * scale + sum(values["mean"]) / channels
        return abs(math.log(spread * scale / _SPREAD)) if 0.03 < level < 0.97 else math.inf

    values = min(_normalisations(channels), key=misfit)
    if misfit(values) > math.log(_MOST):
        return []
    about = f"its first batch normalisation has seen inputs of mean {mean:.2g} and deviation {spread:.2g}"
    return [Evidence(values, about)]


def _normalisations(channels: int) -> list[dict[str, tuple[float, ...]]]:
    """Return the usual ones: [0, 1], [-1, 1], by the data's own statistics, and levels up to 255."""
    own = IMAGENET if channels == 3 else {"mean": (0.45,) * channels, "std": (0.225,) * channels}
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    levels = {"std": (1 / 255,) * channels}
    return [
        plain,
        {"mean": (0.5,) * channels, "std": (0.5,) * channels},
        own,
        plain | levels,
        own | levels,
    ]


def _seen_inputs(model: nn.Module, channels: int) -> tuple[float, float] | None:
    """Return the mean and the standard deviation of the inputs that a module was trained on.

    A convolution's mean is that of its inputs times the sum of its weights, over the channels: the batch
    normalisation behind it has kept these means, and the inputs' are those that fit them best. Neighbouring
    pixels are much alike, and so are colours: standard deviations go with the sum of all weights, where that
    is large.

    None where there are no such modules, or where they were never trained: then nothing fits.
    """
    modules = list(model.modules())
    first = next((index for index, module in enumerate(modules) if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return None
    convolution: Any = modules[first]
    norm: Any = next((module for module in modules[first:] if isinstance(module, nn.BatchNorm2d)), None)
    if norm is None or norm.running_mean is None or norm.num_features != convolution.out_channels:
        return None
    if convolution.in_channels != channels or convolution.groups != 1:
        return None
    if convolution.out_channels < _FEWEST * channels:
        return None
    sums = convolution.weight.detach().cpu().double().sum(dim=(2, 3))
    bias = 0 if convolution.bias is None else convolution.bias.detach().cpu().double()
    means, variances = norm.running_mean.cpu().double() - bias, norm.running_var.cpu().double()
    fitted = torch.linalg.lstsq(sums, means[:, None]).solution[:, 0]
    residual = (means - sums @ fitted).square().sum() / (len(sums) - channels)
    misfit = float((residual / variances.mean()).sqrt())
    whole = sums.sum(dim=1)
    large = whole.abs() >= whole.abs().quantile(0.75)
    mean, spread = float(fitted.mean()), float((variances[large] / whole[large].square()).median().sqrt())
    is_fresh = not norm.running_mean.any()
    return None if is_fresh or not misfit <= _MISFIT or not 0 < spread < math.inf else (mean, spread)


def _of_library(model: nn.Module, channels: int, height: int, width: int) -> list[Evidence]:
    """Return how a library's networks take pictures, where a module or a part of it is one of these.

    Its weights may be anybody's: it is what the library does, and no statement.
    """
    if channels != 3:
        return []
    for module in model.modules():
        home = type(module).__module__
        if home.startswith("torchvision.models."):
            values = {"resize": round(min(height, width) / 0.875), "crop": "center", **IMAGENET}
            return [Evidence(values, "as torchvision's networks of ImageNet take them")]
        if home.startswith("timm.models.") and getattr(module, "pretrained_cfg", None):
            config = sys.modules["timm"].data.resolve_model_data_config(module)
            try:
                spec = timm_preprocessing({**config, "input_size": (channels, height, width)})
            except SourceError:
                return []
            names = ("resize", "crop", "interpolation", "mean", "std")
            values = {name: getattr(spec, name) for name in names}
            return [Evidence(values, "as its configuration in timm says")]
    return []


def timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Return what timm's own transform for evaluation does.

    Raises
    ------
    SourceError
        A manifest can't say it.
    """
    channels, height, width = config["input_size"]
    # timm rounds down, as in its transform.
    resized = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    if config["crop_mode"] == "border":
        raise SourceError(
            "timm pads pictures for this network, which the manifest can't say; pass the network and a "
            "preprocessing of yours to onnxplain_export.export"
        )
    try:
        return Preprocessing(
            channels,
            height,
            width,
            color="L" if channels == 1 else "RGB",
            resize=resized if config["crop_mode"] == "squash" else min(resized),
            crop="center",
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except ModelError as error:
        raise SourceError(f"timm's preprocessing can't be used: {error}") from None
