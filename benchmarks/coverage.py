"""Export a list of networks from random weights, verify each against PyTorch, and write a table.

`python benchmarks/coverage.py LIST` takes a file with a name a line, `torchvision:NAME` or `timm:NAME` (timm:
`pip install -c constraints.txt timm`). Each network runs in a process of its own (`coverage_network.py`), so
that a crash or a time-out is a row that says so. What was found is appended to files of JSON lines beside the
table; networks that are there already are skipped, so that a sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

WORKER = Path(__file__).with_name("coverage_network.py")
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime")
INTRODUCTION = """\
# Coverage

Networks of torchvision and timm, each exported from random weights and held against PyTorch. Every parameter
and batch-norm statistic is redrawn first: a fresh network has heads of zeros and layer scales of 1e-6, which
hide wrong gradients. Each row was measured in a process of its own.
"""
AUTOMATIC = """\
## At the automatic layer

The layer that `onnxplain export` picks, at the network's own input size: two images that the export hasn't
seen, three classes each, in onnxruntime against PyTorch's autograd, both in float32. A network is verified if
its gradients are not zero, their relative L2 error is at most 1e-4, and the export's own verification passed.
It allows the logits 1e-4, or more where PyTorch's in float32 are as far from its own in float64. *Rules*
is the largest relative error of the gradients against central differences of the logits, in float64.
"""
STEM = """\
## From the first layer

The same networks from their first convolution or patch embedding, through all their operators, at the
smallest input size of several that they take. A network is verified if the export's own verification passes:
the rules in float64 against central differences of the logits, by at most 1e-6 (*rules*), the file in float32
against the same graph in float64 (*gradients*), by at most 1e-4, or more where rounding alone moves the graph
as far, and loosely against autograd: a unit whose input is within rounding of zero may be on in one and off
in the other.
"""
COLUMNS = (
    "network",
    "parameters",
    "input",
    "layer",
    "path",
    "nodes added",
    "logits",
    "gradients",
    "rules",
    "seconds",
)

Record = dict[str, Any]


@click.command(help=__doc__)
@click.argument("names_file", metavar="LIST", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parents[1] / "docs" / "coverage.md",
    help="The table.  [default: docs/coverage.md]",
)
@click.option("--stem", is_flag=True, help="From the first layer, at a small input size.")
@click.option("--only", metavar="PATTERN", default="*", help="Names to run, such as 'timm:*vit*'.")
@click.option("--timeout", type=click.FloatRange(min=0), default=900, show_default=True, help="Seconds each.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Networks at a time.")
@click.option("--retry", is_flag=True, help="Run those again that are not verified.")
def main(
    names_file: Path, output: Path, stem: bool, only: str, timeout: float, jobs: int, retry: bool
) -> None:
    names = list(dict.fromkeys(names_file.read_text().split()))
    records_file = records_beside(output, stem=stem)
    known = read_records(records_file)
    finished = {name for name, record in known.items() if record["verified"] or not retry}
    waiting = [name for name in names if fnmatch(name, only) and name not in finished]
    for record in run_all(waiting, stem=stem, timeout=timeout, jobs=jobs):
        append_record(records_file, record)
        write_table(output, names)
    write_table(output, names)
    measured = [record for name, record in read_records(records_file).items() if name in names]
    click.echo(f"{summary(measured)}; the table is in {output}")


def run_all(names: Sequence[str], *, stem: bool, timeout: float, jobs: int) -> Iterator[Record]:
    """Run networks and yield their records as they finish, with progress on the terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as pool, Processes() as processes:
        task = progress.add_task("", total=len(names))
        running: dict[str, None] = {}

        def run(name: str) -> Record:
            running[name] = None
            progress.update(task, description=", ".join(running))
            return processes.run(name, stem=stem, timeout=timeout, threads=threads_each(jobs))

        for future in as_completed([pool.submit(run, name) for name in names]):
            record = future.result()
            del running[record["network"]]
            outcome = "verified" if record["verified"] else record["reason"]
            progress.console.print(f"{record['network']}: {outcome}", markup=False, highlight=False)
            progress.update(task, description=", ".join(running))
            progress.advance(task)
            yield record


