"""Does a network get its pictures as it was trained to? Counted on labelled pictures, beside alternatives.

Nothing in a file says whether its preprocessing is right: a network answers all the same, only worse. So
labelled pictures are given to it as the file prepares them, and as the usual other ways would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import ImageError, TargetError
from onnxplain.images import read_image
from onnxplain.manifest import IMAGENET, Color, Preprocessing
from onnxplain.network import Network
from onnxplain.pipeline import in_order
from onnxplain.preprocessing import preprocess


@dataclass(frozen=True)
class Labelled:
    """A picture, and the index of its class."""

    path: Path
    index: int


@dataclass(frozen=True)
class Trial:
    """A preprocessing, and which of the pictures are answered right with it."""

    spec: Preprocessing
    right: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """How many are answered right."""
        return int(self.right.sum())

    def chance_against(self, other: Trial) -> float:
        """Return how likely two equally good ones differ by as much, by the sign test.

        What counts is the pictures that one answers right and the other wrong.
        """
        won, lost = int((self.right & ~other.right).sum()), int((other.right & ~self.right).sum())
        tail = sum(math.comb(won + lost, count) for count in range(max(won, lost), won + lost + 1))
        return float(min(Fraction(1), Fraction(2 * tail, 2 ** (won + lost))))


@dataclass(frozen=True)
class Check:
    """What a check found.

    Parameters
    ----------
    own
        With the file's own preprocessing.
    others
        With others, the best first; none where the file prepares pictures itself.
    problems
        A line for each picture that can't be read.
    """

    own: Trial
    others: Sequence[Trial]
    problems: Sequence[str]


def labelled_by_folder(
    pictures: Sequence[Path], labels: Sequence[str] | None, num_classes: int | None
) -> list[Labelled]:
    """Return pictures with the classes that the folders they are in name, by label or index.

    Labels are read leniently: case counts no more than the sign between words. Where no name is one of a
    class, and there are as many folders as classes, the folders count in alphabetical order, as in
    torchvision's ImageFolder.

    Raises
    ------
    TargetError
        A folder's name is no class, or the label of several.
    """
    names = [path.resolve().parent.name for path in pictures]
    folders = sorted(set(names))
    known = {name: _classes_named(name, labels, num_classes) for name in folders}
    if not any(known.values()) and len(folders) == num_classes:
        known = {name: [index] for index, name in enumerate(folders)}
    for name, indices in known.items():
        if len(indices) != 1:
            problem = f"the label of {len(indices)} classes" if indices else "no class of the model"
            raise TargetError(
                f"the folder {name!r} is {problem}; put a class's pictures into a folder with its label or "
                "index (onnxplain inspect MODEL.onnx --json lists the labels)"
            )
    return [Labelled(path, known[name][0]) for path, name in zip(pictures, names, strict=True)]


def _classes_named(name: str, labels: Sequence[str] | None, num_classes: int | None) -> list[int]:
    """Return the indices that a folder's name stands for."""
    found = [index for index, label in enumerate(labels or ()) if _plain(label) == _plain(name)]
    if not found and name.isascii() and name.isdigit() and (num_classes is None or int(name) < num_classes):
        return [int(name)]
    return found


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", " ", label.casefold()).strip()


