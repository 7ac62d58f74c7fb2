"""`onnxplain check MODEL.onnx PATH...`: whether a network gets its pictures as it was trained to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._pictures import find_pictures
from onnxplain.cli._progress import Progress
from onnxplain.cli._text import printable, table

if TYPE_CHECKING:
    from onnxplain import Preprocessing
    from onnxplain.checking import Check, Trial
    from onnxplain.session import Device

_SURE = 0.05
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
    folders as classes, they count in alphabetical order, as torchvision's ImageFolder counts them.
    """  # noqa: D205 (click shows the first paragraph whole)
    from onnxplain import Explainer
    from onnxplain.checking import check_preprocessing, labelled_by_folder

    pictures = [picture.path for picture in find_pictures(paths, Path())]
    explainer = Explainer(model, device=device, threads=1)
    network = explainer.network
    labelled = labelled_by_folder(pictures, explainer.manifest.labels, network.num_classes)
    with Progress("Checking", 1) as progress:
        part = progress.part()
        found = check_preprocessing(network, labelled, lambda done, total: part.reach(done / total))
    for problem in found.problems:
        click.echo(f"Error: {printable(problem)}", err=True)
    click.echo(_report(found))
    if found.problems:
        click.get_current_context().exit(1)


def _report(found: Check) -> str:
    own, total = found.own, len(found.own.right)
    guess = f" ({own.spec.guess_in_words()})" if own.spec.guessed else ""
    answered = f"{own.count} of {total} pictures are answered right, with what the file does{guess}:"
    parts = [f"{answered}\n{own.spec.in_words()}"]
    if not found.others:
        return "\n\n".join(
            [*parts, "The file prepares pictures itself: of one without that, others are tried."]
        )
    rows = [[str(trial.count), _difference(trial.spec, own.spec)] for trial in found.others[:_SHOWN]]
    parts.append(table(["RIGHT", "WITH, IN PLACE OF THAT"], rows, right=[0], texts=[1]))
    parts.append(_advice(own, found.others[0]))
    return "\n\n".join(parts)


def _difference(spec: Preprocessing, own: Preprocessing) -> str:
    steps = zip(spec.steps_in_words(), own.steps_in_words(), strict=True)
    return ", ".join(step for step, usual in steps if step != usual)


def _advice(own: Trial, best: Trial) -> str:
    """Return what follows for the export."""
    if best.count <= own.count:
        return "Nothing that was tried answers more of them right."
    chance = best.chance_against(own)
    if chance > _SURE:
        return (
            f"The best answers {best.count - own.count} more right, which may be chance (p = {chance:.2g}); "
            "more pictures tell."
        )
    changed = {
        name: getattr(best.spec, name)
        for name in ("color", "resize", "crop", "mean", "std")
        if getattr(best.spec, name) != getattr(own.spec, name) or name in own.spec.guessed
    }
    return (
        f"The best answers {best.count - own.count} more right, which isn't chance (p = {chance:.1g}).\n"
        f"Export again with --preprocessing FILE, and in the file\n{json.dumps(changed)}"
    )
