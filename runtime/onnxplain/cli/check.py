"""`onnxplain check MODEL.onnx PATH...`: whether a network gets its pictures as it was trained to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._pictures import find_pictures
from onnxplain.cli._progress import Progress
from onnxplain.cli._text import printable, table

if TYPE_CHECKING:
    from onnxplain import Preprocessing
    from onnxplain.checking import Check, Labelled
    from onnxplain.manifest import Activation
    from onnxplain.session import Device

_SHOWN = 8


@click.command("check", short_help="See whether a network gets pictures as it was trained to.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@device_option
def command(model: Path, paths: tuple[Path, ...], device: Device) -> None:
    """Count how many labelled pictures the explainer MODEL answers right, and how many it would with another
    crop, other levels or another order of colours.

    A PATH is a picture or a folder, as `explain` takes it. The folder that a picture is in names its class,
    by label or index: cats/1.jpg, dogs/2.jpg. Where no folder's name is a label, and there are as many
    folders as classes, they count in alphabetical order, as torchvision's ImageFolder counts them. A model of
    one class takes two folders: 1 or yes or its label, and another.
    """  # noqa: D205 (click shows the first paragraph whole)
    from onnxplain import Explainer, ImageError
    from onnxplain.checking import check_preprocessing, labelled_by_folder

    for path in paths:
        if not path.exists():
            raise ImageError(f"there is no file {path}")
    pictures = [picture.path for picture in find_pictures(paths, Path())]
    explainer = Explainer(model, device=device, threads=1)
    network = explainer.network
    labelled = labelled_by_folder(pictures, explainer.manifest.labels, network.num_classes)
    with Progress("Checking", 1) as progress:
        part = progress.part()
        found = check_preprocessing(network, labelled, lambda done, total: part.reach(done / total))
    for problem in found.problems:
        click.echo(f"Error: {printable(problem)}", err=True)
    click.echo(_report(found, labelled, explainer.manifest.activation))
    if found.problems:
        click.get_current_context().exit(1)


def _report(found: Check, labelled: Sequence[Labelled], activation: Activation) -> str:
    own, total = found.own, len(found.own.right)
    guess = f" ({own.spec.guess_in_words()})" if own.spec.guessed else ""
    answered = f"{own.count} of {total} pictures are answered right, with what the file does{guess}:"
    parts = [f"{answered}\n{own.spec.in_words()}"]
    if found.classes == 1:
        parts.append(_yes_or_no(labelled))
    elif activation == "sigmoid":
        parts.append(
            "The most likely class counts as the answer, though a picture may have several (sigmoid)."
        )
    if not found.others:
        parts.append("The file prepares pictures itself: of one without that, others are tried.")
        return "\n\n".join(parts)
    rows = [[str(trial.count), ", ".join(trial.changes_from(own))] for trial in found.others[:_SHOWN]]
    parts.append(table(["RIGHT", "WITH, IN PLACE OF THAT"], rows, right=[0], texts=[1]))
    parts.append(_advice(found))
    return "\n\n".join(parts)


def _yes_or_no(labelled: Sequence[Labelled]) -> str:
    """Return which folder is taken for the pictures of the only class."""
    names = {one.index: repr(printable(one.path.resolve().parent.name)) for one in labelled}
    yes, no = names.get(1, "none"), names.get(0, "none")
    return f"The model has one class: {yes} is yes, a probability of 0.5 or more, and {no} is no."


def _advice(found: Check) -> str:
    """Return what follows for the export."""
    own, best, advised = found.own, found.others[0], found.advised
    if not found.tells:
        if not own.count:
            return "None is answered right, whatever was tried: are these pictures of the model's classes?"
        return "All that was tried answers the same of them right: they are too few or too easy to tell."
    if best.count <= own.count:
        return "Nothing that was tried answers more of them right."
    if advised is own:
        return (
            f"The best answers {best.count - own.count} more right, which may be chance "
            f"(p = {best.chance_against(own):.2g}); more pictures tell."
        )
    more, chance = advised.count - own.count, f"p = {advised.chance_against(own):.1g}"
    answers = f"The best answers {more} more right, which isn't chance ({chance})."
    if advised.count < best.count:
        beyond = best.chance_against(advised)
        answers = (
            f"{more} more are answered right, which isn't chance ({chance}), with this alone:\n"
            f"{', '.join(advised.changes_from(own))}\n"
            f"What the best answers beyond that may be chance (p = {beyond:.2g})."
        )
    return f"{answers}\nExport again with --preprocessing FILE, and in the file\n{_statement(advised.spec)}"


def _statement(spec: Preprocessing) -> str:
    """Return a preprocessing as the object that `export` takes: all of it, so that nothing else is needed."""
    geometry, levels = (
        json.dumps({name: getattr(spec, name) for name in names})
        for names in (("color", "height", "width", "resize", "crop", "interpolation"), ("mean", "std"))
    )
    return f"{geometry[:-1]},\n {levels[1:]}"
