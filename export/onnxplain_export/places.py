"""Whether the tokens of a layer stand for places of the image, in rows: queries and latents do not.

A grid can't be told by how many tokens there are. So the network sees pictures in which a few places are
changed, and a row of tokens is a grid where the tokens of those places are the ones that move most.

Attention carries a change to all tokens, layer after layer, until deep in a network all move as much. What it
has carried is therefore put back after every layer that is a grid: the next one takes in the tokens of the
changed places changed, and the others as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from onnxplain_export.feature_map import Array, FeatureMap

# A change that lies in one of so many places leaves the others to be compared with.
_ONE_IN = 8
_CHANGES = 24
# By chance alone hardly a row of queries passes.
_DEVIATIONS = 5.5
# One change of each of so few places would have to be seen without fail.
_FEW = 10


@dataclass(frozen=True)
class _Trials:
    """The pictures for grids of one size."""

    first: int
    """The number of the first of them."""
    cells: Array
    """The places that are changed together, [pictures, places]."""
    repeats: int
    """How often that is done, each time with other noise."""

    def __len__(self) -> int:
        return len(self.cells) * self.repeats


class Places:
    """Pictures with changed places, for each size of grid some, and what they say of layers.

    Parameters
    ----------
    sizes
        Height and width of the grids in question.
    image_size
        Height and width of the image.
    """

    def __init__(self, sizes: Iterable[tuple[int, int]], image_size: tuple[int, int]) -> None:
        self._image_size = image_size
        self._trials: dict[tuple[int, int], _Trials] = {}
        count = 1
        for size in sorted(set(sizes)):
            cells = _changed_cells(size[0] * size[1])
            trials = _Trials(count, cells, _repeats(cells.size))
            self._trials[size] = trials
            count += len(trials)
        self._changed = np.zeros((count, *image_size), bool)
        self._noise_of = np.zeros(count, int)
        for size, trials in self._trials.items():
            rows, columns = self._cell_of_pixels(size)
            for index in range(len(trials)):
                repeat, number = divmod(index, len(trials.cells))
                changed = np.isin(rows[:, None] * size[1] + columns, trials.cells[number])
                if trials.repeats > 1:
                    changed &= self._quarter_of_pixels(size) == repeat % 4
                self._changed[trials.first + index] = changed
                self._noise_of[trials.first + index] = 1 + repeat
        self._carried: dict[tuple[int, int], Array] = {}

    def images(self, channels: int) -> Array:
        """Return the pictures, [images, channels, height, width]: noise, and it with changed places."""
        shape = (1 + int(self._noise_of.max()), channels, *self._image_size)
        noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        images = noise[self._noise_of]
        np.copyto(images, noise[0], where=~self._changed[:, None])
        return images

    def changed_tokens(self, maps: FeatureMap) -> Array:
        """Say which tokens stand for places that are changed, bool [images, tokens]; no others may move."""
        if maps.size not in self._carried:
            rows, columns = self._cell_of_pixels(maps.size)
            touched = np.zeros((len(self._changed), maps.height, maps.width), bool)
            for image, changed in zip(touched, self._changed, strict=True):
                ys, xs = np.nonzero(changed)
                image[rows[ys], columns[xs]] = True
            self._carried[maps.size] = touched.reshape(len(touched), -1)
        return np.pad(self._carried[maps.size], [(0, 0), (maps.prefix, maps.suffix)])

    def of_grid(self, size: tuple[int, int]) -> slice:
        """Return which of the images change places of a grid of some size."""
        trials = self._trials[size]
        return slice(trials.first, trials.first + len(trials))

    def read(self, maps: FeatureMap, moved: Array) -> FeatureMap | None:
        """Say how a row of tokens is a grid, by which of them move; None where it is none.

        Parameters
        ----------
        maps
            The grid in question; how its other tokens stand before and behind it is found.
        moved
            How far each token moves in the images that change the grid's places, [images, tokens].
        """
        trials = self._trials[maps.size]
        others = maps.prefix + maps.suffix
        count = maps.height * maps.width
        moved = moved / np.maximum(moved.mean(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        # The tokens of the changed places move most, so that is where the grid begins, if anywhere.
        cells = np.tile(trials.cells, (trials.repeats, 1))
        sums = [np.take_along_axis(moved[:, first:], cells, axis=1).sum() for first in range(others + 1)]
        # Where it can't be told, other tokens come first.
        prefix = max(range(others + 1), key=lambda first: (sums[first], first))
        apart = _apart(trials.cells, maps.size)
        repeats = np.split(moved[:, prefix : prefix + count], trials.repeats)
        ranks = np.concatenate([_ranks(repeat, trials.cells, apart) for repeat in repeats])
        if ranks.mean() < min(1.0, 0.5 + _DEVIATIONS * 12**-0.5 * cells.size**-0.5):
            return None
        return replace(maps, prefix=prefix, suffix=others - prefix)

    def _cell_of_pixels(self, size: tuple[int, int]) -> tuple[Array, Array]:
        """Return the row of a grid that each row of pixels lies in, and the same of columns."""
        rows, columns = (
            np.arange(pixels) * side // pixels for side, pixels in zip(size, self._image_size, strict=True)
        )
        return rows, columns

    def _quarter_of_pixels(self, size: tuple[int, int]) -> Array:
        """Return which quarter of its place each pixel lies in, from 0 to 3."""
        rows, columns = self._cell_of_pixels((2 * size[0], 2 * size[1]))
        quarters: Array = rows[:, None] % 2 * 2 + columns % 2
        return quarters


def _repeats(count: int) -> int:
    """Say how often all changes are made: of few places each quarter is changed, by other noise.

    Queries that happen to heed a place each don't heed all of its quarters alike.
    """
    return 1 if count > _FEW else 4 * -(-_CHANGES // (4 * count))


def _changed_cells(count: int) -> Array:
    """Choose places of a grid, [images, places]; none is changed twice."""
    together = max(1, count // _ONE_IN)
    images = min(-(-_CHANGES // together), count // together)
    chosen = np.random.default_rng(count).permutation(count)[: images * together]
    return chosen.reshape(images, together)


def _apart(cells: Array, size: tuple[int, int]) -> Array:
    """Say which places are left to compare with, bool [images, places].

    Convolutions carry a change to the places around it: those don't count, unless there are no others.
    """
    height, width = size
    changed = np.zeros((len(cells), height + 2, width + 2), bool)
    rows, columns = np.divmod(cells, width)
    index = np.arange(len(cells))[:, None]
    changed[index, rows + 1, columns + 1] = True
    near = np.zeros((len(cells), height, width), bool)
    for down in range(3):
        for right in range(3):
            near |= changed[:, down : down + height, right : right + width]
    near[near.all(axis=(1, 2))] = changed[:, 1:-1, 1:-1][near.all(axis=(1, 2))]
    return ~near.reshape(len(cells), -1)


def _ranks(moved: Array, cells: Array, apart: Array) -> Array:
    """Return where changed tokens stand among others, and among themselves in other images: 1 is first.

    Parameters
    ----------
    moved
        How far each token of the grid moves, [images, places].
    cells
        The changed places, [images, changed].
    apart
        Which are left to compare with, bool [images, places].
    """
    ranks = []
    for index, chosen in enumerate(cells):
        own = moved[index, chosen]
        ranks.append(_share_below(own[:, None], moved[index, apart[index]][None]))
        if len(cells) > 1:
            elsewhere = np.where(apart[:, chosen], moved[:, chosen], np.nan).T
            ranks.append(_share_below(own[:, None], elsewhere))
    found: Array = np.concatenate(ranks)
    return found[~np.isnan(found)]


def _share_below(own: Array, others: Array) -> Array:
    """Return what share of some others a number is above, ties counted by half; NaN ones don't count."""
    counted = (~np.isnan(others)).sum(axis=1)
    below = (own > others).sum(axis=1) + 0.5 * (own == others).sum(axis=1)
    return np.where(counted > 0, below / np.maximum(counted, 1), np.nan)
