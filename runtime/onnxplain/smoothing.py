"""Test-time augmentations: a map's mean over them is smoother than the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Augmentation:
    """A change of the network's input that leaves things where they are, or mirrors them.

    Parameters
    ----------
    factor
        What the normalised pixels are multiplied by.
    is_mirrored
        Left and right change places.
    """

    factor: float
    is_mirrored: bool

    def apply(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an input [channels, height, width], changed."""
        changed = tensor[..., ::-1] if self.is_mirrored else tensor
        return np.ascontiguousarray(changed * np.float32(self.factor))

    def undo(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return maps [..., h, w] of changed inputs as they lie on the input itself."""
        return maps[..., ::-1] if self.is_mirrored else maps


AUGMENTATIONS = tuple(
    Augmentation(factor, is_mirrored)
    for is_mirrored in (False, True)
    for factor in (0.9, 1.0, 1.1)
    if is_mirrored or factor != 1.0
)
"""Those of pytorch-grad-cam's ``aug_smooth``, but for the input as it is."""
