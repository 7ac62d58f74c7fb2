"""Explainers in other processes, copies of them, and what they say of themselves."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxplain import Explainer, Explanation, ModelError
from tiny_explainer import Network, tiny_explainer, tiny_manifest

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
STARTS = ["spawn", *(["fork"] if sys.platform == "linux" else [])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_explainer())
    return path


def assert_same(one: Explanation, other: Explanation) -> None:
    assert (one.index, one.label, one.logit) == (other.index, other.label, other.logit)
    np.testing.assert_array_equal(one.heatmap, other.heatmap)


def explain(explainer: Explainer) -> tuple[int, Explanation]:
    return os.getpid(), explainer.explain(PICTURE, "class 2")


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("of", ["path", "bytes"])
def test_in_workers(start: str, of: str, path: Path) -> None:
    explainer = Explainer(path if of == "path" else path.read_bytes())
    expected = explainer.explain(PICTURE, "class 2")
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for process, found in pool.map(explain, [explainer] * 3):
            assert process != os.getpid()
            assert_same(found, expected)
    with context.Pool(1) as pool:
        assert_same(pool.apply(explain, (explainer,))[1], expected)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_is_the_same_when_loaded_again(protocol: int, path: Path) -> None:
    for model in (path, str(path), path.read_bytes()):
        explainer = Explainer(model, device="cpu", threads=1)
        again = pickle.loads(pickle.dumps(explainer, protocol))
        assert type(again) is Explainer
        assert again.manifest == explainer.manifest
        assert again._session is not explainer._session
        assert_same(again.explain(PICTURE), explainer.explain(PICTURE))
        assert_same(pickle.loads(pickle.dumps(again)).explain(PICTURE), explainer.explain(PICTURE))


def test_its_options_go_with_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    session_class = onnxruntime.InferenceSession

    def load(model: Any, options: Any, providers: Any, **more: Any) -> Any:
        asked.append((options.intra_op_num_threads, providers))
        return session_class(model, options, providers=providers, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    provider = ("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})
    pickle.loads(pickle.dumps(Explainer(path, providers=[provider], threads=3, size=(24, 32))))
    assert asked == [(3, [provider])] * 2


def test_a_size_goes_with_it(dynamic: Path) -> None:
    explainer = Explainer(dynamic, size=(48, 64))
    again = pickle.loads(pickle.dumps(explainer))
    assert (again.network.input.height, again.network.input.width) == (48, 64)
    assert "size=(48, 64)" in repr(again)


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    """A file that takes images of any size."""
    import onnx

    model = onnx.load_from_string(tiny_explainer())
    for tensor in [*model.graph.input, *model.graph.output]:
        dims = tensor.type.tensor_type.shape.dim
        if len(dims) >= 4:
            dims[-2].dim_param, dims[-1].dim_param = f"{tensor.name}_h", f"{tensor.name}_w"
    path = tmp_path / "dynamic.onnx"
    onnx.save(model, path)
    return path


def test_a_path_is_found_from_another_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    pickled = pickle.dumps(Explainer("model.onnx"))
    (path.parent / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert pickle.loads(pickled).manifest == tiny_manifest()


def test_a_file_that_is_gone(path: Path) -> None:
    pickled = pickle.dumps(Explainer(path))
    path.unlink()
    with pytest.raises(ModelError, match=r"^there is no model file .*model\.onnx$"):
        pickle.loads(pickled)


def test_a_file_that_is_another_now(path: Path) -> None:
    explainer = Explainer(path)
    pickled = pickle.dumps(explainer)
    before = path.stat()
    path.write_bytes(tiny_explainer(Network.random(seed=1)))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    with pytest.raises(ModelError, match=r"model\.onnx isn't the file of .* load it again$"):
        pickle.loads(pickled)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"model\.onnx was written again since .* load it again$"):
            pickle.dumps(explainer)
        path.unlink(missing_ok=True)


def test_a_file_that_is_the_same_on_another_machine(path: Path) -> None:
    """It was copied there, and so has another time."""
    explainer = Explainer(path)
    pickled = pickle.dumps(explainer)
    os.utime(path, ns=(0, 0))
    assert_same(pickle.loads(pickled).explain(PICTURE), explainer.explain(PICTURE))


class Noted(Explainer):
    """Has something of its own."""

    def __init__(self, notes: list[str], model: Path) -> None:
        super().__init__(model)
        self.notes = notes
        self.itself = self


def test_what_a_subclass_has_goes_with_it(path: Path) -> None:
    explainer = Noted(["mine"], path)
    again = pickle.loads(pickle.dumps(explainer))
    assert type(again) is Noted
    assert again.notes == ["mine"]
    assert again.itself is again
    assert again._session is not explainer._session
    assert_same(again.explain(PICTURE), explainer.explain(PICTURE))
    assert pickle.loads(pickle.dumps(again)).notes == ["mine"]
    shallow, deep = copy.copy(explainer), copy.deepcopy(explainer)
    assert shallow.notes is explainer.notes
    assert deep.notes == ["mine"]
    assert deep.notes is not explainer.notes
    assert deep.itself is deep
    assert deep._session is explainer._session


def test_one_of_a_session_says_that_it_cannot(path: Path) -> None:
    explainer = Explainer(session=onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))
    with pytest.raises(TypeError, match="of a session can't be pickled; make one of its model's"):
        pickle.dumps(explainer)
    assert_same(copy.deepcopy(explainer).explain(PICTURE), explainer.explain(PICTURE))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_share_what_is_loaded(copied: Any, path: Path) -> None:
    class Own(Explainer):
        note = ""

    explainer = Own(path)
    explainer.note = "mine"
    other = copied(explainer)
    assert type(other) is Own
    assert other is not explainer
    assert other.note == "mine"
    assert other._session is explainer._session
    path.unlink()
    assert_same(other.explain(PICTURE), explainer.explain(PICTURE))
    (inside,) = copied([explainer])
    assert inside.manifest == explainer.manifest


def test_what_it_says_of_itself(path: Path) -> None:
    what = "network=None, layers=['features'], classes=4, size=(24, 32))"
    assert repr(Explainer(path)) == f"Explainer({str(path)!r}, {what}"
    assert repr(Explainer(path.read_bytes())) == f"Explainer(<bytes>, {what}"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert repr(Explainer(session=session)) == f"Explainer(<session>, {what}"
    manifest = replace(tiny_manifest(), source={"name": "torchvision:resnet50\x1b[31m"})
    text = repr(Explainer(tiny_explainer(manifest=manifest)))
    assert r"network='torchvision:resnet50\x1b[31m'" in text
    assert text.isprintable()
