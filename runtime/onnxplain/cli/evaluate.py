"""`onnxplain evaluate MODEL.onnx PATH... --method M`: which method to trust on a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._methods import METHOD_NAMES
from onnxplain.cli._pictures import find_pictures
from onnxplain.cli._progress import Progress
from onnxplain.cli._text import CLEAR_LINE, printable, table
from onnxplain.errors import BoxesError
from onnxplain.extras import require
from onnxplain.metrics import CONTROL, METRICS
from onnxplain.outputs import OutputFolder, check_outside

if TYPE_CHECKING:
    from torch import nn

    from onnxplain import Explainer
    from onnxplain.evaluation import Case, Estimate, Evaluator, Outcome, Plan, Summary
    from onnxplain.session import Device

_METHODS = ("gradcam", "gradcam++", "hirescam", "layercam", "eigencam")
_CHOICES = (*METHOD_NAMES, CONTROL)
_OLD = {"--methods": ("--method", _CHOICES), "--metrics": ("--metric", tuple(METRICS))}
"""Options that took several values, `--methods A B C`, and what they know by name."""


class _WithOldLists(click.Command):
    """A command that takes old spellings still, and says so: only names that they know are theirs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        found: list[str] = []
        old: dict[str, str] = {}
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                found += [arg, *rest]
                break
            name, _, value = arg.partition("=")
            if name not in _OLD:
                found.append(arg)
                continue
            old[name], known = _OLD[name]
            values = [value] if value else rest[:1]
            del rest[: 0 if value else 1]
            while rest and rest[0] in known:
                values.append(rest.pop(0))
            found += [part for one in values for part in (old[name], one)] or [old[name]]
        for name, new in old.items():
            click.echo(f"Warning: {name} A B will go with the next release; write {new} A {new} B.", err=True)
        return super().parse_args(ctx, found)


@click.command("evaluate", cls=_WithOldLists, short_help="Measure which method to trust on a model.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(_CHOICES),
    metavar="M",
    show_default=", ".join(_METHODS),
    help="How maps are made, as in `explain`. Repeatable. Maps of noise, the control, are measured too.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(list(METRICS)),
    metavar="M",
    show_default="all, those of boxes where there are boxes",
    help=f"How maps are measured: {', '.join(METRICS)}. Repeatable.",
)
@click.option(
    "--boxes",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where things are in the pictures: CSV with the columns file, x0, y0, x1, y1 and, if you like, "
    "class; or COCO's .json.",
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="evaluation",
    show_default=True,
    help="Folder for the table, the plot, and the journal that an interrupted call goes on from.",
)
@click.option("--layer", metavar="L", show_default="all together", help="One of the file's target layers.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the control, ROAD's noise and the resamples.",
)
@device_option
@click.option(
    "--sanity",
    metavar="SOURCE",
    help="The network that MODEL was exported from, as `export` takes it: see whether maps change when its "
    "layers are randomised. Needs PyTorch.",
)
@click.option(
    "--checkpoint",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The weights of the network of --sanity.",
)
def command(
    model: Path,
    paths: tuple[Path, ...],
    methods: tuple[str, ...],
    metrics: tuple[str, ...],
    boxes: Path | None,
    output: Path,
    layer: str | None,
    seed: int,
    device: Device,
    sanity: str | None,
    checkpoint: Path | None,
) -> None:
    """Measure how well maps of the explainer MODEL show what it uses, on the pictures at each PATH.

    A PATH is a picture or a folder, as `explain` takes it. Each method's maps are measured on each picture,
    and compared with maps of noise that are as coarse. Into the output folder go evaluation.csv, a row for
    each picture, class, method and metric, and evaluation.png.

    What is measured is written down at once, and isn't measured again: the same call goes on where an earlier
    one was interrupted, and one with other methods or metrics measures those alone. A picture that can't be
    read is reported and left out; the exit code is then 1.
    """
    metrics = _metrics(metrics, boxes)
    if checkpoint and not sanity:
        raise click.UsageError("--checkpoint goes with --sanity.", click.get_current_context())
    folder = OutputFolder(output, "evaluate")
    folder.keep(folder.earlier_files)
    check_outside(output, [model, *paths, boxes, checkpoint, Path(sanity) if sanity else None])
    require("evaluate")
    network = _network(sanity, checkpoint) if sanity else None
    from onnxplain import Explainer
    from onnxplain.evaluation import Evaluator, Plan, summarise
    from onnxplain.evaluation_files import PLOT, TABLE, write_plot, write_table
    from onnxplain.images import read_file

    chosen = dict.fromkeys(methods or _METHODS)
    plan = Plan(tuple(name for name in chosen if name != CONTROL), metrics, layer, seed)
    cases = _cases(paths, output, boxes)
    # Runs of one thread each, side by side, as many as there are cores.
    explainer = Explainer(model, device=device, threads=1 if len(cases) > 1 else None)
    evaluator = Evaluator(explainer, read_file(model), plan)
    evaluator.check_classes(cases)
    outcomes = _run(evaluator, cases, folder)
    summaries = summarise(outcomes, plan)
    if summaries:
        write_table(folder, cases, outcomes)
        write_plot(folder, summaries)
        click.echo(_report(summaries))
        click.echo(f"\nPicture by picture: {printable(str(output / TABLE))}")
        click.echo(f"As a plot: {printable(str(output / PLOT))}")
        if network:
            click.echo(f"\n{_check_sanity(explainer, network, cases, outcomes, plan, folder)}")
    elif outcomes:
        raise BoxesError("none of the pictures with boxes could be measured")
    if len(outcomes) < len(cases):
        click.get_current_context().exit(1)


