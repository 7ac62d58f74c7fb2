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


def cam(activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False) -> FloatArray:
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
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    return _weighted_sum(gradients.sum(axis=(-2, -1)), activations, eigen_smooth)


def gradcam(activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False) -> FloatArray:
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
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    return np.maximum(_weighted_sum(gradients.mean(axis=(-2, -1)), activations, eigen_smooth), 0)


def gradcam_plusplus(
    activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False
) -> FloatArray:
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
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    return np.maximum(_weighted_sum(weights, activations, eigen_smooth), 0)


def xgradcam(activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False) -> FloatArray:
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
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    return _weighted_sum(weights, activations, eigen_smooth)


def hirescam(activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False) -> FloatArray:
    r"""HiResCAM (Draelos and Carin, "Use HiResCAM instead of Grad-CAM", 2020).

    .. math:: L^c = \sum_k \frac{\partial S_c}{\partial A_k} \odot A_k

    There is no ReLU: for a head of one linear layer the sum of L over space, plus the bias, is the logit.

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    return _channel_sum(gradients * _beside(activations, gradients), eigen_smooth)


def layercam(activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False) -> FloatArray:
    r"""LayerCAM (Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps", TIP 2021).

    .. math::
        L^c = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\Big(\frac{\partial S_c}{\partial A_k}\Big) \odot A_k\Big)

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    terms = np.maximum(gradients, 0) * _beside(activations, gradients)
    return np.maximum(_channel_sum(terms, eigen_smooth), 0)


def gradcam_elementwise(
    activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False
) -> FloatArray:
    r"""Elementwise Grad-CAM: HiResCAM's terms, those alone that speak for the class.

    .. math:: L^c = \sum_k \mathrm{ReLU}\Big(\frac{\partial S_c}{\partial A_k} \odot A_k\Big)

    pytorch-grad-cam's ``GradCAMElementWise``; there is no paper.

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    terms = np.maximum(gradients * _beside(activations, gradients), 0)
    return np.maximum(_channel_sum(terms, eigen_smooth), 0)


def gradcam_signed(activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False) -> FloatArray:
    r"""Grad-CAM before its ReLU: below 0 is what argues against the class.

    .. math:: L^c = \sum_k \alpha_k^c A_k

    with Grad-CAM's weights. A heatmap shows its positive part, which is Grad-CAM's.

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    return _weighted_sum(gradients.mean(axis=(-2, -1)), activations, eigen_smooth)


def counterfactual(activations: ArrayLike, gradients: ArrayLike, *, eigen_smooth: bool = False) -> FloatArray:
    r"""Counterfactual Grad-CAM (Selvaraju et al. 2017, section 3.2): what argues against the class.

    .. math::
        \alpha_k^c = \frac{1}{hw} \sum_{xy} -\frac{\partial S_c}{\partial A_{kxy}}, \qquad
        L^c = \mathrm{ReLU}\Big(\sum_k \alpha_k^c A_k\Big)

    Where it is hot, less of what is there would raise the class's score.

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

    Returns
    -------
    ndarray
        L >= 0, [..., classes, h, w] or [..., h, w]; float32, or float64 where an argument is.

    Raises
    ------
    ValueError
        The shapes don't fit each other.
    """
    return np.maximum(-gradcam_signed(activations, gradients, eigen_smooth=eigen_smooth), 0)


