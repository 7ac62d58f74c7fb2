"""The networks of the papers, trained: Network in Network, CAM and Grad-CAM.

This module needs no torch. `onnxplain_models.networks` has the networks themselves, `onnxplain_models.scenes`
the data.
"""

from onnxplain_models.catalog import (
    LABELS,
    METHODS,
    NETWORKS,
    PREPROCESSING,
    TARGET_LAYERS,
    Sample,
    explainer_file,
    samples,
    weights_file,
)

__all__ = [
    "LABELS",
    "METHODS",
    "NETWORKS",
    "PREPROCESSING",
    "TARGET_LAYERS",
    "Sample",
    "explainer_file",
    "samples",
    "weights_file",
]
