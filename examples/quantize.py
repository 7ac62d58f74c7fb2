"""Quantise a classifier to int8 with onnxruntime, calibrated on pictures as its explainer takes them.

    onnxplain export classifier.onnx -o explainer.onnx
    python examples/quantize.py classifier.onnx int8.onnx --like explainer.onnx PICTURE_OR_FOLDER...
    onnxplain export int8.onnx -o int8_explainer.onnx

`--like` names an explainer of the classifier in float, which says how pictures become its input. Some hundred
pictures of the kind that it will see are enough. Needs onnx and sympy beside onnxplain.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxplain import Explainer, Preprocessing
from onnxplain.images import read_image
from onnxplain.preprocessing import preprocess


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """The pictures that ranges are measured on, one after the other."""

    def __init__(self, name: str, pictures: Sequence[Path], spec: Preprocessing) -> None:
        self._feeds: Iterator[dict[str, Any]] = (
            {name: preprocess(read_image(picture), spec)[0][None]} for picture in pictures
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next picture, as the network takes it."""
        return next(self._feeds, None)


def quantize(source: Path, destination: Path, pictures: Sequence[Path], spec: Preprocessing) -> None:
    """Write a network with quantisers (QDQ): uint8 activations, and int8 weights with a scale a channel."""
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared)  # shapes are inferred, batch norms folded
        quantize_static(
            prepared,
            destination,
            Pictures(session.get_inputs()[0].name, pictures, spec),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # on ARM: QInt8
            weight_type=QuantType.QInt8,
        )


def main() -> None:
    """Quantise as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--like", type=Path, required=True, metavar="EXPLAINER")
    options = parser.parse_args()
    pictures = [
        file for path in options.pictures for file in (sorted(path.iterdir()) if path.is_dir() else [path])
    ]
    quantize(options.source, options.destination, pictures, Explainer(options.like).manifest.input)


if __name__ == "__main__":
    main()
