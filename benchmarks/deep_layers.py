"""Latency of explaining resnet50 at deep layers, against the plain prediction of the same network.

`python benchmarks/deep_layers.py [--layers layer4.0 layer3.0] [--rounds 5]` exports resnet50 with random
weights, once as it is and once for each layer. Each file is then timed in processes of its own, in turn, with
onnxruntime on the CPU: two sessions in one process would wait for each other's threads. What is printed is
the median over all rounds, and its ratio to the plain model's.
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
from pathlib import Path

import numpy as np
import onnxruntime

SIZE = 224
SEED = 7
PLAIN = "plain"


def main() -> None:
    """Export the files, time them in turn, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", default=["layer4.0", "layer3.0"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=30, help="timed runs of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time is not None:
        print(json.dumps(times_of(options.time, options.runs, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = export_all(Path(folder), options.layers)
        seconds: dict[str, list[float]] = {name: [] for name in files}
        for _ in range(options.rounds):
            for name, file in files.items():
                seconds[name] += timed_apart(file, options.runs, options.threads)
    plain = statistics.median(seconds[PLAIN])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<12} {1e3 * median:7.2f} ms   {median / plain:.2f} x plain")


def export_all(folder: Path, layers: list[str]) -> dict[str, Path]:
    """Write the plain network and an explainer for each layer."""
    # The timed processes do without torch.
    import torch

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from onnxplain_export import export
    from redraw import redraw
    from torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    from torchvision.models import resnet50

    warnings.simplefilter("ignore")
    example = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED))
    model = redraw(resnet50(weights=None), example, SEED)
    files = {name: folder / f"{name}.onnx" for name in [PLAIN, *layers]}
    torch.onnx.export(
        model,
        (example,),
        str(files[PLAIN]),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    for layer in layers:
        export(model, example[:1], files[layer], layer=layer)
    return files


def timed_apart(file: Path, runs: int, threads: int) -> list[float]:
    """Time a file in a process of its own."""
    command = [sys.executable, __file__, "--time", str(file), "--runs", str(runs), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def times_of(file: Path, runs: int, threads: int) -> list[float]:
    """Return the seconds of each run, for one image and its predicted class."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(SEED).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    feeds = {
        given.name: image if given.type == "tensor(float)" else np.array([[-1]])
        for given in session.get_inputs()
    }
    for _ in range(5):
        session.run(None, feeds)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
