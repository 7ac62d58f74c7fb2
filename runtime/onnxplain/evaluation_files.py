"""What an evaluation leaves in its folder: the journal that it resumes from, a table and a plot."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxplain.evaluation import Case, Journal, Measured, Outcome, Summary
from onnxplain.files import append_line, write_atomically
from onnxplain.metrics import CONTROL, METRICS
from onnxplain.outputs import OutputFolder

JOURNAL, TABLE, PLOT = "evaluation.jsonl", "evaluation.csv", "evaluation.png"


def read_journal(folder: Path) -> Journal:
    """Return what was measured before.

    What several lines say of the same classes of a picture is taken together; of other classes, the last
    line counts. A line that an interruption cut off, or that isn't ours, is left out: its picture is measured
    again.
    """
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    known: dict[str, dict[int, Measured]] = {}
    for key, classes in filter(None, map(_read_line, lines)):
        before = known.get(key, {})
        known[key] = (
            {index: _merged(before[index], one) for index, one in classes.items()}
            if before.keys() == classes.keys()
            else classes
        )
    return {key: tuple(classes.values()) for key, classes in known.items()}


def append_to_journal(folder: OutputFolder, case: Case, outcome: Outcome) -> None:
    """Write down what the plan asks of a picture, what was known of it before too."""
    classes = [{"index": one.index, "label": one.label, "scores": one.scores} for one in outcome.classes]
    line = {"picture": str(case.path), "key": outcome.key, "classes": classes}
    append_line(folder.add(JOURNAL), json.dumps(line, allow_nan=False))


def write_table(folder: OutputFolder, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> None:
    """Write a row for each picture, class, method and metric."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["picture", "class", "label", "method", "metric", "value"])
    for outcome in outcomes:
        for one in outcome.classes:
            start = [str(cases[outcome.number].path), one.index, one.label or ""]
            for method, values in one.scores.items():
                rows.writerows([*start, method, metric, repr(value)] for metric, value in values.items())
    write_atomically(folder.add(TABLE), text.getvalue().encode("utf-8", "backslashreplace"))


def write_plot(folder: OutputFolder, summaries: Sequence[Summary]) -> None:
    """Draw a panel for each metric: a method's mean and interval a line, the control's across all."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(one.metric for one in summaries))
    methods = len({one.method for one in summaries})
    figure = Figure(figsize=(6.4, len(metrics) * (0.9 + 0.28 * methods)), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        # The best on top.
        rows = [one for one in summaries if one.metric == metric][::-1]
        for place, row in enumerate(rows):
            low, high = _interval(row)
            is_control = row.method == CONTROL
            colour = "0.45" if is_control else "C0"
            errors = [[row.value.mean - low], [high - row.value.mean]]
            panel.errorbar(row.value.mean, place, xerr=errors, fmt="o", capsize=3, color=colour)
            if is_control:
                panel.axvspan(low, high, color="0.9", zorder=0)
        panel.set_yticks(range(len(rows)), [row.method for row in rows])
        panel.set_ylim(-0.6, len(rows) - 0.4)
        better = "more" if METRICS[metric].more_is_better else "less"
        panel.set_title(
            f"{METRICS[metric].title} ({better} is better), {rows[0].pictures} pictures",
            loc="left",
            fontsize=10,
        )
        panel.grid(axis="x", alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(folder.add(PLOT), picture.getvalue())


def _interval(row: Summary) -> tuple[float, float]:
    low, high = row.value.low, row.value.high
    return (row.value.mean if low is None else low), (row.value.mean if high is None else high)


def _read_line(line: str) -> tuple[str, dict[int, Measured]] | None:
    """Return a picture's key and its classes, by their index."""
    try:
        found: Any = json.loads(line)
        classes = [_read_class(one) for one in found["classes"]]
        return str(found["key"]), {one.index: one for one in classes}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _read_class(one: Any) -> Measured:
    index, label = one["index"], one["label"]
    if type(index) is not int or index < 0 or not isinstance(label, str | None):
        raise ValueError
    return Measured(index, label, _read_scores(one["scores"]))


def _read_scores(scores: Any) -> dict[str, dict[str, float]]:
    read = {
        method: {metric: float(value) for metric, value in values.items()}
        for method, values in scores.items()
    }
    if not all(math.isfinite(value) for values in read.values() for value in values.values()):
        raise ValueError
    return read


def _merged(before: Measured, after: Measured) -> Measured:
    """Return the scores of both; where both have one, the later."""
    scores = {
        method: {**before.scores.get(method, {}), **after.scores.get(method, {})}
        for method in {**before.scores, **after.scores}
    }
    return replace(after, scores=scores)
