"""What importing the package costs, and what it says where its dependencies are missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnxplain


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_is_light():
    done = run(
        "import sys, onnxplain; print(onnxplain.__version__);"
        "print(*sorted({'numpy', 'cv2', 'onnxruntime', 'torch', 'onnx'} & set(sys.modules)))"
    )
    assert done.stdout == f"{onnxplain.__version__}\n\n"


def test_only_the_command_line_ever_imports_what_exports():
    """Not in a function either: it would be found out where that is called."""
    runtime = Path(onnxplain.__file__).parent
    sources = [path for path in runtime.rglob("*.py") if path.parent != runtime / "cli"]
    wrong = [
        f"{path.name}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) (torch|onnx|onnx_ir|onnxscript|onnxplain_export)\b", line)
    ]
    assert len(sources) > 30
    assert wrong == []


def test_the_runtime_never_imports_what_exports():
    done = run(
        "import sys; from onnxplain import *; print(Explainer.__name__);"
        "print(*sorted({'torch', 'onnx', 'onnx_ir', 'onnxscript', 'onnxplain_export'} & set(sys.modules)))"
    )
    assert done.stdout == "Explainer\n\n", done.stderr


def test_every_public_name_is_there():
    for name in onnxplain.__all__:
        assert getattr(onnxplain, name).__name__ == name
    assert set(onnxplain.__all__) <= set(dir(onnxplain))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxplain.nothing


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("cv2", 'OpenCV is not installed; run: pip install "onnxplain[cpu]"'),
        ("onnxruntime", 'onnxruntime is not installed; run: pip install "onnxplain[cpu]"'),
    ],
)
def test_a_missing_dependency_is_named_with_its_pip_line(missing, message):
    done = run(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import onnxplain\n"
        "try: onnxplain.Explainer\n"
        "except onnxplain.MissingDependencyError as error: print(error)"
    )
    assert message in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_the_maps_need_numpy_alone():
    done = run(
        "import sys; sys.modules['cv2'] = sys.modules['onnxruntime'] = None\n"
        "import numpy, onnxplain\n"
        "print(onnxplain.gradcam(numpy.ones((1, 2, 2)), numpy.ones((1, 2, 2))).sum())"
    )
    assert done.stdout == "4.0\n", done.stderr
