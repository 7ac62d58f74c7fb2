"""What an explainer is verified on: images that its export hasn't seen, and classes to explain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxplain.manifest import Preprocessing
from onnxplain_export.reference_graph import Array


@dataclass(frozen=True)
class Probe:
    """Inputs that the export hasn't seen, and the classes to explain on them."""

    image: Array
    class_index: Array

    @classmethod
    def draw(cls, spec: Preprocessing, num_classes: int, *, any_size: bool) -> Probe:
        """Draw three images of noise and two classes each, ranks among them; always the same ones.

        Not as many classes as images: a graph that confuses the two would pass.

        Parameters
        ----------
        any_size
            The explainer takes images of any size: they have another one than it was exported at.
        """
        generator = np.random.default_rng(20)
        size = unseen_size(spec.height, spec.width) if any_size else (spec.height, spec.width)
        image = generator.standard_normal((3, spec.channels, *size)).astype(np.float32)
        classes = generator.integers(num_classes, size=(3, 2))
        classes[:, 0] = -1
        classes[0, 1] = -min(2, num_classes)
        return cls(image, classes.astype(np.int64))


def unseen_size(height: int, width: int) -> tuple[int, int]:
    """Return another size, of other proportions, whose sides are wholes and halves of the export's own.

    So networks take it that cut an image into patches, and maps of the coarsest stride differ in size.
    """
    return height + height // 2, 2 * width