def _metrics(metrics: Sequence[str], boxes: Path | None) -> tuple[str, ...]:
    """Return the metrics to measure, those with boxes where there are some."""
    if not metrics:
        return tuple(name for name, metric in METRICS.items() if boxes or not metric.needs_boxes)
    for name in metrics:
        if METRICS[name].needs_boxes and not boxes:
            raise click.UsageError(f"{name} needs --boxes.", click.get_current_context())
    return tuple(dict.fromkeys(metrics))


def _cases(paths: Sequence[Path], output: Path, boxes: Path | None) -> list[Case]:
    from onnxplain.evaluation import Case
    from onnxplain.localization import assign, read_boxes

    pictures = [picture.path for picture in find_pictures(paths, output)]
    found = assign(read_boxes(boxes), pictures) if boxes else {}
    return [Case(path, tuple(found.get(number, ()))) for number, path in enumerate(pictures)]


def _run(evaluator: Evaluator, cases: Sequence[Case], folder: OutputFolder) -> list[Outcome]:
    """Measure what hasn't been; return the pictures that could be measured, in order."""
    from onnxplain.evaluation_files import append_to_journal, read_journal

    outcomes: list[Outcome] = []
    with Progress("Evaluating", len(cases)) as progress:
        parts = [progress.part() for _ in cases]

        def reach(number: int, fraction: float) -> None:
            parts[number].reach(fraction)

        try:
            for outcome in evaluator.run(cases, read_journal(folder.path), reach):
                part = parts[outcome.number]
                if outcome.error is not None:
                    progress.say_error(outcome.error)
                    part.drop()
                    continue
                if outcome.is_new:
                    append_to_journal(folder, cases[outcome.number], outcome)
                    part.finish()
                else:
                    part.drop()
                outcomes.append(outcome)
        except KeyboardInterrupt as error:
            error.add_note(f"{len(outcomes)} of {len(cases)} pictures are measured; the same call goes on.")
            raise
    if before := sum(not outcome.is_new for outcome in outcomes):
        click.echo(f"{before} of {len(cases)} pictures were measured before.", err=True)
    return sorted(outcomes, key=lambda outcome: outcome.number)


def _network(source: str, checkpoint: Path | None) -> nn.Module:
    """Load the source of --sanity."""
    if Path(source).suffix == ".onnx":
        raise click.UsageError(
            "--sanity takes a source in PyTorch: an .onnx file's layers can't be randomised.",
            click.get_current_context(),
        )
    require("export")
    from onnxplain_export import load_source

    return load_source(source, checkpoint=checkpoint).model


def _check_sanity(
    explainer: Explainer,
    network: nn.Module,
    cases: Sequence[Case],
    outcomes: Sequence[Outcome],
    plan: Plan,
    folder: OutputFolder,
) -> str:
    """Compare maps with those of randomised networks; return the table, a column for each stage."""
    from onnxplain_export.sanity import TABLE, check_sanity, write_similarities

    def say(step: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"{CLEAR_LINE}{step} ...", err=True, nl=False)

    pictures = [cases[outcome.number].path for outcome in outcomes]
    found = check_sanity(explainer, network, pictures, plan.methods, plan.layer, plan.seed, say)
    say("")
    folder.add(TABLE)
    write_similarities(folder.path, found)
    stages = list(dict.fromkeys((one.layers, one.of) for one in found))
    rows = [
        [method, *(f"{one.ranks:.2f}" for one in found if one.method == method)] for method in plan.methods
    ]
    headers = ["METHOD", *(f"{count} OF {total}" for count, total in stages)]
    shown = table(headers, rows, right=range(1, len(headers)), texts=[0])
    return f"RANK CORRELATION WITH THE ORIGINAL'S MAPS, BY LAYERS RANDOMISED\n{shown}"


def _report(summaries: Sequence[Summary]) -> str:
    """Return a table for each metric, the best method first, and what the columns are."""
    parts = []
    for metric in dict.fromkeys(one.metric for one in summaries):
        rows = [one for one in summaries if one.metric == metric]
        about = METRICS[metric]
        better = "MORE" if about.more_is_better else "LESS"
        parts.append(
            f"{about.title.upper()} ({better} IS BETTER), {rows[0].pictures} PICTURES\n"
            + table(
                ["METHOD", "MEAN", "LOW", "HIGH", "DIFF", "LOW", "HIGH", ""],
                [
                    [row.method, *_estimate(row.value), *_estimate(row.difference), row.verdict]
                    for row in rows
                ],
                right=range(1, 7),
                texts=[0],
            )
        )
    parts.append("DIFF is MEAN less random's, picture by picture; LOW to HIGH are 95 % intervals.")
    return "\n\n".join(parts)


def _estimate(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return [""] * 3
    return [
        "-" if value is None else f"{value:.3f}" for value in (estimate.mean, estimate.low, estimate.high)
    ]
