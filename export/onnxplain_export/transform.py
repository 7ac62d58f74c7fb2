"""The transform that goes with torchvision's weights, as a preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from onnxplain.manifest import Preprocessing


@runtime_checkable
class Transform(Protocol):
    """What ``weights.transforms()`` returns, torchvision's `ImageClassification`."""

    crop_size: Sequence[int]
    resize_size: Sequence[int]
    interpolation: Any
    mean: Sequence[float]
    std: Sequence[float]


def preprocessing_of(transform: Transform) -> Preprocessing:
    """Return what a transform does.

    Raises
    ------
    ModelError
        A manifest can't say it.
    """
    height, width = (*transform.crop_size, *transform.crop_size)[:2]
    resize = transform.resize_size[0] if len(transform.resize_size) == 1 else tuple(transform.resize_size)
    return Preprocessing(
        channels=3,
        height=height,
        width=width,
        color="RGB",
        resize=resize,  # type: ignore[arg-type]
        crop="center",
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
