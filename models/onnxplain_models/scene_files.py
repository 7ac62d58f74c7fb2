"""Write test scenes as pictures, with the digits' boxes, for `onnxplain evaluate`.

`python -m onnxplain_models.scene_files FOLDER` writes 1000 PNG files and boxes.csv. It needs scikit-learn,
but no torch.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from onnxplain.opencv import cv2
from onnxplain_models.scenes import Scenes, make_scenes

BOXES = "boxes.csv"


def main() -> None:
    """Write the scenes."""
    parser = argparse.ArgumentParser(prog="python -m onnxplain_models.scene_files", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="how many test scenes (default: 1000)")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count must be at least 1, not {arguments.count}")
    write_scenes(make_scenes("test", arguments.count), arguments.folder)


def write_scenes(scenes: Scenes, folder: Path) -> None:
    """Write each scene as a PNG, and where its digit lies as `onnxplain evaluate` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / BOXES).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "x0", "y0", "x1", "y1", "class"])
        for number, (image, label, box) in enumerate(
            zip(scenes.images, scenes.labels, scenes.boxes, strict=True)
        ):
            name = f"{number:04}.png"
            cv2.imwrite(str(folder / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            rows.writerow([name, *box.tolist(), int(label)])


if __name__ == "__main__":
    main()
