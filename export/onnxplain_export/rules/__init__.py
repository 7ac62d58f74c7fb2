"""Gradient rules: one function an operator, one file a family of operators."""

from onnxplain_export.rules import (  # noqa: F401  (importing a family registers its rules)
    activations,
    arithmetic,
    class_maps,
    convolution,
    cropping,
    einsum,
    elementary,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reductions,
    resampling,
    scattering,
    shapes,
)
from onnxplain_export.rules.registry import NO_GRADIENT, RULES, SELECTION_RULES, Entry

__all__ = ["NO_GRADIENT", "RULES", "SELECTION_RULES", "Entry"]
