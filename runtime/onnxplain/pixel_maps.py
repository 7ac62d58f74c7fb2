"""Maps as fine as the network's input: pure numpy functions of the gradients of the image itself.

Such gradients are an output of files that were exported with ``--input-gradient``, and those of guided
backpropagation of files with ``--guided``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.heatmap import heatmap
from onnxplain.perturbation import Progress

FloatArray = NDArray[np.floating[Any]]

Gradients = Callable[[NDArray[np.float32]], FloatArray]
"""From images [n, channels, height, width] to dS_c/dX, [n, classes, channels, height, width]."""


def saliency(gradients: FloatArray) -> FloatArray:
    r"""Saliency (Simonyan et al., "Deep Inside Convolutional Networks", 2013, section 3.1).

    .. math:: L^c = \max_k \Big| \frac{\partial S_c}{\partial X_k} \Big|

    Guided backpropagation (Springenberg et al., "Striving for Simplicity", 2015) is the same of its own
    gradients.

    Parameters
    ----------
    gradients
        dS_c/dX, [..., channels, height, width].

    Returns
    -------
    ndarray
        L >= 0, [..., height, width], of the gradients' dtype.
    """
    maps: FloatArray = np.abs(gradients).max(axis=-3)
    return maps


def guided_gradcam(guided: FloatArray, cams: FloatArray) -> FloatArray:
    r"""Guided Grad-CAM (Selvaraju et al. 2017, section 3.1): guided backpropagation times Grad-CAM.

    .. math:: L^c = \max_k |G_k^c| \odot \mathrm{Up}(L_{Grad-CAM}^c) / \max L_{Grad-CAM}^c

    with G the gradients of guided backpropagation. Grad-CAM's smallest cell is left as it is: in a heatmap it
    is 0, and would hide what is there.

    Parameters
    ----------
    guided
        The gradients of guided backpropagation, [classes, channels, height, width].
    cams
        Grad-CAM's maps, [classes, h, w].

    Returns
    -------
    ndarray
        L >= 0, [classes, height, width].
    """
    size = (guided.shape[-2], guided.shape[-1])
    heat = np.stack([heatmap([cam], size, peaks=[float(cam.max())]) for cam in cams])
    maps: FloatArray = saliency(guided) * heat
    return maps


def smoothgrad(
    gradients: Gradients,
    image: NDArray[np.float32],
    *,
    count: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    batch: int = 5,
    progress: Progress = lambda done, total: None,
) -> FloatArray:
    r"""SmoothGrad (Smilkov et al., "SmoothGrad: Removing Noise by Adding Noise", 2017).

    .. math:: L^c = \max_k \Big| \frac{1}{n} \sum_{i=1}^{n}
        \frac{\partial S_c}{\partial X_k}\big(X + \mathcal{N}(0, \sigma^2)\big) \Big|

    with sigma a share of the image's own range.

    Parameters
    ----------
    gradients
        Returns the gradients at some images.
    image
        X, the network's input, [channels, height, width].
    count
        n, how many noisy images there are.
    noise
        sigma / (max X - min X).
    seed
        Of the noise.
    batch
        How many images the gradients are asked of at once.
    progress
        Called after each batch.

    Returns
    -------
    ndarray
        L >= 0, [classes, height, width].
    """
    generator = np.random.default_rng(seed)
    sigma = noise * float(image.max() - image.min())

    def noisy(_number: int) -> NDArray[np.float32]:
        return image + (sigma * generator.standard_normal(image.shape)).astype(np.float32)

    return saliency(_mean(noisy, count, gradients, batch, progress))


def integrated_gradients(
    gradients: Gradients,
    image: NDArray[np.float32],
    *,
    steps: int = 50,
    baseline: NDArray[np.float32] | float = 0.0,
    batch: int = 5,
    progress: Progress = lambda done, total: None,
) -> FloatArray:
    r"""Integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017).

    .. math:: L^c = \sum_k (X_k - B_k) \odot \frac{1}{m} \sum_{i=1}^{m}
        \frac{\partial S_c}{\partial X_k}\Big(B + \frac{i - 1/2}{m} (X - B)\Big)

    The sum of L over space nears S_c(X) - S_c(B) as the steps m grow (completeness); the midpoints of the
    steps are nearer than their ends.

    Parameters
    ----------
    gradients
        Returns the gradients at some images.
    image
        X, the network's input, [channels, height, width].
    steps
        m.
    baseline
        B, an image that says nothing; 0 is the mean colour of a normalised image.
    batch
        How many images the gradients are asked of at once.
    progress
        Called after each batch.

    Returns
    -------
    ndarray
        L, [classes, height, width]: below 0 is what argues against the class.
    """
    difference = image - np.float32(baseline)

    def between(number: int) -> NDArray[np.float32]:
        return image - np.float32(1 - (number + 0.5) / steps) * difference

    mean = _mean(between, steps, gradients, batch, progress)
    maps: FloatArray = (difference * mean).sum(axis=-3)
    return maps


def _mean(
    image_of: Callable[[int], NDArray[np.float32]],
    count: int,
    gradients: Gradients,
    batch: int,
    progress: Progress,
) -> FloatArray:
    """Return the mean of the gradients at so many images, [classes, channels, height, width]."""
    total: FloatArray | float = 0.0
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        images = np.stack([image_of(number) for number in numbers])
        total = total + gradients(images).sum(axis=0, dtype=np.float64)
        progress(numbers.stop, count)
    return np.asarray(total) / count
