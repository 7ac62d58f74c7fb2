"""`onnxplain bench MODEL.onnx`: what an explanation costs, on this machine, with this file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._size import read_size
from onnxplain.cli._text import CLEAR_LINE, facts, file_size, table

if TYPE_CHECKING:
    from onnxplain.bench import Costs, Latency, Ratio
    from onnxplain.session import Device


@click.command("bench", short_help="Measure what an explanation costs here.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("picture", required=False, type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(min=5), default=50, show_default=True, help="Runs of each.")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 4, 8),
    show_default=True,
    help="A batch size for the throughput. Repeatable.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    multiple=True,
    show_default="1 and one a core",
    help="A number of threads for the throughput. Repeatable.",
)
@click.option("--size", metavar="SIZE", callback=read_size, help="As `explain` takes it.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON; times in seconds.")
def command(
    model: Path,
    picture: Path | None,
    rounds: int,
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    size: tuple[int, int] | None,
    device: Device,
    as_json: bool,
) -> None:
    """Measure what the explainer MODEL costs on this machine.

    A plain prediction, an explanation of the most likely class, and one of the top five take turns; then
    the way from the file PICTURE to its overlay, stage by stage (without one, of a JPEG of 500x375); then
    how many pictures a second the network explains, by batch and threads.
    """
    from onnxplain.bench import Subject, machine, measure_costs, measure_throughput
    from onnxplain.pipeline import cores

    subject = Subject(model, device, size, picture or _photograph())
    _say("Measuring latencies ...")
    costs = measure_costs(subject, rounds)
    throughput = []
    for count in threads or sorted({1, cores()}):
        for batch in batches:
            _say(f"Measuring throughput, {count} threads, batches of {batch} ...")
            rate = measure_throughput(subject, count, batch, seconds=1.0)
            throughput.append({"threads": count, "batch": batch, "pictures_per_second": rate})
    _say("")
    if as_json:
        click.echo(
            json.dumps(
                {
                    "model": str(model),
                    "bytes": model.stat().st_size,
                    "machine": machine(),
                    **asdict(costs),
                    "throughput": throughput,
                },
                indent=2,
            )
        )
        return
    click.echo(_report(model, machine(), costs, throughput))


def _photograph() -> bytes:
    """Return a JPEG of soft shapes, as photographs are."""
    import numpy as np

    from onnxplain.opencv import cv2

    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    shapes = cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(".jpg", shapes)[1].tobytes())


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"{CLEAR_LINE}{text}", err=True, nl=False)


def _report(model: Path, machine: dict[str, str], costs: Costs, throughput: list[dict[str, Any]]) -> str:
    versions = [f"{name} {found}" for name, found in machine.items() if name not in _PLACES]
    memory = "-" if costs.peak_memory is None else file_size(costs.peak_memory)
    about = facts(
        [
            ("file", f"{model}, {file_size(model.stat().st_size)}"),
            ("machine", ", ".join([machine["processor"], f"{machine['cores']} cores", machine["system"]])),
            ("with", ", ".join(versions)),
            ("on", ", ".join(costs.providers)),
            ("peak memory", memory),
        ]
    )
    latencies = [
        [name, *_milliseconds(latency), _times(costs.ratios.get(name))]
        for name, latency in costs.latencies.items()
    ]
    stages = [[name, *_milliseconds(latency)] for name, latency in costs.stages.items()]
    rates = [
        [str(row["threads"]), str(row["batch"]), f"{row['pictures_per_second']:.1f}"] for row in throughput
    ]
    quantiles = ["MEDIAN", "P90", "P99"]
    return "\n\n".join(
        [
            about,
            table(["ONE PICTURE, MS", *quantiles, "x PREDICTION (QUARTILES)"], latencies, right=[1, 2, 3]),
            table(["FROM PICTURE TO OVERLAY, MS", *quantiles], stages, right=[1, 2, 3]),
            table(["THREADS", "BATCH", "EXPLAINED A SECOND"], rates, right=[0, 1, 2]),
        ]
    )


_PLACES = {"system", "processor", "cores"}


def _milliseconds(latency: Latency) -> list[str]:
    return [f"{1e3 * seconds:.2f}" for seconds in (latency.median, latency.p90, latency.p99)]


def _times(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
