"""What `explain` does with one picture, and what it keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from onnxplain.cli._pictures import Picture, overlay_name
from onnxplain.files import stamp

if TYPE_CHECKING:
    from onnxplain import Explainer, Explanation
    from onnxplain.boxes import Box
    from onnxplain.cli._progress import Part
    from onnxplain.images import Image
    from onnxplain.outputs import OutputFolder
    from onnxplain.overlay import Colormap


@dataclass(frozen=True)
class Asked:
    """What is asked of each picture: which classes, by which methods, and how it is drawn."""

    model: Path
    methods: Sequence[str]
    targets: Sequence[int | str] | None
    top: int | None
    options: dict[str, Any]
    """More that `Explainer.explain_classes` takes."""
    size: tuple[int, int] | None
    """What pictures are brought to; None for the file's own."""
    colormap: Colormap
    folder: OutputFolder
    overlays: bool
    """Whether they are written."""
    thumbnails: Callable[[bytes], str] | None = None
    """Stores a small picture for the report, and returns where it is."""

    @property
    def options_on_record(self) -> dict[str, Any]:
        """What was asked beyond classes and methods; a row names the layer itself."""
        return {**{name: value for name, value in self.options.items() if name != "layer"}, "size": self.size}

    def check(self, explainer: Explainer) -> None:
        """Check, before anything is written, that the file can be explained so.

        Raises
        ------
        MethodError
            It can't.
        """
        options = {name: value for name, value in self.options.items() if name != "common_scale"}
        for method in self.methods:
            explainer.check(method, **options)


@dataclass(frozen=True)
class Finding:
    """What is kept of an explanation: its picture and its maps are large, and let go."""

    rank: int | None
    index: int
    label: str | None
    logit: float
    probability: float | None
    method: str
    layer: str
    peak: tuple[int, int] | None
    boxes: list[Box]
    overlay: str | None
    """Its path from the output folder, with `/` between the parts."""
    heat: str | None

    @property
    def name(self) -> str:
        """The class, as the table names it."""
        known = self.label in (None, str(self.index))
        return str(self.index) if known else f"{self.index} {self.label}"

    @property
    def percentage(self) -> str:
        """Its probability, as the table has it."""
        return "-" if self.probability is None else f"{self.probability:.1%}"


@dataclass
class Explained:
    """A picture that is done: its height and width, its thumbnail, and its findings, method by method."""

    picture: Picture
    stamp: tuple[int, int]
    """Of its file."""
    size: tuple[int, int] = (0, 0)
    seen: tuple[int, int, int, int] = (0, 0, 0, 0)
    """What the network saw of it: x0, y0, x1 and y1 in its pixels, the ends not included."""
    thumbnail: str | None = None
    findings: list[Finding] = field(default_factory=list)


def explain_picture(
    explainer: Explainer, asked: Asked, picture: Picture, part: Part, stopped: Event
) -> Explained:
    """Explain a picture's classes by each method, and write its overlays.

    Of two explanations of a class, one is left out: two targets may be the same class. A method's maps are
    let go before those of the next are made.

    Methods of many predictions say how far they are, and end where it is `stopped`.
    """
    done = Explained(picture, stamp(picture.path))
    image: Image = picture.path
    targets, top = asked.targets, asked.top
    for number, method in enumerate(asked.methods):

        def step(done: int, total: int, number: int = number) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt
            part.reach((number + done / total) / len(asked.methods))

        found = explainer.explain_classes(
            image,
            targets,
            top=top,
            method=method,
            reduced=not asked.overlays,
            progress=step,
            **asked.options,
        )
        found = list({one.index: one for one in found}.values())
        if not done.findings:
            done.size = found[0].picture.size
            done.seen = _seen(found[0])
            targets, top = [one.index for one in found], None
            if asked.thumbnails:
                from onnxplain.report_images import thumbnail

                done.thumbnail = asked.thumbnails(thumbnail(found[0].picture))
            if asked.overlays and len(asked.methods) > 1:
                image = found[0].image  # decoded once
        while found:
            done.findings.append(_keep(found.pop(0), picture, asked))
    return done


def _seen(one: Explanation) -> tuple[int, int, int, int]:
    from onnxplain.heatmap import pixels_seen

    rows, columns = pixels_seen(one.view, one.picture.size)
    return columns.start, rows.start, columns.stop, rows.stop


def _keep(one: Explanation, picture: Picture, asked: Asked) -> Finding:
    from onnxplain.report_images import coloured_heat

    return Finding(
        one.rank,
        one.index,
        one.label,
        one.logit,
        one.probability,
        one.method,
        one.layer,
        one.peak(),
        one.boxes(),
        _save(one, picture, asked) if asked.overlays else None,
        asked.thumbnails(coloured_heat(one, asked.colormap)) if asked.thumbnails else None,
    )


def _save(one: Explanation, picture: Picture, asked: Asked) -> str:
    """Write an overlay; return its path from the folder. Among several methods, its own is named."""
    overlay = overlay_name(picture.stem, one.index, one.label)
    if len(asked.methods) > 1:
        overlay = overlay.with_name(f"{overlay.stem}.{one.method}.png")
    name = overlay.as_posix()
    one.save(asked.folder.add(name), asked.colormap)
    return name
