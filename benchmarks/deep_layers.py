"""Latency of explaining resnet50 at deep layers, against the plain prediction of the same network.

`python benchmarks/deep_layers.py [--layers layer4.0 layer3.0] [--rounds 9] [--torchcam]` exports resnet50
with random weights, once as it is and once for each layer. Each contender is then timed in processes of its
own, in turn: two sessions in one process would wait for each other's threads. `--torchcam` adds torchcam's
Grad-CAM of the same layers, in PyTorch (`pip install torchcam`).

What is printed is the median latency over all rounds, and the ratio to the plain model's: the median of the
rounds' own ratios with their quartiles, as the machine may be slower in one round than in the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))

SIZE = 224
SEED = 7
PLAIN = "plain"
TORCHCAM = "torchcam "


def main() -> None:
    """Export the files, time the contenders in turn, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", default=["layer4.0", "layer3.0"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=20, help="timed runs of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torchcam", action="store_true", help="time torchcam too")
    parser.add_argument("--time", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time is not None:
        run = torchcam_run if options.time.startswith(TORCHCAM) else file_run
        print(json.dumps(times_of(run(options.time, options.threads), options.runs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        contenders = export_all(Path(folder), options.layers)
        if options.torchcam:
            contenders |= {f"{TORCHCAM}{layer}": f"{TORCHCAM}{layer}" for layer in options.layers}
        rounds = [
            {name: timed_apart(what, options.runs, options.threads) for name, what in contenders.items()}
            for _ in range(options.rounds)
        ]
    for name in contenders:
        median = statistics.median(second for seconds in rounds for second in seconds[name])
        ratios = [statistics.median(seconds[name]) / statistics.median(seconds[PLAIN]) for seconds in rounds]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(f"{name:<20} {1e3 * median:7.2f} ms   {middle:.2f} x plain ({low:.2f} to {high:.2f})")


def network() -> Any:
    """Return resnet50 with every parameter redrawn."""
    # The processes that time files do without torch.
    import torch

    from redraw import redraw
    from torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    from torchvision.models import resnet50

    return redraw(resnet50(weights=None), torch.zeros(1, 3, SIZE, SIZE), SEED)


def export_all(folder: Path, layers: list[str]) -> dict[str, str]:
    """Write the plain network and an explainer for each layer; return the files by name."""
    import torch

    from onnxplain_export import export

    warnings.simplefilter("ignore")
    model, example = network(), torch.zeros(2, 3, SIZE, SIZE)
    files = {name: str(folder / f"{name}.onnx") for name in [PLAIN, *layers]}
    torch.onnx.export(
        model,
        (example,),
        files[PLAIN],
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    for layer in layers:
        export(model, example[:1], files[layer], layer=layer)
    return files


def timed_apart(what: str, runs: int, threads: int) -> list[float]:
    """Time a contender in a process of its own."""
    command = [sys.executable, __file__, "--time", what, "--runs", str(runs), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def times_of(run: Callable[[], object], runs: int) -> list[float]:
    """Return the seconds of each run, after five to warm up."""
    for _ in range(5):
        run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def image() -> Any:
    """Return one image of noise."""
    return np.random.default_rng(SEED).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)


def file_run(file: str, threads: int) -> Callable[[], object]:
    """Return a run of a file for one image and its predicted class."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {
        given.name: image() if given.type == "tensor(float)" else np.array([[-1]])
        for given in session.get_inputs()
    }
    return lambda: session.run(None, feeds)


def torchcam_run(name: str, threads: int) -> Callable[[], object]:
    """Return a run of torchcam's Grad-CAM for one image and its predicted class."""
    import torch

    torch.set_num_threads(threads)
    model, picture = network(), torch.from_numpy(image())
    from torchcam.methods import GradCAM

    extractor = GradCAM(model, name.removeprefix(TORCHCAM))

    def run() -> object:
        scores = model(picture)
        return extractor(scores.argmax(dim=1).item(), scores)

    return run


if __name__ == "__main__":
    main()
