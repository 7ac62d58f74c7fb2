"""The demo: three networks explain a few scenes, and a page shows it.

Where the export packages are installed the networks are exported first, in a process of its own: the one that
explains holds no torch. Elsewhere the explainers that ship with the package are used.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxplain import demo_page
from onnxplain.errors import OnnxplainError
from onnxplain.explainer import Explainer
from onnxplain.explanation import Explanation
from onnxplain.extras import missing_packages
from onnxplain.files import remove_leftovers, write_atomically
from onnxplain.images import read_image
from onnxplain.opencv import cv2
from onnxplain.outputs import OutputFolder
from onnxplain.overlay import overlay
from onnxplain_models import METHODS, NETWORKS, Sample, explainer_file, samples

_PRESENTED = (
    demo_page.Network(
        "nin",
        "Network in Network: class maps",
        "Its last layer has one map for each class, and a class's score is the average of its map: "
        "the answer comes with the places it is made of.",
    ),
    demo_page.Network(
        "vgg_mlp",
        "Grad-CAM",
        "A small VGG with a fully connected classifier. Its feature maps are weighted by how much each "
        "would change the class's score: by the gradient.",
    ),
    demo_page.Network(
        "vgg_cam",
        "CAM",
        "The same VGG with average pooling and one linear layer in place of the classifier. That layer's "
        "weights, applied at each place, give the map.",
    ),
)


def run_demo(output: Path, progress: Callable[[str], None]) -> list[demo_page.Scene]:
    """Write explainers, scenes, overlays and the page `index.html` into a folder.

    Parameters
    ----------
    output
        The folder: a new one, an empty one, or that of an earlier demo, whose files are replaced.
    progress
        Called with a few words as each step begins.

    Returns
    -------
    list of onnxplain.demo_page.Scene
        What the page shows: the scenes, and the networks' answers.

    Raises
    ------
    OnnxplainError
        The export failed, or a file that ships with the package is damaged.
    OutputError
        The folder has other files.
    OSError
        The folder can't be written to.
    """
    folder = OutputFolder(output, "demo")
    folder.keep(folder.earlier_files)
    files = {name: folder.add(f"{name}.onnx") for name in NETWORKS}
    missing = missing_packages("export")
    if missing:
        progress("taking the three explainers that ship with onnxplain")
        for name, file in files.items():
            write_atomically(file, explainer_file(name).read_bytes())
    else:
        progress("exporting the three networks, with PyTorch in a process of its own")
        _export(output, files.values())

    scenes = samples()
    for scene in scenes:
        write_atomically(folder.add(f"scenes/{scene.name}.png"), scene.picture.read_bytes())
    progress(f"explaining {len(scenes)} scenes with onnxruntime")
    explainers = {name: Explainer(file, device="cpu") for name, file in files.items()}
    start = time.perf_counter()
    explanations = [
        {
            name: explainer.explain(output / "scenes" / f"{scene.name}.png", method=METHODS[name])
            for name, explainer in explainers.items()
        }
        for scene in scenes
    ]
    seconds = time.perf_counter() - start

    shown = [_show(scene, found, folder) for scene, found in zip(scenes, explanations, strict=True)]
    page = demo_page.render(
        networks=_PRESENTED,
        scenes=shown,
        ramp=_png(_ramp()),
        facts=_facts(len(scenes) * len(NETWORKS), seconds),
        steps=_next_steps(output),
        torch=_on_torch(exported=not missing),
        made=_on_explainers(missing),
    )
    write_atomically(folder.add("index.html"), page.encode())
    return shown


def _export(output: Path, files: Iterable[Path]) -> None:
    """Export the networks in a process of its own, so that this one holds no torch."""
    command = [sys.executable, "-m", "onnxplain_models.export_all", "--output", str(output)]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    except KeyboardInterrupt:  # the other process was killed then
        for file in files:
            remove_leftovers(file)
        raise
    if finished.returncode != 0:
        last_line = (finished.stderr.strip() or "no reason given").splitlines()[-1]
        raise OnnxplainError(f"the export failed ({last_line}); see it whole with: {' '.join(command)}")


def _show(scene: Sample, explanations: dict[str, Explanation], folder: OutputFolder) -> demo_page.Scene:
    """Write a scene's overlays; return what the page shows of it."""
    answers = []
    for name, explanation in explanations.items():
        picture = _png(explanation.overlay())
        write_atomically(folder.add(f"overlays/{scene.name}-{name}.png"), picture)
        answers.append(
            demo_page.Answer(
                network=name,
                label=str(explanation.label),
                probability=explanation.probability or 0.0,
                overlay=picture,
                boxes=explanation.boxes()[:1],
            )
        )
    picture = scene.picture.read_bytes()
    height, width, _ = read_image(picture).shape
    return demo_page.Scene(picture, width, height, scene.label, scene.box, answers)


def _png(rgb: NDArray[np.uint8]) -> bytes:
    encoded: bytes = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    return encoded


def _ramp() -> NDArray[np.uint8]:
    """Return the colours of an overlay from heat 0 to heat 1, on white."""
    heat = np.linspace(0, 1, 128, dtype=np.float32)[None]
    return overlay(np.full((1, 128, 3), 255, np.uint8), heat)


def _facts(count: int, seconds: float) -> list[tuple[str, str]]:
    import onnxruntime  # not at the top: where it is missing, `onnxplain.session` says what to install

    return [
        ("computed by", f"onnxruntime {onnxruntime.__version__} on CPU"),
        (f"{count} answers and maps in", f"{seconds:.2f} s"),
        ("PyTorch in the process:", "yes" if _holds_torch() else "none"),
    ]


def _holds_torch() -> bool:
    return "torch" in sys.modules


def _on_torch(*, exported: bool) -> str:
    if _holds_torch():
        return "They were computed by onnxruntime; the program around it had loaded PyTorch too."
    if exported:
        return (
            "They were computed by onnxruntime, in a process without PyTorch: that was only needed to export "
            "the networks, in another process."
        )
    return "They were computed by onnxruntime, without PyTorch."


def _on_explainers(missing: Sequence[str]) -> str:
    if missing:
        return (
            "The three explainers are those that ship with onnxplain: this Python lacks "
            f"{', '.join(missing)}, which exporting takes."
        )
    return "The three explainers were exported and verified on this machine, just before this page was made."


def _next_steps(output: Path) -> list[tuple[str, str]]:
    folder = output.as_posix()
    return [
        (
            "The three likeliest digits of each scene, and what speaks for each:",
            f"onnxplain explain {folder}/vgg_mlp.onnx {folder}/scenes --top 3",
        ),
        ("What is in an explainer file:", f"onnxplain inspect {folder}/vgg_mlp.onnx"),
        (
            "A network that knows 1000 kinds of things, for photographs of your own; the first line, in the "
            "checkout, installs what exporting it takes:",
            'python -m pip install -c constraints.txt ".[cpu,export,torchvision]"\n'
            "onnxplain export torchvision:resnet50 -o resnet50.onnx",
        ),
    ]
