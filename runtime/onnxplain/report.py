"""The report of `onnxplain explain --report`: one HTML page to look through many explanations with.

The page is rendered from what it shows, and needs nothing else: its images are in data: URLs, or in a folder
beside it. File names and labels are escaped, whatever they hold, and the page's Content-Security-Policy lets
no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from onnxplain.extras import require

Box = tuple[int, int, int, int]
"""x0, y0, x1 and y1 in pixels of the picture, the ends not included."""

_BOXES = 8
"""Of each map, at most: maps of single pixels have hundreds of regions."""
_BARS = 3


@dataclass(frozen=True)
class Map:
    """Why a class, by one method: the heatmap's URL, its boxes, and the link to the whole overlay."""

    heat: str
    boxes: Sequence[Box] = ()
    overlay: str | None = None


@dataclass(frozen=True)
class Answer:
    """A class of a picture, with a map for each method."""

    index: int
    label: str | None
    logit: float
    probability: float | None
    maps: Sequence[Map]

    @property
    def name(self) -> str:
        """What the page calls the class."""
        return f"class {self.index}" if self.label is None else self.label

    @property
    def score(self) -> str:
        """Its probability, or its logit where it has none."""
        return f"{self.logit:.2f}" if self.probability is None else f"{self.probability:.1%}"

    @property
    def confidence(self) -> float:
        """What pictures are sorted by."""
        return self.logit if self.probability is None else self.probability


@dataclass(frozen=True)
class Picture:
    """A picture of `width` x `height` pixels, the URL of its thumbnail, and what was answered to it."""

    path: str
    width: int
    height: int
    thumbnail: str
    answers: Sequence[Answer]
    """The likeliest first."""
    seen: Box | None = None
    """What the network saw of it; None for all."""

    @property
    def is_cropped(self) -> bool:
        """Whether the network saw a part of it only."""
        return self.seen not in (None, (0, 0, self.width, self.height))


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Parameters
    ----------
    model
        The explainer's name.
    methods
        Their names, in the order of each class's maps.
    pictures
        In the order in which they are shown first.
    facts
        Names and values for the line under the title.
    problems
        A line for each picture that isn't there.
    ramp
        URL of the colours from no heat to most.
    predicted
        The first answer to a picture is the network's prediction, not the likeliest of some classes that
        were asked for.
    """

    model: str
    methods: Sequence[str]
    pictures: Sequence[Picture]
    facts: Sequence[tuple[str, str]]
    ramp: str
    problems: Sequence[str] = ()
    predicted: bool = True


def render(report: Report) -> str:
    """Return the page.

    Raises
    ------
    MissingDependencyError
        jinja2 isn't installed.
    """
    require("report")
    from jinja2 import Environment, StrictUndefined

    source = files("onnxplain").joinpath("report_page.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(source).render(
        report=report,
        policy=_policy(source),
        classes=_classes(report.pictures),
        has_probabilities=any(one.answers[0].probability is not None for one in report.pictures),
        details=_details,
        base_name=lambda path: re.split(r"[/\\]", path)[-1],
        boxes_shown=_BOXES,
        bars_shown=_BARS,
    )


def _policy(source: str) -> str:
    """Return the Content-Security-Policy of the page: its own style and program, and images."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", source, flags=re.DOTALL)
        )
        for tag in ("style", "script")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'"
    )


def _classes(pictures: Sequence[Picture]) -> list[tuple[int, str, int]]:
    """Return index, name and number of pictures of each first answer, the most frequent first."""
    names = {one.answers[0].index: one.answers[0].name for one in pictures}
    counts = Counter(one.answers[0].index for one in pictures)
    return [(index, names[index], count) for index, count in counts.most_common()]


def _details(picture: Picture) -> dict[str, Any]:
    """Return what the page reads when a picture is opened; the first heat is in its card already."""
    return {
        "answers": [
            {
                "name": answer.name,
                "score": answer.score,
                "probability": answer.probability,
                "logit": f"{answer.logit:.2f}",
                "maps": [
                    {
                        "heat": None if (row, column) == (0, 0) else one.heat,
                        "boxes": list(one.boxes[:_BOXES]),
                        "overlay": one.overlay,
                    }
                    for column, one in enumerate(answer.maps)
                ],
            }
            for row, answer in enumerate(picture.answers)
        ]
    }
