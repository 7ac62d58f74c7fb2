"""Make the figures of the README and the docs: `python docs/make_figures.py [--mobilenet CHECKPOINT LABELS]`.

The networks that ship with the package explain the sample scenes. The README's photograph is explained by
torchvision's mobilenet_v2 with ImageNet weights, which don't ship: a state dict and a JSON list of the 1000
labels are named on the command line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from onnxplain import Explainer, Explanation, Preprocessing
from onnxplain.images import decode_image
from onnxplain_models import explainer_file, samples

IMAGES = Path(__file__).parent / "images"
TITLE = {"fontsize": 11, "color": "#333333"}
mpl.rcParams.update({"font.family": "DejaVu Sans", "savefig.dpi": 110, "savefig.facecolor": "white"})

Picture = NDArray[np.uint8]


def grid(rows: Sequence[Sequence[tuple[str, Picture]]], path: Path, width: float = 2.3) -> None:
    """Draw rows of titled pictures of equal height, and write them to a file."""
    shape = rows[0][0][1].shape
    columns = max(map(len, rows))
    lines = max(title.count("\n") + 1 for row in rows for title, _ in row)
    height = width * shape[0] / shape[1] + 0.08 + 0.22 * lines
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(width * columns, height * len(rows)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, picture) in zip(line, row, strict=False):
            axis.imshow(picture, interpolation="nearest" if min(picture.shape[:2]) < 40 else "antialiased")
            axis.set_title(title, **TITLE)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def describe(explanation: Explanation) -> str:
    """Return a picture's title: the label, and its probability where that says something."""
    probability = explanation.probability or 0.0
    return f"{explanation.label} {probability:.0%}" if probability >= 0.005 else str(explanation.label)


def scenes() -> list[Picture]:
    """Return the sample scenes."""
    return [decode_image(sample.picture.read_bytes(), sample.name) for sample in samples()]


def shipped(network: str) -> Explainer:
    """Return a shipped network's explainer."""
    return Explainer(explainer_file(network).read_bytes())


def photograph(checkpoint: Path, labels: Path) -> list[tuple[str, Picture]]:
    """Explain several classes of scikit-image's astronaut with torchvision's mobilenet_v2."""
    import skimage.data
    import torch
    from torchvision.models import mobilenet_v2

    from onnxplain_export import export

    network = mobilenet_v2()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mobilenet_v2.onnx"
        # The photograph is square: without a crop the network sees all of it.
        whole = Preprocessing(resize=None, crop="none")
        names = json.loads(labels.read_text())
        export(network, torch.zeros(1, 3, 224, 224), path, labels=names, preprocessing=whole)
        picture = skimage.data.astronaut()
        found = Explainer(path).explain_classes(picture, ["space shuttle", "crash helmet", "stethoscope"])
    return [("one photograph", picture), *((str(one.label), one.overlay()) for one in found)]


def readme(photo: list[tuple[str, Picture]]) -> None:
    """A photograph's classes in one row, and a scene through the three networks in the next."""
    scene = scenes()[2]
    size = photo[0][1].shape[:2]
    row = [("a scene", scene)]
    for network, method in (("nin", "cam"), ("vgg_mlp", "gradcam"), ("vgg_cam", "cam")):
        one = shipped(network).explain(scene, method=method)
        row.append((f"{network}: {describe(one)}", one.overlay()))
    larger = [(title, enlarged(picture, size)) for title, picture in row]
    grid([photo, larger], IMAGES / "readme.png", width=2.4)


def enlarged(picture: Picture, size: tuple[int, int]) -> Picture:
    """Return a picture at another size, its pixels kept square and sharp."""
    rows = np.arange(size[0]) * picture.shape[0] // size[0]
    columns = np.arange(size[1]) * picture.shape[1] // size[1]
    return picture[rows][:, columns]


def nin_confidence_maps() -> None:
    """Each scene and its ten class maps, on one scale a scene."""
    explainer = shipped("nin")
    rows = []
    for scene in scenes()[:3]:
        found = explainer.explain_classes(scene, range(10), method="cam")
        maps = np.maximum(np.stack([one.cam for one in found]), 0)
        colours = mpl.colormaps["inferno"](maps / maps.max(), bytes=True)[..., :3]
        best = max(found, key=lambda one: one.logit)
        titles = [f"{one.label} ←" if one is best else str(one.label) for one in found]
        titled = list(zip(titles, colours, strict=True))
        rows.append([("scene", scene), *titled])
    grid(rows, IMAGES / "nin_confidence_maps.png", width=1.1)


def three_networks() -> None:
    """Four scenes, each explained by the three networks."""
    columns = (("nin", "cam"), ("vgg_mlp", "gradcam"), ("vgg_cam", "cam"))
    explainers = {network: shipped(network) for network, _ in columns}
    rows = []
    for scene in scenes()[:4]:
        row = [("scene", scene)]
        for network, method in columns:
            one = explainers[network].explain(scene, method=method)
            name = {"cam": "CAM", "gradcam": "Grad-CAM"}[method] if network != "nin" else "class map"
            row.append((f"{network}, {name}\n{describe(one)}", one.overlay()))
        rows.append(row)
    grid(rows, IMAGES / "three_networks.png", width=2.0)


def main() -> None:
    """Make every figure for which there is what it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mobilenet", nargs=2, type=Path, metavar=("CHECKPOINT", "LABELS"))
    arguments = parser.parse_args()
    nin_confidence_maps()
    three_networks()
    if arguments.mobilenet:
        readme(photograph(*arguments.mobilenet))


if __name__ == "__main__":
    main()