def check_preprocessing(
    network: Network,
    pictures: Sequence[Labelled],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Check:
    """Count the right answers to labelled pictures, with a file's own preprocessing and with others.

    Levels and colours are varied first, and with the best of these the resize and the crop.

    Parameters
    ----------
    network
        An explainer's, `Explainer.network`.
    pictures
        The pictures and their classes.
    progress
        Called with how many pictures are done, of all rounds, and how many there will be.

    Raises
    ------
    ImageError
        None of the pictures can be read.
    """
    rounds = _Rounds(network, pictures, progress, 1 if network.manifest.pixels else 3)
    (own,) = rounds.next([network.input])
    if network.manifest.pixels:
        return Check(own, (), rounds.problems)
    levels = rounds.next(other_levels(network.input, *rounds.statistics()))
    best = max([own, *levels], key=lambda trial: trial.count)
    crops = rounds.next(other_crops(best.spec))
    return Check(own, sorted([*levels, *crops], key=lambda trial: -trial.count), rounds.problems)


class _Rounds:
    """Rounds over the pictures, in each of which the network gets them in several ways."""

    def __init__(
        self,
        network: Network,
        pictures: Sequence[Labelled],
        progress: Callable[[int, int], None],
        count: int,
    ) -> None:
        self._network, self._progress = network, progress
        self._readable = list(pictures)
        self._done, self._total = 0, count * len(pictures)
        self._moments: list[tuple[float, float]] = []
        self.problems: list[str] = []

    def next(self, specs: Sequence[Preprocessing]) -> list[Trial]:
        """Return the answers with each; a picture that can't be read is left out in the first round."""
        answers, readable = [], []
        is_first = self._done == 0
        with closing(in_order(lambda one: self._answers(one.path, specs), self._readable)) as calls:
            for one, call in zip(self._readable, calls, strict=True):
                self._done += 1
                self._progress(self._done, self._total)
                try:
                    answers.append(call.result())
                    readable.append(one)
                except ImageError as error:
                    if not is_first:
                        raise
                    self.problems.append(str(error))
        if not readable:
            raise ImageError(f"none of the pictures can be read; the first one: {self.problems[0]}")
        self._readable = readable
        right = np.array(answers) == np.array([[one.index] for one in readable])
        return [Trial(spec, column) for spec, column in zip(specs, right.T, strict=True)]

    def statistics(self) -> tuple[float, float]:
        """Return mean and standard deviation of the pictures' levels in [0, 1], after resize and crop."""
        mean, square = (sum(moment) / len(moment) for moment in zip(*self._moments, strict=True))
        return mean, math.sqrt(max(square - mean**2, 0))

    def _answers(self, path: Path, specs: Sequence[Preprocessing]) -> list[int]:
        """Return the class that each preprocessing of a picture leads to."""
        pixels = read_image(path)
        if self._network.manifest.pixels:
            return [int(self._network.predict(pixels[None]).argmax())]
        tensors = [preprocess(pixels, spec)[0] for spec in specs]
        if specs == [self._network.input]:
            mean, std = np.array(specs[0].mean), np.array(specs[0].std)
            levels = tensors[0] * std[:, None, None] + mean[:, None, None]
            self._moments.append((float(levels.mean()), float(np.square(levels).mean())))
        # One by one: a file's batch may be as dear as its images, and threads run side by side.
        return [int(self._network.predict(tensor[None]).argmax()) for tensor in tensors]


def other_levels(spec: Preprocessing, mean: float, std: float) -> list[Preprocessing]:
    """Return a preprocessing with the usual other normalisations, and each with red and blue exchanged.

    Parameters
    ----------
    spec
        The preprocessing.
    mean, std
        Statistics of the pictures in [0, 1]: networks are trained with their data's own.
    """
    plain, centred, own = (0.0, 1.0), (0.5, 0.5), (round(mean, 3), max(round(std, 3), 0.001))
    pairs = [((m,) * spec.channels, (s,) * spec.channels) for m, s in (plain, centred, own, (0.0, 1 / 255))]
    if spec.channels == 3:
        pairs.append((IMAGENET["mean"], IMAGENET["std"]))
    pairs.append((spec.mean, spec.std))
    colors: tuple[Color, ...] = ("RGB", "BGR") if spec.channels == 3 else (spec.color,)
    found = [replace(spec, color=color, mean=mean, std=std) for color in colors for mean, std in pairs]
    return list(dict.fromkeys(one for one in found if one != spec))


def other_crops(spec: Preprocessing) -> list[Preprocessing]:
    """Return a preprocessing with the usual other resizes and crops."""
    shorter = min(spec.height, spec.width)
    found = [
        replace(spec, resize=None, crop="none"),
        replace(spec, resize=shorter, crop="center"),
        replace(spec, resize=round(shorter / 0.875), crop="center"),
    ]
    return [one for one in found if (one.resize, one.crop) != (spec.resize, spec.crop)]
