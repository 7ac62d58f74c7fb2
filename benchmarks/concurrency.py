"""Requests at once: `python benchmarks/concurrency.py EXPLAINER.onnx [--clients 1 2 4 8] [--seconds 10]`.

One `Explainer` is shared by so many threads, each of which explains one JPEG (scikit-image's cat) after the
other, as the threads of a web server do. Once its runs take one thread of the CPU's each (`threads=1`), and
once as many as there are cores, which is the default. They take turns; printed are the explanations a second,
and the median and the 95th percentile of their times.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import skimage.data
from latency import measured_with, print_row

from onnxplain import Explainer

ROUNDS = 3


def main() -> None:
    """Measure each number of clients with both numbers of threads, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("explainer")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    jpeg = cv2.imencode(".jpg", skimage.data.chelsea()[..., ::-1])[1].tobytes()
    explainers = {"1": Explainer(options.explainer, threads=1), "default": Explainer(options.explainer)}
    print(measured_with(os.cpu_count() or 1, ["onnxruntime"]))
    print_row(["clients", "threads", "a second", "median, ms", "95 %, ms"])
    print_row(["---:", "---", "---:", "---:", "---:"])
    for clients in options.clients:
        times: dict[str, list[float]] = {threads: [] for threads in explainers}
        for _ in range(ROUNDS):
            for threads, explainer in explainers.items():
                times[threads] += times_of(explainer, jpeg, clients, options.seconds / ROUNDS)
        for threads, measured in times.items():
            median, late = 1000 * np.percentile(measured, [50, 95])
            rate = len(measured) / options.seconds
            print_row([str(clients), threads, f"{rate:.0f}", f"{median:.1f}", f"{late:.1f}"])


def times_of(explainer: Explainer, jpeg: bytes, clients: int, seconds: float) -> list[float]:
    """Return how long each explanation took that so many clients asked for, one after the other, at once."""
    end = time.perf_counter() + seconds

    def client(_: int) -> list[float]:
        measured = []
        while (start := time.perf_counter()) < end:
            explainer.explain(jpeg)
            measured.append(time.perf_counter() - start)
        return measured

    with ThreadPoolExecutor(clients) as pool:
        return [measured for one in pool.map(client, range(clients)) for measured in one]


if __name__ == "__main__":
    main()
