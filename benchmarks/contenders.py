"""What is timed against what, each in a process of its own: they take turns, in many short rounds.

In one process two sessions, or onnxruntime and PyTorch, wait for work in loops and take each other's cores. A
contender's process is started once; between its turns it sleeps.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from networks import SEED, SIZE, build
from numpy.typing import NDArray

from onnxplain.memory import peak_memory


@dataclass(frozen=True)
class Contender:
    """One way to predict or to explain.

    Parameters
    ----------
    kind
        A key of `RUNS`: ``file``, ``openvino``, ``recipro-cam``, ``grad-cam``, ``torchcam`` or ``captum``.
    source
        The file, or the name of the network in PyTorch.
    batch
        How many images a run takes.
    threads
        Threads of onnxruntime, OpenVINO or PyTorch.
    classes
        Of a file that is an explainer: how many classes are explained.
    layer
        Of a network in PyTorch: the target layer. Of ``recipro-cam``: the tensor that is masked.
    """

    kind: str
    source: str
    batch: int = 1
    threads: int = 2
    classes: int = 1
    layer: str = ""


@dataclass(frozen=True)
class Timing:
    """A contender's median seconds in each round, and its process's peak memory in bytes."""

    rounds: tuple[float, ...]
    peak: int

    @property
    def median(self) -> float:
        """Seconds, the median of all rounds."""
        return statistics.median(self.rounds)

    def ratio(self, other: Timing) -> tuple[float, float, float]:
        """Return the lower quartile, median and upper quartile of the rounds' own ratios to another's.

        The machine may be slower in one round than in the next, but is the same for both within one.
        """
        ratios = [mine / its for mine, its in zip(self.rounds, other.rounds, strict=True)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        return float(low), float(middle), float(high)


def race(contenders: Mapping[str, Contender], rounds: int, seconds: float) -> dict[str, Timing]:
    """Time contenders in turn; in a round each runs for so many seconds, and at least three times."""
    workers = {name: _Worker(contender) for name, contender in contenders.items()}
    try:
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds):
            # The order turns: who comes after whom is not always the same.
            names = list(workers) if number % 2 else list(workers)[::-1]
            for name in names:
                times[name].append(statistics.median(workers[name].turn(seconds)["seconds"]))
        return {name: Timing(tuple(times[name]), worker.turn(0)["peak"]) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()


class _Worker:
    """A contender's process, which runs when told to."""

    def __init__(self, contender: Contender) -> None:
        self._contender = json.dumps(asdict(contender))
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()  # it is loaded, and warm

    def turn(self, seconds: float) -> dict[str, Any]:
        """Let it run for so long; return the seconds of each run, and its peak memory."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"a contender ended: {self._contender}")


def serve(contender: Contender) -> None:
    """Run a contender for as long as each line of standard input says."""
    run = RUNS[contender.kind](contender)
    for _ in range(5):
        run()
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": times_of(run, float(line)), "peak": peak_memory() or 0}), flush=True)


def times_of(run: Callable[[], object], seconds: float) -> list[float]:
    """Return the seconds of each run, after one that finds the caches cold; at least three."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def images(batch: int) -> NDArray[np.float32]:
    """Return images of noise."""
    return np.random.default_rng(SEED).standard_normal((batch, 3, SIZE, SIZE)).astype(np.float32)


def ranks(contender: Contender) -> NDArray[np.int64]:
    """Return the classes that are explained of each image: those that the network ranks first."""
    return np.tile(-1 - np.arange(contender.classes), (contender.batch, 1))


def run_file(contender: Contender) -> Callable[[], object]:
    """Return a run of a model file: all outputs of an explainer, or without classes its logits alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = contender.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(contender.source, options, providers=["CPUExecutionProvider"])
    feeds = {
        given.name: images(contender.batch) if given.type == "tensor(float)" else ranks(contender)
        for given in session.get_inputs()
    }
    outputs = None if contender.classes else [session.get_outputs()[0].name]
    return lambda: session.run(outputs, feeds)


def run_openvino(contender: Contender) -> Callable[[], object]:
    """Return a run of a model file in OpenVINO, all outputs."""
    import openvino
    from openvino_models import compiled, read

    inputs = openvino.Core().read_model(contender.source).inputs
    feeds = {
        given.any_name: images(contender.batch) if given.element_type.is_real() else ranks(contender)
        for given in inputs
    }
    shapes = {name: array.shape for name, array in feeds.items()}
    model = compiled(read(contender.source, shapes), contender.threads)
    return lambda: model(feeds)


def run_recipro_cam(contender: Contender) -> Callable[[], object]:
    """Return a run of ReciproCAM in OpenVINO, up to the maps of all classes; it takes one image."""
    from openvino_models import compiled, with_recipro_cam

    image = images(1)
    model = compiled(with_recipro_cam(contender.source, contender.layer, image.shape), contender.threads)
    return lambda: model(image)


def run_gradcam(contender: Contender) -> Callable[[], object]:
    """Return a run of pytorch-grad-cam's Grad-CAM for the predicted class, up to its heatmap."""
    model, given = _in_torch(contender)
    import torch
    from pytorch_grad_cam import GradCAM

    cam = GradCAM(model, [model.get_submodule(contender.layer)], _reshape(contender.source))
    assert torch.get_num_threads() == contender.threads
    return lambda: cam(given, None)


def run_torchcam(contender: Contender) -> Callable[[], object]:
    """Return a run of torchcam's Grad-CAM for the predicted class, up to its map."""
    model, given = _in_torch(contender)
    from torchcam.methods import GradCAM

    extractor = GradCAM(model, contender.layer)

    def run() -> object:
        scores = model(given)
        return extractor(scores.argmax(dim=1).tolist(), scores)

    return run


def run_captum(contender: Contender) -> Callable[[], object]:
    """Return a run of captum's LayerGradCam for the predicted class, prediction included."""
    model, given = _in_torch(contender)
    import torch
    from captum.attr import LayerGradCam

    explainer = LayerGradCam(model, model.get_submodule(contender.layer))

    def run() -> object:
        with torch.no_grad():
            target = model(given).argmax(dim=1)
        return explainer.attribute(given, target=target)

    return run


def _in_torch(contender: Contender) -> tuple[Any, Any]:
    """Return the network and its images. Comes before the libraries' imports, which want torchvision."""
    import torch

    torch.set_num_threads(contender.threads)
    return build(contender.source), torch.from_numpy(images(contender.batch))


def _reshape(network: str) -> Callable[[Any], Any] | None:
    """Return what folds a transformer's tokens to a grid, as grad-cam's documentation has it."""
    if network.startswith("vit"):
        return lambda tokens: tokens[:, 1:].reshape(len(tokens), 14, 14, -1).permute(0, 3, 1, 2)
    if network.startswith("swin"):
        return lambda grid: grid.permute(0, 3, 1, 2)
    return None


RUNS: dict[str, Callable[[Contender], Callable[[], object]]] = {
    "file": run_file,
    "openvino": run_openvino,
    "recipro-cam": run_recipro_cam,
    "grad-cam": run_gradcam,
    "torchcam": run_torchcam,
    "captum": run_captum,
}

if __name__ == "__main__":
    serve(Contender(**json.loads(sys.argv[1])))
