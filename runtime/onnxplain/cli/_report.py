"""The page of `explain --report`: what it shows, put together from what was explained."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from onnxplain.cli._explained import Asked, Explained, Finding
from onnxplain.cli._text import printable

if TYPE_CHECKING:
    from onnxplain import report
    from onnxplain.outputs import OutputFolder

PAGE, IMAGES = "report.html", "report-files"
EMBEDDED_PICTURES, EMBEDDED_MAPS = 100, 500
"""With more pictures, or maps of them, the images lie beside the page."""


def image_store(folder: OutputFolder, pictures: int, maps: int) -> Callable[[bytes], str]:
    """Return what stores the images of a report, in the page or beside it.

    Parameters
    ----------
    folder
        The folder of the page.
    pictures, maps
        How many pictures there are, and how many maps each of them will have.
    """
    from onnxplain.report_images import embedded, kept

    few = pictures <= EMBEDDED_PICTURES and pictures * maps <= EMBEDDED_MAPS
    return embedded if few else lambda image: kept(image, folder, IMAGES)


def write_report(done: Sequence[Explained], asked: Asked, problems: Sequence[str], total: int) -> None:
    """Write the page.

    Parameters
    ----------
    done
        The pictures that were explained; of `total`, if nothing came between.
    problems
        A line for each that can't be.
    """
    from onnxplain import report
    from onnxplain.files import write_atomically
    from onnxplain.report_images import embedded, ramp

    missing = total - len(done) - len(problems)
    problems = [
        *problems,
        *([f"Interrupted: {missing} of {total} pictures weren't explained."] * (missing > 0)),
    ]
    layers = dict.fromkeys(one.layer for one in done[0].findings)
    page = report.render(
        report.Report(
            model=printable(asked.model.name),
            methods=asked.methods,
            pictures=[_picture(one, asked) for one in done],
            facts=[
                ("pictures" if len(done) > 1 else "picture", str(len(done))),
                ("methods" if len(asked.methods) > 1 else "method", ", ".join(asked.methods)),
                ("layers" if len(layers) > 1 else "layer", ", ".join(map(printable, layers))),
                *((name.replace("_", " "), "yes") for name, value in asked.options.items() if value is True),
            ],
            ramp=embedded(ramp(asked.colormap)),
            problems=[printable(line) for line in problems],
            predicted=asked.targets is None,
        )
    )
    write_atomically(asked.folder.add(PAGE), page.encode("utf-8", "replace"))


def _picture(done: Explained, asked: Asked) -> report.Picture:
    from onnxplain import report

    by_class: dict[int, list[Finding]] = {}
    for one in done.findings:
        by_class.setdefault(one.index, []).append(one)
    answers = [_answer(found) for found in by_class.values()]
    height, width = done.size
    return report.Picture(
        printable(str(done.picture.path)),
        width,
        height,
        done.thumbnail or "",
        sorted(answers, key=lambda answer: -answer.logit),
        done.seen,
    )


def _answer(found: Sequence[Finding]) -> report.Answer:
    from onnxplain import report

    first = found[0]
    return report.Answer(
        first.index,
        None if first.label is None else printable(first.label),
        first.logit,
        first.probability,
        [
            report.Map(one.heat or "", one.boxes, quote(os.fsencode(one.overlay)) if one.overlay else None)
            for one in found
        ],
    )
