"""`onnxplain evaluate MODEL.onnx PATH... --methods M...`: which method to trust on a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._methods import METHOD_NAMES
from onnxplain.cli._pictures import find_pictures
from onnxplain.cli._text import printable, table
from onnxplain.extras import require
from onnxplain.metrics import CONTROL, METRICS

if TYPE_CHECKING:
    from onnxplain.evaluation import Case, Estimate, Evaluator, Outcome, Plan, Summary
    from onnxplain.session import Device

_CLEAR_LINE = "\r\x1b[K"
_LISTS = ("--methods", "--metrics")
_METHODS = ("gradcam", "gradcam++", "hirescam", "layercam", "eigencam")


class _Lists(click.Command):
    """A command whose options of several values take them as `--methods A B C` too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = None
        for number, arg in enumerate(args):
            if arg == "--":
                spread += args[number:]
                break
            if arg.startswith("-"):
                option = arg if arg in _LISTS else None
                if option and number + 1 < len(args) and not args[number + 1].startswith("-"):
                    continue  # it comes again with each of its values
            elif option:
                spread.append(option)
            spread.append(arg)
        return super().parse_args(ctx, spread)


@click.command("evaluate", cls=_Lists, short_help="Measure which method to trust on a model.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--methods",
    multiple=True,
    type=click.Choice([*METHOD_NAMES, CONTROL]),
    metavar="M...",
    show_default=" ".join(_METHODS),
    help="The methods, after the pictures: --methods gradcam layercam. Maps of noise, the control, are "
    "always measured too.",
)
@click.option(
    "--metrics",
    multiple=True,
    type=click.Choice(list(METRICS)),
    metavar="M...",
    show_default="all, those of boxes where there are boxes",
    help=f"Of {', '.join(METRICS)}.",
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
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random."
)
@device_option
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
) -> None:
    """Measure how well maps of the explainer MODEL show what it uses, on the pictures at each PATH.

    A PATH is a picture or a folder, as `explain` takes it. Each method's maps are measured on each picture,
    and compared with maps of noise that are as coarse. Into the output folder go evaluation.csv, a row for
    each picture, method and metric, and evaluation.png.

    What is measured is written down at once: the same call goes on where an earlier one was interrupted. A
    picture that can't be read is reported and left out; the exit code is then 1.
    """
    metrics = _metrics(metrics, boxes)
    require("evaluate")
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
    output.mkdir(parents=True, exist_ok=True)
    outcomes = _run(evaluator, cases, plan, output)
    if outcomes:
        summaries = summarise(outcomes, plan)
        write_table(output, cases, outcomes)
        write_plot(output, summaries)
        click.echo(_report(summaries))
        written = [printable(str(output / name)) for name in (TABLE, PLOT)]
        click.echo(f"\nPicture by picture: {written[0]}; as a plot: {written[1]}")
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


def _run(evaluator: Evaluator, cases: Sequence[Case], plan: Plan, output: Path) -> list[Outcome]:
    """Measure the pictures that haven't been; return those that could be, in order."""
    from onnxplain.evaluation_files import append_to_journal, read_journal

    known = read_journal(output, plan)
    outcomes = []
    is_shown = sys.stderr.isatty()
    with click.progressbar(
        evaluator.run(cases, known), len(cases), "Evaluating", file=sys.stderr, hidden=not is_shown
    ) as bar:
        for outcome in bar:
            if outcome.error is not None:
                click.echo(f"{_CLEAR_LINE * is_shown}Error: {printable(outcome.error)}", err=True)
                continue
            if outcome.key not in known:
                append_to_journal(output, cases[outcome.number], outcome)
            outcomes.append(outcome)
    return sorted(outcomes, key=lambda outcome: outcome.number)


def _report(summaries: Sequence[Summary]) -> str:
    """Return a table for each metric, the best method first."""
    tables = []
    for metric in dict.fromkeys(one.metric for one in summaries):
        rows = [one for one in summaries if one.metric == metric]
        about = METRICS[metric]
        title = f"{about.title.upper()} ({'MORE' if about.more_is_better else 'LESS'} IS BETTER)"
        headers = [title, "MEAN", "95 %", "MINUS RANDOM", "95 %", f"{rows[0].pictures} PICTURES"]
        cells = [[row.method, *_estimate(row.value), *_estimate(row.difference), row.verdict] for row in rows]
        tables.append(table(headers, cells, right=[1, 3]))
    return "\n\n".join(tables)


def _estimate(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["", ""]
    interval = "-" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
    return [f"{estimate.mean:.3f}", interval]
