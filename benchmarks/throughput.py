"""Throughput of `onnxplain explain` on a folder of JPEGs, against the machine's ideal.

`python benchmarks/throughput.py EXPLAINER.onnx [--count 500] [--sizes 500x375 4000x3000]` makes so many JPEGs
of scikit-image's photographs at each size, and measures, each in a process of its own:

- decoding alone, on one thread: OpenCV, at the scale that is taken without overlays, and at the whole size;
- the network alone: as many runs of one thread, side by side, as there are cores;
- `onnxplain explain` from its tenth picture to the last, without overlays and with them; and the memory that
  it holds after 100 pictures and at the end.

The ideal is cores / (decoding + network), in core-seconds a picture.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ROUNDS = 3
FIRST, EARLY = 10, 100


def main() -> None:
    """Make the pictures, measure, and print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("explainer", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--sizes", nargs="+", default=["500x375", "4000x3000"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.explainer, options.folder)))
        return
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            width, height = map(int, size.split("x"))
            make_pictures(Path(folder), options.count, width, height)
            report(size, {name: apart(name, options.explainer, folder) for name in MEASURES})


def make_pictures(folder: Path, count: int, width: int, height: int) -> None:
    """Write the JPEGs: the photographs in turn."""
    import cv2
    import skimage.data

    pictures = [getattr(skimage.data, name)()[..., ::-1] for name in PHOTOGRAPHS]
    encoded = [cv2.imencode(".jpg", cv2.resize(one, (width, height)))[1].tobytes() for one in pictures]
    for number in range(count):
        (folder / f"{number:05}.jpg").write_bytes(encoded[number % len(encoded)])


def apart(name: str, explainer: Path, folder: str) -> dict[str, float]:
    """Measure one thing in a process of its own."""
    command = [sys.executable, __file__, str(explainer), "--measure", name, "--folder", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(size: str, found: dict[str, dict[str, float]]) -> None:
    """Print what was measured, in milliseconds of a core, and in pictures a second."""
    decoding, network, cores = found["decoding"], found["network"]["seconds"], found["network"]["cores"]
    ideal = cores / (decoding["reduced"] + network)
    print(f"{size}, {cores} cores")
    print(f"  decoding           {1e3 * decoding['reduced']:6.2f} ms ({1e3 * decoding['whole']:.2f} whole)")
    print(f"  network            {1e3 * network:6.2f} ms")
    print(f"  ideal              {ideal:6.1f} pictures a second")
    for name in ("record", "overlays"):
        one = found[name]
        print(
            f"  explain, {name:<9} {one['rate']:6.1f} pictures a second, {one['rate'] / ideal:.0%} of it; "
            f"{one['early']:.0f} MB after {EARLY}, {one['late']:.0f} MB at the end",
            flush=True,
        )


def decoding(explainer: Path, folder: Path) -> dict[str, float]:
    """Return the seconds that OpenCV takes to decode a picture, at the reduced scale and whole."""
    import cv2
    import numpy as np

    from onnxplain import Explainer
    from onnxplain.images import read_picture
    from onnxplain.preprocessing import enough_pixels

    cv2.setNumThreads(1)
    encoded = [np.fromfile(path, np.uint8) for path in sorted(folder.iterdir())[: 4 * len(PHOTOGRAPHS)]]
    picture = read_picture(encoded[0].tobytes(), enough_pixels(Explainer(explainer).manifest.input))
    scale = round(picture.size[0] / picture.pixels.shape[0])
    flag = cv2.IMREAD_COLOR if scale == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{scale}")
    return {
        "reduced": fastest(lambda: [cv2.imdecode(data, flag) for data in encoded]) / len(encoded),
        "whole": fastest(lambda: [cv2.imdecode(data, cv2.IMREAD_COLOR) for data in encoded]) / len(encoded),
    }


def network(explainer: Path, _folder: Path) -> dict[str, float]:
    """Return the core-seconds of a run of the network, on all cores at once."""
    import numpy as np
    import onnxruntime

    from onnxplain.pipeline import cores

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(explainer, options, providers=["CPUExecutionProvider"])
    shape = [side if isinstance(side, int) else 1 for side in session.get_inputs()[0].shape]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    feeds = {"image": image, "class_index": np.array([[-1]])}
    count = 50 * cores()
    with ThreadPoolExecutor(cores()) as pool:
        seconds = fastest(lambda: list(pool.map(lambda _: session.run(None, feeds), range(count))))
    return {"seconds": seconds * cores() / count, "cores": cores()}


def explain(explainer: Path, folder: Path, *flags: str) -> dict[str, float]:
    """Run the command; return pictures a second, and the megabytes held early and at the end."""
    from onnxplain import pipeline
    from onnxplain.cli import main as command

    times: list[float] = []
    memory: list[float] = []
    finished = pipeline._finished

    def watched(call: Future[Any]) -> Future[Any]:
        finished(call)
        times.append(time.perf_counter())
        memory.append(resident())
        return call

    pipeline._finished = watched
    with (
        tempfile.TemporaryDirectory() as output,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        command(["explain", str(explainer), str(folder), "-o", output, *flags])
    return {
        "rate": (len(times) - FIRST) / (times[-1] - times[FIRST - 1]),
        "early": memory[min(EARLY, len(memory)) - 1],
        "late": memory[-1],
    }


def fastest(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def resident() -> float:
    """Return the megabytes of memory that this process holds."""
    import psutil

    held: int = psutil.Process().memory_info().rss
    return held / 1e6


MEASURES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "decoding": decoding,
    "network": network,
    "record": lambda explainer, folder: explain(explainer, folder, "--no-overlays"),
    "overlays": explain,
}


if __name__ == "__main__":
    main()
