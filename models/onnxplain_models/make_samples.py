"""Write the sample scenes: `python -m onnxplain_models.make_samples [--output DIR]`.

By default they go where the package ships them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from onnxplain.files import write_atomically
from onnxplain.opencv import cv2
from onnxplain_models.catalog import LABELS
from onnxplain_models.scenes import make_scenes

# Test scenes beyond the 1000 that are evaluated, chosen by eye for different digits and backgrounds.
CHOSEN = (1041, 1049, 1052, 1015, 1056, 1021)


def write_samples(folder: Path) -> None:
    """Write each sample as a PNG, and `samples.json` with their labels and boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in CHOSEN:
        scenes = make_scenes("test", 1, start=number)
        label = LABELS[scenes.labels[0]]
        file = f"{label}.png"
        picture = cv2.cvtColor(scenes.images[0], cv2.COLOR_RGB2BGR)
        write_atomically(folder / file, cv2.imencode(".png", picture)[1].tobytes())
        records.append({"file": file, "label": label, "box": scenes.boxes[0].tolist()})
    lines = ",\n  ".join(json.dumps(record) for record in records)
    write_atomically(folder / "samples.json", f"[\n  {lines}\n]\n".encode())


def main() -> None:
    """Write the samples, and say where."""
    parser = argparse.ArgumentParser(prog="python -m onnxplain_models.make_samples", description=__doc__)
    default = Path(__file__).parent / "samples"
    parser.add_argument("--output", type=Path, default=default, help=f"folder (default: {default})")
    arguments = parser.parse_args()
    write_samples(arguments.output)
    print(f"{len(CHOSEN)} scenes in {arguments.output}")


if __name__ == "__main__":
    main()
