"""What float16 and int8 do to maps, to the file and to the latency: the tables of docs/precision.md.

`python benchmarks/precision.py --weights mobilenet_v2.pth PHOTOGRAPHS...` exports torchvision's mobilenet_v2
with these weights in float32, float16 and int8, at its last layer and at `features.14`. The int8 model is
calibrated on every other photograph. Maps of the predicted class are compared with the float32 model's: on
all photographs, or on those that int8 wasn't calibrated on. Each file is then timed in a process of its
own, in turn.

`--networks resnet18 vit_b_16 ...` adds others in float16, with every parameter redrawn.

"Rounded" is what the same file says where every node in float16 rounds to it, by the reference evaluator:
onnxruntime's CPU provider runs such nodes in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Contender, race
from networks import SIZE, build, export_plain

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "examples")]

# What `features.14` puts out, under its names in the files in float and in int8.
LAYERS = {"the last": (None, None), "`features.14`": ("node_Conv_892", "getitem_123_DequantizeLinear")}


def main() -> None:
    """Export the files, compare their maps, time them, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument(
        "--weights", required=True, type=Path, help="a state_dict of torchvision's mobilenet_v2"
    )
    parser.add_argument("--networks", nargs="*", default=[], help="of torchvision, redrawn, in float16 too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a file runs in a round")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    from torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    warnings.simplefilter("ignore")
    photographs = sorted(options.photographs)
    with tempfile.TemporaryDirectory() as folder:
        files = export_all(Path(folder), options.weights, photographs[::2])
        print_agreement(files, photographs)
        print_latencies(files, options)
        for name in options.networks:
            print_half(Path(folder), name, photographs)


def export_all(folder: Path, weights: Path, calibration: Sequence[Path]) -> dict[str, Path]:
    """Write the plain networks and their explainers; return the files by name."""
    import torch
    from quantize import quantize
    from torchvision.models import mobilenet_v2

    from onnxplain_export import export

    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    files = {name: folder / f"{name}.onnx" for name in ("float32", "int8")}
    export_plain(network.eval(), files["float32"])
    for layer, (plain, quantised) in LAYERS.items():
        sources = {"float32": ("float32", plain), "float16": ("float32", plain), "int8": ("int8", quantised)}
        for kind, (source, name) in sources.items():
            path = folder / f"{kind}.{len(files)}.onnx"
            report = export(files[source], None, path, layer=name, fp16=kind == "float16")
            if not files["int8"].exists():
                quantize(files["float32"], files["int8"], calibration, report.manifest.input)
            files[f"{kind}, {layer}"] = path
    return files


def print_agreement(files: dict[str, Path], photographs: Sequence[Path]) -> None:
    """Print how the maps of each precision agree with those of float32, at each layer."""
    print("| layer | precision | file | photographs | class | rank correlation, median | lowest |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for layer in LAYERS:
        plain = files[f"float32, {layer}"]
        print_row([layer, "float32", megabytes(plain), "", "", "", ""])
        for kind, pictures in (("float16", photographs), ("int8", photographs[1::2])):
            path = files[f"{kind}, {layer}"]
            expected, found = explained(plain, pictures), explained(path, pictures)
            print_row([layer, kind, megabytes(path), *agreement(expected, found)])
            if kind == "float16":
                print_row([layer, "float16, rounded", "", *agreement(expected, by_reference(path, pictures))])
    for kind in ("", ", the last", ", `features.14`"):
        counts = integer_convolutions(files[f"int8{kind}"])
        print(f"integer convolutions, int8{kind or ' alone'}: {counts}")


def print_latencies(files: dict[str, Path], options: argparse.Namespace) -> None:
    """Print the median latency of each file, and the median of the rounds' ratios to the plain model."""
    field = {name: Contender("file", str(path), threads=options.threads) for name, path in files.items()}
    timings = race(field, options.rounds, options.seconds)
    print("\n| model | ms | x its plain model | quartiles |")
    print("|---|---:|---:|---:|")
    for name, timing in timings.items():
        plain = "int8" if name.startswith("int8") else "float32"
        low, middle, high = timing.ratio(timings[plain])
        spread = "" if name == plain else f"{low:.2f} to {high:.2f}"
        print_row([name, f"{1e3 * timing.median:.2f}", f"{middle:.2f}", spread])


def print_half(folder: Path, name: str, photographs: Sequence[Path]) -> None:
    """Print how the maps of a network in float16 agree with those in float32, every parameter redrawn."""
    import torch

    from onnxplain_export import export

    example, network = torch.zeros(1, 3, SIZE, SIZE), build(name)
    paths = [folder / f"{name}.{kind}.onnx" for kind in ("float32", "float16")]
    for path in paths:
        export(network, example, path, fp16="float16" in path.name)
    plain, half = (explained(path, photographs) for path in paths)
    print_row([name, megabytes(paths[0]), megabytes(paths[1]), *agreement(plain, half)])
    few = photographs[::10]
    rounded = agreement(explained(paths[0], few), by_reference(paths[1], few))
    print_row([f"{name}, rounded", "", "", *rounded])


Maps = list[tuple[int, Any]]


def explained(path: Path, pictures: Sequence[Path]) -> Maps:
    """Return the predicted class of each picture and its map, by onnxruntime."""
    from onnxplain import Explainer

    return [(one.index, one.cam) for one in Explainer(path).explain_batch(pictures)]


def by_reference(path: Path, pictures: Sequence[Path]) -> Maps:
    """Return the same where each node in float16 rounds to it, as onnxruntime's CPU provider doesn't."""
    import onnx_ir as ir

    from onnxplain import Explainer
    from onnxplain.images import read_image
    from onnxplain.maps import METHODS
    from onnxplain.preprocessing import preprocess
    from onnxplain_export.reference_graph import ReferenceGraph

    spec = Explainer(path).manifest.input
    names = ["activations", "gradients", "explained_class"]
    graph = ReferenceGraph(ir.load(path), ["image", "class_index"], names, {}, in_float64=False)
    maps = []
    for picture in pictures:
        image = preprocess(read_image(picture), spec)[0][None]
        found = graph.run({"image": image, "class_index": np.array([[-1]])})
        (cams,) = METHODS["gradcam"].maps(found["activations"], found["gradients"])
        maps.append((found["explained_class"].item(), cams[0]))
    return maps


def agreement(expected: Maps, found: Maps) -> list[str]:
    """Return the cells of a row: pictures, those of the same class, and their maps' rank correlations."""
    from scipy.stats import spearmanr

    pairs = zip(expected, found, strict=True)
    same = [spearmanr(a.ravel(), b.ravel()).statistic for (one, a), (other, b) in pairs if one == other]
    return [str(len(found)), str(len(same)), f"{np.median(same):.4f}", f"{min(same):.4f}"]


def integer_convolutions(path: Path) -> int:
    """Return how many convolutions run in whole numbers once onnxruntime has optimised a file."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)[
        "QLinearConv"
    ]


def megabytes(path: Path) -> str:
    """Return the size of a file."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
