"""How far an export is: its steps, how much is done as each begins, and a line that shows it.

How long a step takes is estimated by what it took of other networks, for the size of this one. Before it is
traced its size isn't known, and the shares are those of usual networks at their last layers.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

import onnx_ir as ir

from onnxplain.text import printable
from onnxplain_export.graph import downstream, static_dims

Callback = Callable[[str], None]

#: Seconds that steps took of resnet50, convnext_tiny, efficientnet_v2_s and vit_b_16 on two cores: medians.
USUAL = {"run": 3.0, "trace": 9.0, "differentiate": 1.5, "rules": 1.5, "compare": 3.0}
# And per unit of what they work on, from the same networks, and resnet50 at `layer1`: a billion products of
# the network on an image, a billion of those behind a layer, and a gigabyte of weights.
_TRACED_NODE = 0.02
_RUN, _SOURCE, _WRITTEN = 0.1, 0.25, 2.0
_DIFFERENCES, _DIFFERENCES_BESIDE_KINKS, _REFERENCE_BESIDE_KINKS = 0.6, 1.6, 0.9
_HALVED = 1.5
# So soon nobody wonders.
_QUIET_SECONDS = 3.0
_REFRESHED_SECONDS = 0.5
_BAR = 24


class Step(str):
    """A step of an export in a few words, as it begins."""

    done: float
    """The share of the work that was done before it."""
    share: float
    """Its own share."""
    seconds_left: float | None
    """How long the export may take from here; None where nothing is measured yet."""

    def __new__(
        cls, words: str, done: float = 0.0, share: float = 0.0, seconds_left: float | None = None
    ) -> Step:
        """Return the words with what is known of the whole."""
        step = super().__new__(cls, words)
        step.done, step.share, step.seconds_left = done, share, seconds_left
        return step


class Steps:
    """Tells a callback which step begins, and how far the whole is.

    Parameters
    ----------
    tell
        What is told; each step once.
    """

    def __init__(self, tell: Callback) -> None:
        self._tell = tell
        self._started = time.perf_counter()
        self._seconds = dict(USUAL)
        self._begun: list[str] = []

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Say how long the steps take of a network of this size, as far as that is known."""
        self._seconds |= seconds

    def begin(self, key: str, words: str) -> None:
        """Tell that a step begins."""
        before = sum(self._seconds[one] for one in self._begun)
        whole = before + sum(seconds for one, seconds in self._seconds.items() if one not in self._begun)
        elapsed = time.perf_counter() - self._started
        left = elapsed * (whole - before) / before if before else None
        self._begun.append(key)
        self._tell(Step(words, before / whole, self._seconds[key] / whole, left))


def expected_seconds(
    nodes: Iterable[ir.Node], graph: ir.Graph, layers: Iterable[ir.Value], *, is_half: bool
) -> dict[str, float]:
    """Return how long the steps of an export take, once its network is traced.

    Parameters
    ----------
    nodes
        Those of the network.
    graph
        Where they stand.
    layers
        What the gradients are those of.
    """
    nodes = list(nodes)
    whole = _products(nodes)
    differences = reference = 0.0
    for layer in layers:
        reached = downstream(graph, [layer])
        behind = [node for node in nodes if not reached.isdisjoint(node.outputs)]
        has_kinks = any(node.op_type in ("Relu", "MaxPool", "Clip", "LeakyRelu", "PRelu") for node in behind)
        differences += _products(behind) * (_DIFFERENCES_BESIDE_KINKS if has_kinks else _DIFFERENCES)
        reference += _products(behind) * (_REFERENCE_BESIDE_KINKS if has_kinks else 0)
    weights = (value.const_value for value in graph.initializers.values())
    size = sum(tensor.nbytes for tensor in weights if tensor is not None) / 1e9
    return {
        "trace": 2.0 + _TRACED_NODE * len(nodes),
        "differentiate": 0.2 + _RUN * whole + _WRITTEN * size,
        "rules": 0.2 + differences,
        "compare": 0.2 + _SOURCE * whole + reference,
        **({"half": 0.5 + _HALVED * (_RUN * whole + differences + reference)} if is_half else {}),
    }


