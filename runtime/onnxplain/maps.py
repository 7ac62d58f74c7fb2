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

from onnxplain.errors import MethodError
from onnxplain.products import product

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


def gradcam_plusplus(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""Grad-CAM++ (Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations", WACV 2018).

    .. math::
        \alpha_{kxy}^c = \frac{1}{2 + g_{kxy}^c \sum_{ab} A_{kab}}, \quad
        w_k^c = \sum_{xy} \alpha_{kxy}^c \, \mathrm{ReLU}(g_{kxy}^c), \quad
        L^c = \mathrm{ReLU}\Big(\sum_k w_k^c A_k\Big)

    with g = dS_c/dA. Where g isn't 0, alpha is equation 19 of the paper, g^2 / (2 g^2 + g^3 sum A); where it
    is, the ReLU in w makes the term 0. The paper takes activations as positive: behind a ReLU the denominator
    of what counts is at least 2.

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
    sums = _beside(activations, gradients).sum(axis=(-2, -1), keepdims=True)
    weights = _ratio(np.maximum(gradients, 0), 2 + gradients * sums).sum(axis=(-2, -1))
    return np.maximum(_weighted_sum(weights, activations), 0)


def xgradcam(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""XGrad-CAM (Fu et al., "Axiom-based Grad-CAM", BMVC 2020).

    .. math::
        w_k^c = \sum_{xy} \frac{A_{kxy}}{\sum_{ab} A_{kab}} \frac{\partial S_c}{\partial A_{kxy}}, \qquad
        L^c = \sum_k w_k^c A_k

    There is no ReLU: the sum of L over space is that of A dS_c/dA, the paper's axiom of conservation. A
    channel whose activations sum up to 0 has the weight 0.

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
    """
    activations, gradients = _check(activations, gradients)
    paired = _beside(activations, gradients)
    weights = _ratio((paired * gradients).sum(axis=(-2, -1)), paired.sum(axis=(-2, -1)))
    return _weighted_sum(weights, activations)


def hirescam(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""HiResCAM (Draelos and Carin, "Use HiResCAM instead of Grad-CAM", 2020).

    .. math:: L^c = \sum_k \frac{\partial S_c}{\partial A_k} \odot A_k

    There is no ReLU: for a head of one linear layer the sum of L over space, plus the bias, is the logit.

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
    """
    activations, gradients = _check(activations, gradients)
    maps: FloatArray = (gradients * _beside(activations, gradients)).sum(axis=-3)
    return maps


def layercam(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""LayerCAM (Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps", TIP 2021).

    .. math::
        L^c = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\Big(\frac{\partial S_c}{\partial A_k}\Big) \odot A_k\Big)

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
    weighted: FloatArray = np.maximum(gradients, 0) * _beside(activations, gradients)
    maps: FloatArray = np.maximum(weighted.sum(axis=-3), 0)
    return maps


@dataclass(frozen=True)
class Method:
    """A way to turn activations and gradients into maps, and what it asks of the network's head."""

    maps: Callable[[ArrayLike, ArrayLike], FloatArray]
    gap_linear: bool = False
    """Defined only where global average pooling and one linear layer follow the target layer."""


METHODS: Mapping[str, Method] = {
    "cam": Method(cam, gap_linear=True),
    "gradcam": Method(gradcam),
    "gradcam++": Method(gradcam_plusplus),
    "xgradcam": Method(xgradcam),
    "hirescam": Method(hirescam),
    "layercam": Method(layercam),
}


def check_method(method: str, heads: Mapping[str, str | None]) -> None:
    """Check that a method exists, and is defined for layers whose heads are given by name.

    Raises
    ------
    MethodError
        It doesn't, or isn't.
    """
    if method not in METHODS:
        raise MethodError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    for layer, head in heads.items():
        if METHODS[method].gap_linear and head != "gap_linear":
            raise MethodError(
                f"{method} needs global average pooling and one linear layer after {layer!r}, and this "
                "network has something else there; use gradcam, or retrain it with "
                "onnxplain_export.with_cam_head"
            )


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
        return product(weights[..., None, :], flat).reshape(*batch, h, w)
    return product(weights, flat).reshape(*batch, weights.shape[-2], h, w)


def _beside(activations: FloatArray, gradients: FloatArray) -> FloatArray:
    """Return activations with an axis of one class where the gradients have classes."""
    return activations if gradients.ndim == activations.ndim else activations[..., None, :, :, :]


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return the quotient, and 0 where the denominator is."""
    quotient: FloatArray = np.divide(
        numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0
    )
    return quotient
