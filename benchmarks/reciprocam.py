"""What an explanation costs in OpenVINO: our explainer, and ReciproCAM as openvino_xai has it.

`python benchmarks/reciprocam.py` times torchvision's CNNs (every parameter redrawn), one image, at their
automatic layers (`pip install -c constraints.txt ".[cpu,bench]"`). `--networks resnet18 resnet50:layer4.0`
names others, with a layer where it isn't the automatic one.

Each contender has a process of its own, and they take turns. In OpenVINO: the plain model; the explainer with
one class, all outputs; and the plain model with ReciproCAM inserted at the layer's tensor, which is found by
its value (`openvino_models.py`). The last column is the explainer in onnxruntime. Each is compared with the
plain model in the same engine: the median of the rounds' ratios, with its quartiles.

Before ReciproCAM is timed, its maps and logits are compared with PyTorch's, where a hook masks what the layer
puts out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from contenders import Contender, images, race
from engine_runs import on_provider
from latency import measured_with, print_row, ratio
from networks import CNNS, Files, build, export_files
from numpy.typing import NDArray
from openvino_models import compiled, find_tensor, with_recipro_cam

if TYPE_CHECKING:
    import torch

PACKAGES = ("onnxplain", "onnxruntime", "openvino", "torch")
#: The columns: what is timed, and what it is compared with.
RATIOS = {
    "explainer, OpenVINO": "plain, OpenVINO",
    "ReciproCAM, OpenVINO": "plain, OpenVINO",
    "explainer, onnxruntime": "plain, onnxruntime",
}


def main() -> None:
    """Export the files, check ReciproCAM's maps, time the contenders of each network, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=CNNS, metavar="NETWORK[:LAYER]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a contender runs in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the exported files here, and take those that are")
    options = parser.parse_args()
    print(measured_with(options.threads, PACKAGES))
    print_row(["network", "plain, OpenVINO, ms", *RATIOS])
    print_row(["---", *["---:"] * (1 + len(RATIOS))])
    medians: list[list[float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for spec in options.networks:
            files = export_files(spec, folder)
            tensor = target_tensor(files)
            check(build(spec.partition(":")[0]), files, tensor)
            timings = race(contenders(files, tensor, options.threads), options.rounds, options.seconds)
            plain = f"{1e3 * timings['plain, OpenVINO'].median:.1f}"
            print_row([spec, plain, *(ratio(timings[name], timings[base]) for name, base in RATIOS.items())])
            medians.append([timings[name].ratio(timings[base])[1] for name, base in RATIOS.items()])
    means = np.exp(np.log(medians).mean(axis=0))
    print_row(["geometric mean", "", *(f"{mean:.2f}" for mean in means)])


def contenders(files: Files, tensor: str, threads: int) -> dict[str, Contender]:
    """Return what is timed of a network, by name."""
    plain, explainer = str(files.plain), str(files.explainer)
    return {
        "plain, OpenVINO": Contender("openvino", plain, threads=threads),
        "explainer, OpenVINO": Contender("openvino", explainer, threads=threads),
        "ReciproCAM, OpenVINO": Contender("recipro-cam", plain, threads=threads, layer=tensor),
        "plain, onnxruntime": Contender("file", plain, threads=threads),
        "explainer, onnxruntime": Contender("file", explainer, threads=threads),
    }


def target_tensor(files: Files) -> str:
    """Return the tensor of the plain model that has the value of the explainer's target layer."""
    feeds = {"image": images(1), "class_index": np.array([[-1]])}
    (outputs,) = on_provider("CPUExecutionProvider")(files.explainer, [feeds])
    return find_tensor(str(files.plain), images(1), outputs["activations"])


def check(network: torch.nn.Module, files: Files, tensor: str) -> None:
    """Compare ReciproCAM's maps and logits in OpenVINO with PyTorch's, to 1e-3 of the largest."""
    import torch

    model = compiled(with_recipro_cam(str(files.plain), tensor, images(1).shape), threads=1)
    logits, maps = model(images(1)).values()
    with torch.no_grad():
        expected = network(torch.from_numpy(images(1))).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    expected = recipro_cam(network, files.layer, images(1))
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def recipro_cam(network: torch.nn.Module, layer: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ReciproCAM [1, classes, h, w] of every class, in PyTorch."""
    import torch

    size: list[int] = []

    def mask(_module: object, _given: object, features: torch.Tensor) -> torch.Tensor:
        size[:] = features.shape[2:]
        places = torch.arange(features[0, 0].numel())
        masks = torch.nn.functional.one_hot(places).reshape(-1, 1, *size)
        return features * masks

    hook = network.get_submodule(layer).register_forward_hook(mask)
    with torch.no_grad():
        scores: torch.Tensor = network(torch.from_numpy(image))
    hook.remove()
    return scores.T.reshape(1, -1, *size).numpy()


if __name__ == "__main__":
    main()
