"""Does a heatmap show what the network uses? Metrics that change the image, and see what the network says.

Pure functions of a heatmap that lies on the network's input, float32 [height, width] in [0, 1], and of the
network as a function. Pixels that are equally hot are taken in reading order: a map that says nothing about
half of the image then has no luck with it, as it would have if they were taken here and there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.opencv import cv2
from onnxplain.perturbation import BATCH

Predict = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
"""From images [n, channels, height, width] to the probability of the class that is explained, [n]."""

Image = NDArray[np.float32]
Heat = NDArray[np.floating[Any]]

STEPS = 100
PERCENTILES = tuple(range(10, 100, 10))

_BLUR, _SIGMA = 11, 5.0


def deletion(predict: Predict, image: Image, heat: Heat, *, steps: int = STEPS, batch: int = BATCH) -> float:
    r"""Return the area under the deletion curve (Petsiuk et al., "RISE", BMVC 2018); less is better.

    .. math:: \frac{1}{N} \sum_{k=1}^{N} \frac{f_c(X_{k-1}) + f_c(X_k)}{2}

    with X_k the image whose k/N hottest pixels are 0, the mean colour of a normalised image: the area under
    the probability's curve, from the whole image to none of it, by the trapezoid rule. A map that finds what
    the class depends on makes it fall at once.

    Parameters
    ----------
    predict
        f_c: the class's probability.
    image
        X, the network's input, [channels, height, width].
    heat
        The heatmap, [height, width].
    steps
        N: as many equal shares of the pixels, and one prediction more.
    batch
        How many predictions are made at once.

    Returns
    -------
    float
        In [0, 1] where probabilities are.
    """
    return _area(predict, image, np.zeros_like(image), heat, steps, batch)


def insertion(predict: Predict, image: Image, heat: Heat, *, steps: int = STEPS, batch: int = BATCH) -> float:
    """Return the area under the insertion curve (Petsiuk et al., "RISE", BMVC 2018); more is better.

    As `deletion`, but from the blurred image to the image itself: the hottest pixels become sharp first. Of a
    black image's pixels the first few would make edges that no photograph has.

    Parameters
    ----------
    predict, image, heat, steps, batch
        As in `deletion`.

    Returns
    -------
    float
        The area under the probability's curve, in [0, 1] where probabilities are.
    """
    return _area(predict, blurred(image), image, heat, steps, batch)


def blurred(image: Image) -> Image:
    """Return an image [channels, height, width] blurred by a Gaussian, 11 x 11 of sigma 5, as in RISE's code.

    The image is mirrored at its edges, where RISE's code has zeros.
    """
    return np.stack(
        [
            np.asarray(cv2.GaussianBlur(channel, (_BLUR, _BLUR), _SIGMA), np.float32).reshape(channel.shape)
            for channel in image
        ]
    )


def confidence_drop(predict: Predict, image: Image, heat: Heat) -> tuple[float, float]:
    r"""Return drop and increase in confidence (Chattopadhay et al., "Grad-CAM++", WACV 2018).

    .. math::
        \mathrm{drop} = \frac{\max(0, f_c(X) - f_c(X \circ L))}{f_c(X)}, \qquad
        \mathrm{increase} = \big[ f_c(X \circ L) > f_c(X) \big]

    of one image: the paper's are the means over images, in percent. The normalised image is multiplied by the
    heatmap, so that what is cold is 0, the mean colour. Of the drop less is better, of the increase more.

    Parameters
    ----------
    predict
        f_c: the class's probability.
    image
        X, the network's input, [channels, height, width].
    heat
        L, the heatmap, [height, width].

    Returns
    -------
    drop
        In [0, 1]; 0 where the probability was 0 before.
    increase
        0 or 1.
    """
    masked = image * heat.astype(np.float32)
    before, after = (float(score) for score in predict(np.stack([image, masked])))
    return max(0.0, before - after) / before if before > 0 else 0.0, float(after > before)


def road(
    predict: Predict,
    image: Image,
    heat: Heat,
    *,
    percentiles: Sequence[int] = PERCENTILES,
    noise: float = 0.01,
    seed: int | Sequence[int] = 0,
    batch: int = BATCH,
) -> float:
    r"""Return ROAD (Rong et al., "A Consistent and Efficient Evaluation Strategy", ICML 2022); more is good.

    .. math:: \frac{1}{|P|} \sum_{p \in P} \frac{f_c(X^{\mathrm{least}}_p) - f_c(X^{\mathrm{most}}_p)}{2}

    with X_p the image without (100 - p) % of its pixels, the least hot or the hottest. What is taken away is
    imputed from what is left (`impute`), so that neither its place nor its shape can be seen, and no image
    has patches of a colour: the network sees nothing that it hasn't learned from. That is pytorch-grad-cam's
    ``ROADCombined`` wherever no two pixels are equally hot; there, of a map with much 0 all is taken away.

    Parameters
    ----------
    predict
        f_c: the class's probability.
    image
        X, the network's input, [channels, height, width].
    heat
        The heatmap, [height, width].
    percentiles
        P.
    noise, seed
        As in `impute`.
    batch
        How many predictions are made at once.

    Returns
    -------
    float
        In [-1/2, 1/2] where probabilities are in [0, 1]; about 0 for a map that says nothing.
    """
    generator = np.random.default_rng(seed)
    orders = [_order(-heat), _order(heat)]
    pixels = heat.size

    def images() -> Iterator[Image]:
        for order in orders:
            for percentile in percentiles:
                # As many as are at least as large as numpy's percentile.
                missing = np.ones(pixels, np.bool_)
                missing[order[pixels + -(pixels - 1) * percentile // 100 :]] = False
                yield impute(image, missing.reshape(heat.shape), noise=noise, generator=generator)

    most, least = _scores(predict, images(), batch).reshape(2, -1).mean(axis=1)
    return float(least - most) / 2


def impute(
    image: Image, missing: NDArray[np.bool_], *, noise: float, generator: np.random.Generator
) -> Image:
    r"""Fill missing pixels by ROAD's noisy linear imputation (section 4.2 of the paper).

    .. math:: x_i = \sum_{j \in N(i)} w_{ij} x_j \Big/ \sum_{j \in N(i)} w_{ij} + \epsilon_i

    over a pixel's neighbours in the image: 1/6 for the four that share an edge, 1/12 for those at the
    corners. The missing ones among them are unknown too, so the equations are solved together.

    Parameters
    ----------
    image
        [channels, height, width].
    missing
        [height, width]. Where all are, there is nothing to fill them from, and they are 0.
    noise
        Standard deviation of what is added, in the units of the normalised image.
    generator
        Of the noise.
    """
    from scipy.sparse.linalg import splu

    count = int(missing.sum())
    filled = image.copy()
    if count == 0:
        return filled
    if count == missing.size:
        values = np.zeros((count, len(image)))
    else:
        matrix, known = _equations(image, missing)
        # Symmetric and diagonally dominant: no pivots, and an order made for that, at a tenth of the time.
        solver = splu(
            matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        values = solver.solve(known)
    filled[:, missing] = (values + noise * generator.standard_normal(values.shape)).T
    return filled


def _equations(image: Image, missing: NDArray[np.bool_]) -> tuple[Any, NDArray[np.float64]]:
    """Return the imputation's matrix, sparse [count, count], and its right-hand side, [count, channels]."""
    from scipy.sparse import csc_matrix

    height, width = missing.shape
    count = int(missing.sum())
    outside, known = -2, -1
    numbers = np.full((height + 2, width + 2), outside)
    numbers[1:-1, 1:-1] = np.where(missing, np.cumsum(missing).reshape(missing.shape) - 1, known)
    padded = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    y, x = np.nonzero(missing)
    every = np.arange(count)
    diagonal, right = np.zeros(count), np.zeros((count, len(image)))
    rows, columns, values = [every], [every], [diagonal]
    for down, across in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]:
        weight = 1 / 6 if 0 in (down, across) else 1 / 12
        place = y + 1 + down, x + 1 + across
        neighbour = numbers[place]
        diagonal += weight * (neighbour != outside)
        right += weight * (neighbour == known)[:, None] * padded[:, place[0], place[1]].T
        (unknown,) = np.nonzero(neighbour >= 0)
        rows.append(unknown)
        columns.append(neighbour[unknown])
        values.append(np.full(len(unknown), -weight))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return csc_matrix(entries, shape=(count, count)), right


def _area(predict: Predict, start: Image, end: Image, heat: Heat, steps: int, batch: int) -> float:
    """Return the area under the probability's curve while pixels of one image become those of another."""
    order = _order(-heat)

    def images() -> Iterator[Image]:
        changing = start.copy().reshape(len(start), -1)
        target = end.reshape(len(end), -1)
        done = 0
        for step in range(steps + 1):
            until = step * len(order) // steps
            pixels = order[done:until]
            changing[:, pixels] = target[:, pixels]
            done = until
            yield changing.reshape(start.shape).copy()

    scores = _scores(predict, images(), batch)
    return float((scores[:-1] + scores[1:]).mean() / 2)


def _order(values: Heat) -> NDArray[np.intp]:
    """Return pixels in ascending order, those that are equal as they are read."""
    return np.argsort(values, axis=None, kind="stable")


def _scores(predict: Predict, images: Iterable[Image], batch: int) -> NDArray[np.float64]:
    """Return the probabilities of images, which are made and predicted a batch at a time."""
    images = iter(images)
    found = []
    while some := list(islice(images, batch)):
        found.append(predict(np.stack(some)))
    return np.concatenate(found).astype(np.float64)
