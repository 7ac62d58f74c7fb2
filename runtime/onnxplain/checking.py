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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import ImageError, ModelError, TargetError
from onnxplain.images import read_image
from onnxplain.manifest import IMAGENET, Color, Preprocessing
from onnxplain.network import Network
from onnxplain.pipeline import in_order
from onnxplain.preprocessing import preprocess

SURE = 0.05
"""How likely a difference by chance may be, and still count."""
_LISTED = 3
"""Folders that an error names."""


@dataclass(frozen=True)
class Labelled:
    """A picture, and its class's index; where there is one class, 1 for its pictures and 0 for others."""

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

    def changes_from(self, other: Trial) -> list[str]:
        """Return a phrase for each of the steps, of colours, resize and levels, that isn't the other's."""
        steps = zip(self.spec.steps_in_words(), other.spec.steps_in_words(), strict=True)
        return [step for step, usual in steps if step != usual]


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
    classes
        How many the network has.
    """

    own: Trial
    others: Sequence[Trial]
    problems: Sequence[str]
    classes: int

    @property
    def advised(self) -> Trial:
        """What is better than the file's own beyond chance, and as good as the best; else the file's own."""
        return _nearest_of_the_best(self.own, self.others)

    @property
    def tells(self) -> bool:
        """Whether any picture is answered right in one way and wrong in another."""
        return any((trial.right != self.own.right).any() for trial in self.others)


def _nearest_of_the_best(own: Trial, others: Sequence[Trial]) -> Trial:
    """Return the trial nearest to a file's own, of those that are as good as the best for all that is known.

    The file's own where what the best has over it may be chance, and none that may be better by chance.
    """
    best = max([own, *others], key=lambda trial: trial.count)
    if own.chance_against(best) > SURE:
        return own
    as_good = [
        trial
        for trial in others
        if trial.count > own.count and trial.chance_against(own) <= SURE and trial.chance_against(best) > SURE
    ]
    return min(as_good, key=lambda trial: (_distance(trial, own), -trial.count))


def _distance(trial: Trial, own: Trial) -> tuple[int, bool]:
    """Return what makes a trial farther from a file's own: steps changed, then a crop."""
    return len(trial.changes_from(own)), trial.spec.crop != "none"


def labelled_by_folder(
    pictures: Sequence[Path], labels: Sequence[str] | None, num_classes: int | None
) -> list[Labelled]:
    """Return pictures with the classes that the folders they are in name, by label or index.

    Labels are read leniently: case counts no more than the sign between words. Where no name is one of a
    class, and there are as many folders as classes, the folders count in alphabetical order, as in
    torchvision's ImageFolder.

    A model of a single class answers yes or no. It takes two folders, one of which has the class's label or
    is called 1 or yes, or the other 0 or no; else the first in alphabetical order is no.

    Raises
    ------
    TargetError
        A folder's name is no class, or the label of several; or there aren't two folders for a single class.
    """
    names = [path.resolve().parent.name for path in pictures]
    folders = sorted(set(names))
    if num_classes is None and labels:
        num_classes = len(labels)
    if num_classes == 1:
        answers = _yes_or_no(folders, labels)
        return [Labelled(path, answers[name]) for path, name in zip(pictures, names, strict=True)]
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


def _yes_or_no(folders: Sequence[str], labels: Sequence[str] | None) -> dict[str, int]:
    """Return what two folders' names answer to the one class that there is, 1 for yes."""
    label = {_plain(name) for name in labels or ()}
    words = {"0": -1, "no": -1, "1": 1, "yes": 1, **dict.fromkeys(label, 2)}
    meanings = {name: words.get(_plain(name), 0) for name in folders}
    if len(folders) != 2 or set(meanings.values()) == {2}:
        listed = ", ".join([*map(repr, folders[:_LISTED]), *(["..."] if len(folders) > _LISTED else [])])
        raise TargetError(
            "the model has one class, and answers yes or no; put that class's pictures into a folder 1 and "
            f"others into a folder 0 (these are in {listed})"
        )
    no, yes = sorted(folders, key=lambda name: (meanings[name], name))
    return {no: 0, yes: 1}


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

    Levels and colours are varied first, and with those that `Check.advised` would choose the resize and the
    crop. The answer is the class of the highest logit; that of a single class yes, from 0.5 on.

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
    ModelError
        There is a single class, and no probability of it.
    """
    rounds = _Rounds(network, pictures, progress, 1 if network.manifest.pixels else 3)
    (own,) = rounds.next([network.input])
    if network.manifest.pixels:
        return Check(own, (), rounds.problems, rounds.classes)
    levels = rounds.next(other_levels(network.input, *rounds.statistics()))
    crops = rounds.next(other_crops(_nearest_of_the_best(own, levels).spec))
    others = sorted([*levels, *crops], key=lambda trial: (-trial.count, _distance(trial, own)))
    return Check(own, others, rounds.problems, rounds.classes)


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
        self.classes = 0

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
            return [self._answer(pixels)]
        tensors = [preprocess(pixels, spec)[0] for spec in specs]
        if specs == [self._network.input]:
            mean, std = np.array(specs[0].mean), np.array(specs[0].std)
            levels = tensors[0] * std[:, None, None] + mean[:, None, None]
            self._moments.append((float(levels.mean()), float(np.square(levels).mean())))
        # One by one: a file's batch may be as dear as its images, and threads run side by side.
        return [self._answer(tensor) for tensor in tensors]

    def _answer(self, image: NDArray[Any]) -> int:
        """Return the most likely class; of a single one, whether it is as likely as not."""
        (logits,) = self._network.predict(image[None])
        self.classes = len(logits)
        if self.classes > 1:
            return int(logits.argmax())
        if self._network.manifest.activation != "sigmoid":
            raise ModelError(
                "the model has one class and no probability of it, so nothing says what it answers; export "
                "it again with --activation sigmoid"
            )
        return int(logits[0] >= 0)  # where the probability is 0.5 or more


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
    return _unlike(spec, found)


def other_crops(spec: Preprocessing) -> list[Preprocessing]:
    """Return a preprocessing with the usual other resizes and crops."""
    shorter = min(spec.height, spec.width)
    found = [
        replace(spec, resize=None, crop="none"),
        replace(spec, resize=shorter, crop="center"),
        replace(spec, resize=round(shorter / 0.875), crop="center"),
    ]
    return _unlike(spec, found)


def _unlike(spec: Preprocessing, found: Sequence[Preprocessing]) -> list[Preprocessing]:
    """Return those that do something else to a picture than `spec` and than each other."""
    by_words = {one.in_words(): one for one in reversed(found)}
    by_words.pop(spec.in_words(), None)
    return list(by_words.values())[::-1]