def threads_each(jobs: int) -> int:
    """Return how many threads each of several processes may have."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


class Processes(contextlib.AbstractContextManager["Processes"]):
    """Processes that measure networks; none is left running behind the block."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, name: str, *, stem: bool, timeout: float, threads: int) -> Record:
        """Measure a network; what stops the process before it is through becomes the record's reason."""
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
            result = Path(folder) / "record.json"
            if self.stopped:
                return failure(name, "stopped")
            process = subprocess.Popen(
                [sys.executable, str(WORKER), name, str(result), *(["--stem"] if stem else [])],
                # Models that a killed process leaves behind go with the folder.
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "TMPDIR": folder},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            self.running.add(process)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                return failure(name, f"not through after {timeout:.0f} s", seconds=timeout)
            finally:
                kill(process)
                self.running.discard(process)
            if process.returncode == 0:
                record: Record = json.loads(result.read_text())
                return record
            errors.seek(0)
            return failure(name, how_it_ended(process.returncode, errors.read().decode(errors="replace")))

    def __exit__(self, *error: object) -> None:
        self.stopped = True
        for process in list(self.running):
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def failure(name: str, reason: str, *, seconds: float | None = None) -> Record:
    """Return the record of a network whose process didn't write one."""
    return {"network": name, "verified": False, "reason": reason, "seconds": seconds}


def how_it_ended(code: int, errors: str) -> str:
    """Say why a process ended without a record."""
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    lines = errors.strip().splitlines()
    return f"the process ended with exit code {code}: {lines[-1] if lines else 'no message'}"


def records_beside(output: Path, *, stem: bool) -> Path:
    """Return the file of records that belongs to a table."""
    return output.with_suffix(".stem.jsonl" if stem else ".jsonl")


def read_records(file: Path) -> dict[str, Record]:
    """Return the newest record of each network; a line that a stopped run left unfinished doesn't count."""
    records: dict[str, Record] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            records[record["network"]] = record
    return records


def append_record(file: Path, record: Record) -> None:
    """Append a record, on a line of its own whatever the file ends in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.exists() and not file.read_text().endswith("\n") and file.stat().st_size > 0
    with file.open("a") as stream:
        stream.write("\n" * unfinished + json.dumps(record) + "\n")


def write_table(output: Path, names: Sequence[str]) -> None:
    """Write the table of all records beside it, in the order of a list of names."""
    order = {name: index for index, name in enumerate(names)}
    parts = [INTRODUCTION, f"{versions()}\n"]
    for stem, text in ((False, AUTOMATIC), (True, STEM)):
        found = read_records(records_beside(output, stem=stem)).values()
        records = sorted(
            (record for record in found if record["network"] in order),
            key=lambda record: (record["network"].startswith("timm:"), order[record["network"]]),
        )
        if records:
            parts += [text, f"**{summary(records)}.**\n", table(records), reasons(records)]
    draft = output.with_name(f".{output.name}.draft")
    draft.write_text("\n".join(part for part in parts if part))
    draft.replace(output)


def summary(records: Sequence[Record]) -> str:
    """Return how many networks of each origin are verified."""
    counts = []
    for origin in ("torchvision", "timm"):
        own = [record["verified"] for record in records if record["network"].startswith(f"{origin}:")]
        if own:
            counts.append(f"{sum(own)} of {len(own)} {origin} networks verified")
    return ", ".join(counts) or "no networks measured"


def table(records: Sequence[Record]) -> str:
    """Return the rows of the verified networks, as Markdown."""
    rows = [cells(record) for record in records if record["verified"]]
    return markdown(COLUMNS, rows) if rows else ""


def reasons(records: Sequence[Record]) -> str:
    """Return why the others are not verified, as Markdown; nothing where all are."""
    rows = [
        (record["network"], f"`{record['layer']}`" if "layer" in record else "", record["reason"])
        for record in records
        if not record["verified"]
    ]
    return "### Not verified\n\n" + markdown(("network", "layer", "reason"), rows) if rows else ""


def cells(record: Record) -> tuple[str, ...]:
    """Return a verified network's row."""
    operators = record["operators"]
    kinds = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in operators.items())
    return (
        record["network"],
        f"{record['parameters'] / 1e6:.1f} M",
        "×".join(map(str, record["size"])),
        f"`{record['layer']}`",
        f"{sum(operators.values())}: {kinds}",
        str(record["nodes_added"]),
        *(f"{record[what]:.0e}" for what in ("logits", "gradients", "rules")),
        f"{record['seconds']:.0f}",
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def versions() -> str:
    """Return what the networks ran on."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package).partition('+')[0]}")
    cores = len(os.sched_getaffinity(0))
    return f"Measured with {', '.join(found)}; Python {platform.python_version()}, {cores} cores."


if __name__ == "__main__":
    main()
