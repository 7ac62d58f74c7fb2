"""Explainers of schema 1 from before `input.stated`: they explain as they did, and are verified.

`earlier_files/schema1.onnx` was exported by the version before (two convolutions, layers 1 and 3, labels, a
resize to 28 and ImageNet's mean); `schema1.json` holds what that version answered about `picture()`, every
eighth row and column of each heatmap.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from cli_helpers import run
from onnxplain import Explainer
from onnxplain.manifest import METADATA_KEY
from onnxplain_export import verify

FILE = Path(__file__).with_name("earlier_files") / "schema1.onnx"
ANSWERS: list[dict[str, Any]] = json.loads(FILE.with_suffix(".json").read_text())


def picture() -> NDArray[np.uint8]:
    rows, columns, channels = np.ogrid[:40, :52, :3]
    return ((rows * 5 + columns * 3 + channels * 40) % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(FILE)


def test_it_is_one_from_before() -> None:
    (entry,) = (entry for entry in onnx.load(FILE).metadata_props if entry.key == METADATA_KEY)
    assert "stated" not in json.loads(entry.value)["input"]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer['method']} {answer['layer']}")
def test_it_explains_as_it_did(answer: dict[str, Any], explainer: Explainer) -> None:
    found = explainer.explain(picture(), 1, answer["method"], answer["layer"])
    assert found.label == answer["label"]
    assert found.logit == pytest.approx(answer["logit"], abs=1e-5)
    assert found.probability == pytest.approx(answer["probability"], abs=1e-5)
    np.testing.assert_allclose(found.heatmap[::8, ::8].ravel(), answer["heat"], rtol=0, atol=1e-3)


def test_nothing_of_it_is_called_a_guess(explainer: Explainer) -> None:
    assert explainer.manifest.input.guessed == ()
    shown = run("inspect", str(FILE))
    assert shown.exit_code == 0
    assert "guessed" not in shown.stdout


def test_it_is_verified() -> None:
    measured = verify(FILE)
    assert 0 < measured.rules < 1e-6
    assert measured.zero == ()
