"""Class activation maps: pure numpy functions of a layer's activations A and gradients dS/dA.

Each takes activations [..., channels, h, w] and gradients [..., classes, channels, h, w] and returns maps
[..., classes, h, w]; gradients without the classes axis (as many axes as the activations) give maps without
it. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating[Any]]


def cam(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""CAM (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).

    .. math:: L^c = \sum_k w_k^c A_k

    with w the weights of the linear layer that follows global average pooling. There,
    S_c = sum_k w_k^c mean_xy A_k + b_c, so that w_k^c is the sum over space of dS_c/dA_k. There is no ReLU:
    the mean of L^c over space, plus b_c, is the logit S_c.

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].

    Returns
    -------
    ndarray
        L, [..., classes, h, w] or [..., h, w]; float32, or float64 where an argument is.

    Raises
    ------
    ValueError
        The shapes don't fit each other.

    Notes
    -----
    Defined only where global average pooling and one linear layer lie between the layer and the logits; the
    arrays don't tell.
    """
    activations, gradients = _check(activations, gradients)
    return _weighted_sum(gradients.sum(axis=(-2, -1)), activations)


def gradcam(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""Grad-CAM (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", ICCV 2017).

    .. math::
        \alpha_k^c = \frac{1}{hw} \sum_{xy} \frac{\partial S_c}{\partial A_{kxy}}, \qquad
        L^c = \mathrm{ReLU}\Big(\sum_k \alpha_k^c A_k\Big)

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].

    Returns
    -------
    ndarray
        L >= 0, [..., classes, h, w] or [..., h, w]; float32, or float64 where an argument is.

    Raises
    ------
    ValueError
        The shapes don't fit each other.
    """
    activations, gradients = _check(activations, gradients)
    return np.maximum(_weighted_sum(gradients.mean(axis=(-2, -1)), activations), 0)


@dataclass(frozen=True)
class Method:
    """A way to turn activations and gradients into maps, and what it asks of the network's head."""

    maps: Callable[[ArrayLike, ArrayLike], FloatArray]
    gap_linear: bool = False
    """Defined only where global average pooling and one linear layer follow the target layer."""


METHODS: Mapping[str, Method] = {
    "cam": Method(cam, gap_linear=True),
    "gradcam": Method(gradcam),
}


def _check(activations: ArrayLike, gradients: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return both as floats of one precision, at least float32, gradients with a classes axis or without."""
    activations, gradients = np.asarray(activations), np.asarray(gradients)
    dtype = np.result_type(activations, gradients, np.float32)
    shape = gradients.shape
    if gradients.ndim == activations.ndim + 1:
        shape = shape[:-4] + shape[-3:]
    if activations.ndim < 3 or shape != activations.shape:
        raise ValueError(
            f"activations {list(activations.shape)} and gradients {list(gradients.shape)} don't fit: "
            "they must be [..., channels, h, w] and [..., classes, channels, h, w]"
        )
    return activations.astype(dtype, copy=False), gradients.astype(dtype, copy=False)


def _weighted_sum(weights: FloatArray, activations: FloatArray) -> FloatArray:
    """Return sum_k weights_k A_k for weights [..., classes, channels] or [..., channels]."""
    *batch, channels, h, w = activations.shape
    flat = activations.reshape(*batch, channels, h * w)
    if weights.ndim == activations.ndim - 2:
        return (weights[..., None, :] @ flat).reshape(*batch, h, w)
    return (weights @ flat).reshape(*batch, weights.shape[-2], h, w)
