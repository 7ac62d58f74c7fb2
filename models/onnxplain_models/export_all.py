"""Export the reference networks: `python -m onnxplain_models.export_all [--output DIR]`.

By default the explainers go where the package ships them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from onnxplain.errors import OnnxplainError
from onnxplain.images import read_image
from onnxplain.preprocessing import preprocess
from onnxplain_export import export
from onnxplain_models.catalog import LABELS, NETWORKS, PREPROCESSING, TARGET_LAYERS, samples
from onnxplain_models.networks import load


def export_all(folder: Path) -> None:
    """Write the explainers of the three networks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        export(
            load(name),
            example_input(),
            folder / f"{name}.onnx",
            layer=TARGET_LAYERS[name],
            labels=LABELS,
            preprocessing=PREPROCESSING,
            source_name=f"onnxplain_models.networks:{name}",
        )


def example_input() -> torch.Tensor:
    """Return the sample scenes as the networks take them, float32 [samples, 3, 96, 96]."""
    pictures = [read_image(sample.picture.read_bytes()) for sample in samples()]
    return torch.from_numpy(np.stack([preprocess(picture, PREPROCESSING)[0] for picture in pictures]))


def main() -> None:
    """Export, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m onnxplain_models.export_all", description=__doc__)
    default = Path(__file__).parent / "explainers"
    parser.add_argument("--output", type=Path, default=default, help=f"folder (default: {default})")
    arguments = parser.parse_args()
    try:
        export_all(arguments.output)
    except (OnnxplainError, OSError) as error:
        sys.exit(f"error: {error}")
    for name in NETWORKS:
        path = arguments.output / f"{name}.onnx"
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