def eigencam(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""EigenCAM (Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", 2020).

    .. math:: A = U \Sigma V^T, \qquad L = A V_1

    with A as a matrix [h w, channels] and V_1 its first right singular vector. It knows no class: the
    gradients say how many maps there are, and these are all the same.

    The sign of V_1 is arbitrary. It is chosen such that the map agrees with the activations' energy,
    sum_xy L sum_k A_k^2 >= 0. As in the paper, A isn't centred; pytorch-grad-cam's ``EigenCAM`` centres it.

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w]: their shape.

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
    terms = _beside(activations, gradients)
    maps = _principal_component(terms, np.square(terms).sum(axis=-3))
    return np.broadcast_to(maps, (*gradients.shape[:-3], *gradients.shape[-2:])).copy()


def eigengradcam(activations: ArrayLike, gradients: ArrayLike) -> FloatArray:
    r"""EigenGradCAM: the first principal component of activations times gradients.

    .. math:: M^c = \frac{\partial S_c}{\partial A} \odot A, \qquad
        M^c - \bar M^c = U \Sigma V^T, \qquad L^c = (M^c - \bar M^c) V_1

    with M as a matrix [h w, channels], and each channel's mean over space taken off: pytorch-grad-cam's
    ``EigenGradCAM``; there is no paper. The sign of V_1 is arbitrary. It is chosen such that the map agrees
    with HiResCAM's, sum_xy L^c sum_k M_k^c >= 0: what is hot speaks for the class.

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
    terms = gradients * _beside(activations, gradients)
    return _channel_sum(terms, eigen_smooth=True)


def finercam(
    activations: ArrayLike,
    gradients: ArrayLike,
    rivals: ArrayLike,
    gamma: float = 1.0,
    *,
    eigen_smooth: bool = False,
) -> FloatArray:
    r"""Finer-CAM (Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details", CVPR 2025).

    .. math::
        \alpha_k^c = \frac{1}{hw} \sum_{xy} \frac{1}{|D|} \sum_{d \in D}
        \frac{\partial (S_c - \gamma S_d)}{\partial A_{kxy}}, \qquad
        L^c = \mathrm{ReLU}\Big(\sum_k \alpha_k^c A_k\Big)

    with D the rivals: classes that the network finds likely too. What they share with the class is left out.

    Parameters
    ----------
    activations
        A, [..., channels, h, w].
    gradients
        dS_c/dA, [..., classes, channels, h, w] or, for a single class, [..., channels, h, w].
    rivals
        dS_d/dA, with an axis of rivals more: [..., classes, rivals, channels, h, w] or
        [..., rivals, channels, h, w]. Without any, this is Grad-CAM.
    gamma
        How much the rivals count.
    eigen_smooth
        Put the first principal component of the channels' terms in the place of their sum.

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
    rivals = np.asarray(rivals)
    if rivals.ndim < 4 or (*rivals.shape[:-4], *rivals.shape[-3:]) != gradients.shape:
        raise ValueError(
            f"rivals {list(rivals.shape)} and gradients {list(gradients.shape)} don't fit: rivals are "
            "[..., classes, rivals, channels, h, w]"
        )
    if rivals.shape[-4]:
        gradients = gradients - gamma * rivals.astype(gradients.dtype, copy=False).mean(axis=-4)
    return gradcam(activations, gradients, eigen_smooth=eigen_smooth)


@dataclass(frozen=True)
class Method:
    """A way to turn activations and gradients into maps, and what it asks of the network."""

    maps: Callable[..., FloatArray]
    """Of activations and gradients, and where there are `rivals` of theirs."""
    gap_linear: bool = False
    """Defined only where global average pooling and one linear layer follow the target layer."""
    rivals: int = 0
    """Against how many of the most likely other classes a class is explained."""
    is_eigen: bool = False
    """A principal component itself, for which there is no eigen smoothing."""


METHODS: Mapping[str, Method] = {
    "cam": Method(cam, gap_linear=True),
    "gradcam": Method(gradcam),
    "gradcam++": Method(gradcam_plusplus),
    "xgradcam": Method(xgradcam),
    "hirescam": Method(hirescam),
    "layercam": Method(layercam),
    "gradcam_elementwise": Method(gradcam_elementwise),
    "gradcam_signed": Method(gradcam_signed),
    "counterfactual": Method(counterfactual),
    "eigencam": Method(eigencam, is_eigen=True),
    "eigengradcam": Method(eigengradcam, is_eigen=True),
    "finercam": Method(finercam, rivals=3),
}


def check_method(method: str, heads: Mapping[str, str | None], *, eigen_smooth: bool = False) -> None:
    """Check that a method exists, and is defined for layers whose heads are given by name.

    Raises
    ------
    MethodError
        It doesn't, or isn't.
    """
    if method not in METHODS:
        raise MethodError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if eigen_smooth and METHODS[method].is_eigen:
        raise MethodError(f"{method} is a principal component already; leave eigen_smooth out")
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


def _weighted_sum(weights: FloatArray, activations: FloatArray, eigen_smooth: bool) -> FloatArray:
    """Return sum_k weights_k A_k for weights [..., classes, channels] or [..., channels]."""
    if eigen_smooth:
        weights = weights[..., None, None]
        return _channel_sum(weights * _beside(activations, weights), eigen_smooth)
    *batch, channels, h, w = activations.shape
    flat = activations.reshape(*batch, channels, h * w)
    if weights.ndim == activations.ndim - 2:
        return product(weights[..., None, :], flat).reshape(*batch, h, w)
    return product(weights, flat).reshape(*batch, weights.shape[-2], h, w)


def _channel_sum(terms: FloatArray, eigen_smooth: bool) -> FloatArray:
    """Return the sum of terms [..., channels, h, w] over channels, or what takes its place."""
    total: FloatArray = terms.sum(axis=-3)
    return _principal_component(_centred(terms), total) if eigen_smooth else total


def _beside(activations: FloatArray, gradients: FloatArray) -> FloatArray:
    """Return activations with an axis of one class where the gradients have classes."""
    return activations if gradients.ndim == activations.ndim else activations[..., None, :, :, :]


def _centred(terms: FloatArray) -> FloatArray:
    """Return terms [..., channels, h, w] with each channel's mean over space taken off."""
    centred: FloatArray = terms - terms.mean(axis=(-2, -1), keepdims=True)
    return centred


def _principal_component(terms: FloatArray, like: FloatArray) -> FloatArray:
    """Return the first principal component of terms [..., channels, h, w], with the sign of a map like it.

    As a matrix M [h w, channels] with M = U S V^T, it is M V_1 = U_1 S_1. Computed from the smaller of M M^T
    and M^T M, in float64: far fewer numbers than M has. NaN where the terms aren't finite.
    """
    *batch, channels, h, w = terms.shape
    matrix = terms.reshape(*batch, channels, h * w).astype(np.float64)
    is_finite = np.asarray(np.isfinite(matrix).all(axis=(-2, -1)))
    matrix = np.where(is_finite[..., None, None], matrix, 0)
    turned = np.swapaxes(matrix, -1, -2)
    if h * w <= channels:
        values, vectors = np.linalg.eigh(turned @ matrix)
        component = vectors[..., -1] * np.sqrt(np.maximum(values[..., -1:], 0))
    else:
        vectors = np.linalg.eigh(matrix @ turned)[1]
        component = (turned @ vectors[..., -1:])[..., 0]
    agrees = (component * like.reshape(*batch, h * w)).sum(axis=-1, keepdims=True)
    component = np.where(agrees < 0, -component, component)
    component = np.where(is_finite[..., None], component, np.nan)
    return component.reshape(*batch, h, w).astype(terms.dtype)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return the quotient, and 0 where the denominator is."""
    quotient: FloatArray = np.divide(
        numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0
    )
    return quotient
