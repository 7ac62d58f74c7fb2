"""What explanations of one file cost on this machine: latency, the stages around it, throughput, memory."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxplain import __version__
from onnxplain.errors import ModelError
from onnxplain.explainer import Explainer
from onnxplain.heatmap import heatmap
from onnxplain.images import Picture, read_picture
from onnxplain.maps import METHODS
from onnxplain.memory import peak_memory
from onnxplain.network import Network
from onnxplain.opencv import cv2
from onnxplain.overlay import overlay
from onnxplain.pipeline import cores
from onnxplain.preprocessing import view_of
from onnxplain.session import Device, create_session, model_name, read_manifest, run

PREDICTION = "prediction"
_WARM_UP = 3

Result = TypeVar("Result")


@dataclass(frozen=True)
class Subject:
    """What is measured: a file, where it runs, at which size, and on which picture (a path, or its bytes)."""

    model: Path
    device: Device
    size: tuple[int, int] | None
    picture: Path | bytes


@dataclass(frozen=True)
class Latency:
    """Seconds of a run: quantiles over the rounds."""

    median: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Return the quantiles of some seconds."""
        return cls(*(float(value) for value in np.quantile(seconds, [0.5, 0.9, 0.99])))


@dataclass(frozen=True)
class Ratio:
    """How many times as long as the prediction: the median of the rounds' own ratios, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float], base: Sequence[float]) -> Ratio:
        """Compare seconds round by round: the machine may be slower in one than in the next."""
        ratios = np.divide(seconds, base)
        low, median, high = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
        return cls(median, low, high)


@dataclass(frozen=True)
class Costs:
    """Latencies of one picture, and the process's memory."""

    latencies: dict[str, Latency]
    ratios: dict[str, Ratio]
    """Of each but the prediction, to it."""
    stages: dict[str, Latency]
    """From a picture's file to its overlay; decoding includes reading the file."""
    providers: list[str]
    peak_memory: int | None
    """Bytes; None where the system doesn't say."""


def measure_costs(subject: Subject, rounds: int) -> Costs:
    """Measure latencies, stages and memory, in a process of their own.

    Raises
    ------
    ModelError, ImageError
        The file or the picture can't be used, or memory is too small.
    """
    costs, warned = in_own_process(_costs, subject, rounds)
    for text in warned:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return costs


def measure_throughput(subject: Subject, threads: int, batch: int, seconds: float) -> float:
    """Return how many pictures a second are explained, prepared ones, in a process of its own.

    A session's threads wait for work in a loop, and would take the cores of another's.

    Raises
    ------
    ModelError, ImageError
        As in `measure_costs`.
    """
    rate, _ = in_own_process(_throughput, subject, threads, batch, seconds)  # measure_costs has warned
    return rate


def machine() -> dict[str, str]:
    """Return what the measurements depend on: the system, the processor and the versions."""
    import onnxruntime  # onnxplain.session says what to install where it is missing

    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": str(cores()),
        "python": platform.python_version(),
        "onnxplain": __version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,  # OpenCV and onnxruntime are packages of several names
    }


