"""Maps from repeated predictions, of the image with parts of it masked: no gradients are needed.

What is masked is brought towards 0, the mean colour of a normalised image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.heatmap import bilinear
from onnxplain.opencv import cv2

Predict = Callable[[NDArray[np.float32]], NDArray[Any]]
"""From images [n, channels, height, width] to a score for each class, [n, num_classes]."""

Progress = Callable[[int, int], None]
"""Called with how many predictions are done, and how many there are."""

BATCH = 16


def scorecam(
    predict: Predict,
    image: NDArray[np.float32],
    activations: NDArray[np.floating[Any]],
    classes: Sequence[int],
    *,
    batch: int = BATCH,
    progress: Progress = lambda done, total: None,
) -> NDArray[np.float32]:
    r"""Score-CAM (Wang et al., "Score-CAM: Score-Weighted Visual Explanations", CVPR Workshops 2020).

    .. math::
        H_k = s(\mathrm{Up}(A_k)), \qquad
        \alpha^c = \mathrm{softmax}_k\big(S_c(X \circ H_k) - S_c(0)\big), \qquad
        L^c = \mathrm{ReLU}\Big(\sum_k \alpha_k^c A_k\Big)

    with s the scaling to [0, 1] and S the logits; S_c(0) is the same for all channels, and the softmax
    doesn't see it. A channel takes a prediction, which serves all classes. Activations are resized with their
    corners on the image's, and 1e-8 is added to what is divided by: pytorch-grad-cam's ``ScoreCAM``.

    Parameters
    ----------
    predict
        Returns logits.
    image
        X, the network's input, [channels, height, width].
    activations
        A, [K, h, w].
    classes
        The classes to explain.
    batch
        How many predictions are made at once.
    progress
        Called after each batch.

    Returns
    -------
    ndarray
        L >= 0, float32 [classes, h, w].
    """
    count = len(activations)
    scores = np.empty((count, len(classes)))
    for start in range(0, count, batch):
        masks = _scaled(_between_corners(activations[start : start + batch], image.shape[1:]))
        scores[start : start + batch] = predict(image * masks[:, None])[:, classes]
        progress(min(start + batch, count), count)
    powers = np.exp(scores - scores.max(axis=0))
    weights = powers / powers.sum(axis=0)
    maps: NDArray[np.float64] = np.einsum("kc,khw->chw", weights, activations)
    return np.maximum(maps, 0).astype(np.float32)


def rise(
    predict: Predict,
    image: NDArray[np.float32],
    classes: Sequence[int],
    *,
    count: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    batch: int = BATCH,
    progress: Progress = lambda done, total: None,
) -> NDArray[np.float32]:
    r"""RISE (Petsiuk et al., "RISE: Randomized Input Sampling for Explanation", BMVC 2018).

    .. math:: L^c = \frac{1}{N \cdot E[M]} \sum_{i=1}^{N} f_c(X \circ M_i) \, M_i

    with M_i random masks (`rise_masks`) and f the probabilities: no layer is needed, any classifier will do.

    Parameters
    ----------
    predict
        Returns probabilities.
    image
        X, the network's input, [channels, height, width].
    classes
        The classes to explain.
    count
        N, the number of masks; with fewer the map is noisier.
    cells, keep, seed
        As in `rise_masks`.
    batch
        How many predictions are made at once.
    progress
        Called after each batch.

    Returns
    -------
    ndarray
        L, float32 [classes, height, width].
    """
    height, width = image.shape[1:]
    total = np.zeros((len(classes), height, width))
    done = 0
    for masks in rise_masks((height, width), count=count, cells=cells, keep=keep, seed=seed, batch=batch):
        scores = predict(image * masks[:, None])[:, classes]
        total += np.einsum("nc,nhw->chw", scores.astype(np.float64), masks)
        done += len(masks)
        progress(done, count)
    return (total / (count * keep)).astype(np.float32)


def rise_masks(
    size: tuple[int, int],
    *,
    count: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    batch: int = BATCH,
) -> Iterator[NDArray[np.float32]]:
    """Yield RISE's random masks in batches, float32 [batch, height, width] in [0, 1].

    A grid of cells, each kept with a probability, is resized bilinearly to somewhat more than the image, and
    cut to the image at a random place (section 3.2 of the paper). The same seed gives the same masks,
    whatever the batch.

    Parameters
    ----------
    size
        Height and width of the image.
    count
        How many masks there are.
    cells
        Cells along each side.
    keep
        Probability that a cell is kept.
    seed
        Of the random numbers.
    batch
        How many are yielded at once.
    """
    height, width = size
    rows, columns = -(-height // cells), -(-width // cells)
    generator = np.random.default_rng(seed)

    def draw() -> NDArray[np.float32]:
        grid = (generator.random((cells, cells)) < keep).astype(np.float32)
        top, left = generator.integers(rows), generator.integers(columns)
        large = cv2.resize(grid, ((cells + 1) * columns, (cells + 1) * rows), interpolation=cv2.INTER_LINEAR)
        return np.asarray(large[top : top + height, left : left + width], np.float32)

    for start in range(0, count, batch):
        yield np.stack([draw() for _ in range(min(batch, count - start))])


def _between_corners(maps: NDArray[np.floating[Any]], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return maps [n, h, w] resized bilinearly, the centres of their corner cells on the corner pixels."""
    y, x = (
        bilinear(np.linspace(0, cells - 1, pixels), cells)
        for cells, pixels in zip(maps.shape[1:], size, strict=True)
    )
    resized: NDArray[np.float32] = y @ maps.astype(np.float32) @ x.T
    return resized


def _scaled(masks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each mask to [0, 1]; one that is the same everywhere is 0."""
    low, high = masks.min(axis=(1, 2), keepdims=True), masks.max(axis=(1, 2), keepdims=True)
    scaled: NDArray[np.float32] = (masks - low) / (high - low + np.float32(1e-8))
    return scaled
