"""The errors that onnxplain raises on purpose, each with one line that says what to do."""

from __future__ import annotations


class OnnxplainError(Exception):
    """Base of every error that onnxplain raises on purpose."""


class ModelError(OnnxplainError):
    """A model file is missing, damaged, or not an explainer."""


class ImageError(OnnxplainError):
    """A picture can't be found, decoded or used."""


class OutputError(OnnxplainError):
    """What is to be written would replace or mix with something else than an earlier output."""


class BoxesError(OnnxplainError):
    """A file of boxes can't be read, or doesn't fit the pictures."""


class TargetError(OnnxplainError):
    """A class to explain doesn't exist, or its label names more than one."""


class MethodError(OnnxplainError):
    """A method is unknown, or the model lacks what it needs."""


class ProviderError(OnnxplainError):
    """An execution provider or device isn't available."""


class MissingDependencyError(OnnxplainError):
    """A package of one of onnxplain's extras isn't installed."""


class SourceError(OnnxplainError):
    """A source model can't be loaded or traced."""


class LayerError(OnnxplainError):
    """A target layer doesn't exist, or can't be explained."""


class UnsupportedOperatorError(OnnxplainError):
    """An operator between the target layer and the logits has no gradient rule."""


class VerificationError(OnnxplainError):
    """An explainer's logits or gradients differ from its source's by more than rounding."""