def in_own_process(function: Callable[..., Result], *arguments: Any) -> tuple[Result, list[str]]:
    """Call a function in a process of its own; return its result, and what it warned of.

    Raises
    ------
    ModelError
        There is not enough memory, or the process was ended from outside.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_recorded, function, *arguments).result()
        except MemoryError:
            raise ModelError("there is not enough memory for this; try a smaller --batch") from None
        except KeyboardInterrupt:  # a signal may reach this process alone
            for child in active_children():
                child.terminate()
            raise
        except BrokenProcessPool:  # a system short of memory ends processes, and a library may crash
            raise ModelError(
                "the process that ran the model ended suddenly; if memory ran out, try a smaller --batch"
            ) from None


def _recorded(function: Callable[..., Result], *arguments: Any) -> tuple[Result, list[str]]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)
        result = function(*arguments)
    return result, [str(one.message) for one in warned if one.category is RuntimeWarning]


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; they take turns, after some rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_WARM_UP + rounds):
        for name, one in runs.items():
            start = time.perf_counter()
            one()
            if number >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class _Loaded:
    """A subject's session, and its picture as the session takes it."""

    def __init__(self, subject: Subject, threads: int | None = None) -> None:
        self.session = create_session(subject.model, subject.device, None, threads)
        manifest = read_manifest(self.session, model_name(subject.model))
        self.network = Network(self.session, manifest, subject.size)
        picture = read_picture(subject.picture)
        # Refuses, before anything is timed, outputs of wrong shapes.
        Explainer(session=self.session, size=subject.size).explain(picture.image)
        self.image = self.prepare(picture)

    def prepare(self, picture: Picture) -> NDArray[Any]:
        """Return a batch of one picture."""
        return self.network.prepare(picture)[0][None]

    def infer(self, batch: int = 1, classes: int = 1) -> Callable[[], list[NDArray[Any]]]:
        """Return a run that explains so many of the most likely classes; of none, one that predicts."""
        names = ["logits"]
        for layer in self.network.manifest.layers if classes else ():
            names += [layer.activations, layer.gradients]
        ranks = np.tile(-1 - np.arange(classes), (batch, 1))
        feeds = {"image": np.repeat(self.image, batch, axis=0), "class_index": ranks}
        return lambda: run(self.session, names, feeds)


def _costs(subject: Subject, rounds: int) -> Costs:
    loaded = _Loaded(subject)
    predict = loaded.infer(classes=0)
    top = min(5, predict()[0].shape[1])  # the graph may leave the number of classes open
    # One file does all of these, so they take turns in one session: none has threads of its own.
    seconds = alternate(
        {
            PREDICTION: predict,
            "explanation": loaded.infer(),
            **({f"explanation of {top} classes": loaded.infer(classes=top)} if top > 1 else {}),
        },
        rounds,
    )
    peak = peak_memory()
    stages: dict[str, list[float]] = {}
    for number in range(_WARM_UP + rounds):
        for name, took in _stages(subject, loaded):
            if number >= _WARM_UP:
                stages.setdefault(name, []).append(took)
    stages["in all"] = [sum(took) for took in zip(*stages.values(), strict=True)]
    return Costs(
        latencies={name: Latency.of(values) for name, values in seconds.items()},
        ratios={
            name: Ratio.of(values, seconds[PREDICTION])
            for name, values in seconds.items()
            if name != PREDICTION
        },
        stages={name: Latency.of(values) for name, values in stages.items()},
        providers=list(loaded.session.get_providers()),
        peak_memory=peak,
    )


def _stages(subject: Subject, loaded: _Loaded) -> Iterator[tuple[str, float]]:
    """Explain the picture step by step; yield each stage's name and seconds."""
    start = time.perf_counter()

    def lap() -> float:
        nonlocal start
        before, start = start, time.perf_counter()
        return start - before

    picture = read_picture(subject.picture)
    yield "decode", lap()
    loaded.image = loaded.prepare(picture)
    yield "prepare", lap()
    _, *outputs = loaded.infer()()
    yield "infer", lap()
    pairs = zip(outputs[::2], outputs[1::2], strict=True)
    maps = [METHODS["gradcam"].maps(a, g)[0, 0].astype(np.float32) for a, g in pairs]
    heat = heatmap(maps, picture.size, view_of(picture.size, loaded.network.input))
    yield "heatmap", lap()
    overlay(picture.image, heat)
    yield "overlay", lap()


def _throughput(subject: Subject, threads: int, batch: int, seconds: float) -> float:
    explain = _Loaded(subject, threads).infer(batch)
    explain()
    count, start = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < seconds:
        explain()
        count += 1
    return count * batch / (time.perf_counter() - start)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