def _products(nodes: Iterable[ir.Node]) -> float:
    """Return how many billions of numbers nodes multiply for an image, as far as the shapes are known."""
    return sum(_size(node.outputs[0]) * _summands(node) for node in nodes) / 1e9


def _size(value: ir.Value) -> int:
    return math.prod(dim for dim in static_dims(value) if dim is not None)


def _summands(node: ir.Node) -> int:
    """Return how many products a number is the sum of, that a node puts out."""
    if node.op_type in ("Conv", "ConvTranspose") and node.inputs[1] is not None:
        return math.prod(dim or 1 for dim in static_dims(node.inputs[1])[1:])
    if node.op_type in ("MatMul", "Gemm") and node.inputs[0] is not None:
        return (static_dims(node.inputs[0]) or [1])[-1] or 1
    return 0


def in_words(seconds: float) -> str:
    """Return a time that remains, roughly."""
    if seconds < 1.5:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


@contextmanager
def shown(stream: TextIO | None = None, *, quiet: float | None = None) -> Iterator[Callback]:
    """Give a callback that shows steps on a line of a terminal or notebook, and takes it away at the end.

    Parameters
    ----------
    stream
        The terminal; by default stderr. On anything else, such as a pipe, nothing is shown.
    quiet
        So many seconds nothing is shown; by default a few, in which small networks are done.
    """
    # As it is now: PyTorch's exporter runs with another one.
    stream = stream or sys.stderr
    if not _is_watched(stream):
        yield lambda words: None
        return
    line = _Line(stream, _QUIET_SECONDS if quiet is None else quiet)
    try:
        yield line.begin
    finally:
        line.end()


def _is_watched(stream: Any) -> bool:
    """Say whether somebody looks at a stream: it is a terminal, or a notebook's."""
    try:
        return bool(stream.isatty()) or type(stream).__module__.startswith("ipykernel")
    except (AttributeError, ValueError):  # there is no stderr, or it is closed
        return False


@contextmanager
def steps_of(progress: Callback | None) -> Iterator[Steps]:
    """Give the steps of an export; they are shown on a line where there is nobody to be told."""
    with shown() if progress is None else nullcontext(progress) as tell:
        yield Steps(tell)


class _Line:
    """A line on a terminal that moves while a step goes on, by how long it should take."""

    def __init__(self, stream: TextIO, quiet: float) -> None:
        self._stream = stream
        self._started = time.perf_counter()
        self._quiet = quiet
        self._step: Step | None = None
        self._began = self._started
        self._width = 0
        self._shown = 0.0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._thread.start()

    def begin(self, words: str) -> None:
        with self._lock:
            step = words if isinstance(words, Step) else Step(words)
            # The names of layers are those of a file that may come from anywhere.
            self._step = Step(printable(step), step.done, step.share, step.seconds_left)
            self._began = time.perf_counter()
            self._draw()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        if self._width:
            self._write("")

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESHED_SECONDS):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        now = time.perf_counter()
        if self._step is None or now - self._started < self._quiet:
            return
        step, within = self._step, now - self._began
        done, left = step.done, step.seconds_left
        if left:
            expected = left * step.share / (1 - step.done)
            # It slows down where a step takes longer than expected, and never stops.
            done += step.share * (1 - math.exp(-within / max(expected, 0.1)))
            left = max(left - within, left * (1 - done) / (1 - step.done))
        # The size of a network may turn out larger than expected; what was shown isn't taken back.
        self._shown = done = max(self._shown, done)
        filled = int(_BAR * done)
        remaining = f"  about {in_words(left)} left" if left else ""
        self._write(f"[{'#' * filled}{'-' * (_BAR - filled)}] {int(100 * done):3}%{remaining}  {step}")

    def _write(self, text: str) -> None:
        """Put a text in the place of the last one, no longer than the line."""
        text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
        self._stream.write(f"\r{text:<{self._width}}\r{text}")
        self._stream.flush()
        self._width = len(text)
