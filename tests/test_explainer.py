"""Explanations of a tiny network, against numpy; and everything that can be wrong with a call or a file."""

from __future__ import annotations

import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from onnxplain import (
    Explainer,
    Explanation,
    ImageError,
    MethodError,
    ModelError,
    OnnxplainError,
    Preprocessing,
    ProviderError,
    TargetError,
    cam,
    gradcam,
    network,
)
from onnxplain.heatmap import heatmap
from onnxplain.manifest import METADATA_KEY
from onnxplain.preprocessing import preprocess
from tiny_explainer import Network, tiny_explainer, tiny_manifest, tiny_model, two_layers

NETWORK = Network.random()
MANIFEST = tiny_manifest()
IMAGES = [np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8) for seed in range(3)]


@pytest.fixture(scope="module")
def explainer():
    return Explainer(tiny_explainer(NETWORK, MANIFEST))


def by_hand(image, index, manifest=MANIFEST):
    """Return the network's logits, activations and gradients for one picture and class, from numpy."""
    batch = preprocess(image, manifest.input)[0][None]
    activations = NETWORK.activations(batch)[0]
    h, w = activations.shape[1:]
    gradients = np.broadcast_to((NETWORK.weight[index] / (h * w))[:, None, None], activations.shape)
    return NETWORK.logits(batch)[0], activations, gradients


def assert_explains(explanation, image, index, method="gradcam"):
    logits, activations, gradients = by_hand(image, index)
    assert isinstance(explanation, Explanation)
    assert explanation.index == index
    assert explanation.label == f"class {index}"
    assert explanation.method == method
    assert explanation.layer == "features"
    assert explanation.logit == pytest.approx(logits[index], abs=1e-4)
    assert explanation.probability == pytest.approx(
        np.exp(logits[index]) / np.exp(logits).sum(), rel=1e-4, abs=1e-9
    )
    expected = {"gradcam": gradcam, "cam": cam}[method](activations, gradients)
    assert explanation.cam.dtype == np.float32
    np.testing.assert_allclose(explanation.cam, expected, atol=1e-5)
    np.testing.assert_allclose(explanation.heatmap, heatmap([expected], image.shape[:2]), atol=1e-4)
    assert (explanation.image == image).all()


@pytest.mark.parametrize("method", ["gradcam", "cam"])
@pytest.mark.parametrize("index", range(4))
def test_each_class(explainer, index, method):
    assert_explains(explainer.explain(IMAGES[0], index, method), IMAGES[0], index, method)


def test_labels_ranks_and_the_predicted_class(explainer):
    order = np.argsort(-by_hand(IMAGES[0], 0)[0])
    assert_explains(explainer.explain(IMAGES[0], "class 2"), IMAGES[0], 2)
    assert_explains(explainer.explain(IMAGES[0]), IMAGES[0], order[0])
    for rank in range(1, 5):
        assert_explains(explainer.explain(IMAGES[0], -rank), IMAGES[0], order[rank - 1])


def test_several_classes_of_one_picture(explainer):
    order = np.argsort(-by_hand(IMAGES[1], 0)[0])
    for explanation, index in zip(explainer.explain_classes(IMAGES[1], top=3), order, strict=False):
        assert_explains(explanation, IMAGES[1], index)
    targets = [3, "class 0", -1, 3, np.int64(1)]
    found = explainer.explain_classes(IMAGES[1], targets)
    for explanation, index in zip(found, [3, 0, order[0], 3, 1], strict=True):
        assert_explains(explanation, IMAGES[1], index)
    assert explainer.explain_classes(IMAGES[1], []) == []
    for targets in (np.array([3, 0, 1]), iter([3, 0, 1])):
        found = explainer.explain_classes(IMAGES[1], targets)
        assert [explanation.index for explanation in found] == [3, 0, 1]


def test_one_run_for_several_classes(explainer, monkeypatch):
    feeds = []

    class Spy:
        def run(self, names, feed, options):
            feeds.append({name: value.shape for name, value in feed.items()})
            return session.run(names, feed, options)

    session = explainer._session
    monkeypatch.setattr(explainer.network, "session", Spy())
    explainer.explain_classes(IMAGES[0], top=4)
    explainer.explain_batch(IMAGES)
    assert feeds == [
        {"image": (1, 3, 24, 32), "class_index": (1, 4)},
        {"image": (3, 3, 24, 32), "class_index": (3, 1)},
    ]


def test_one_picture_is_a_batch_without_a_copy(monkeypatch):
    """Of a file that takes pictures it would be as large as the picture."""
    given = []
    explainer = Explainer(tiny_explainer(NETWORK, MANIFEST))
    prepare, run = network.Network.prepare, network.run
    monkeypatch.setattr(
        network.Network, "prepare", lambda self, picture: given.append(prepare(self, picture)) or given[-1]
    )
    monkeypatch.setattr(network, "run", lambda *call: given.append(call[2]) or run(*call))
    explainer.explain(IMAGES[0])
    (tensor, _), feeds = given
    assert np.shares_memory(tensor, feeds["image"])


def test_batch(explainer):
    for explanation, image in zip(explainer.explain_batch(IMAGES, 2), IMAGES, strict=True):
        assert_explains(explanation, image, 2)
    targets = ["class 1", 0, -1]
    expected = [1, 0, int(np.argmax(by_hand(IMAGES[2], 0)[0]))]
    for given in (targets, tuple(targets)):
        found = explainer.explain_batch(IMAGES, given)
        for explanation, image, index in zip(found, IMAGES, expected, strict=True):
            assert_explains(explanation, image, index)
    found = explainer.explain_batch(IMAGES, np.array([1, 2, 3]))
    assert [explanation.index for explanation in found] == [1, 2, 3]
    assert [one.logit for one in explainer.explain_batch(np.stack(IMAGES), 2)] == pytest.approx(
        [by_hand(image, 2)[0][2] for image in IMAGES], abs=1e-4
    )
    assert explainer.explain_batch([]) == []
    for targets in (2, [2, 2, 2]):
        for explanation, image in zip(explainer.explain_batch(iter(IMAGES), targets), IMAGES, strict=True):
            assert_explains(explanation, image, 2)
    for one in ("picture.png", b"png", IMAGES[0]):
        with pytest.raises(TypeError, match="for one, call explain"):
            explainer.explain_batch(one)
    with pytest.raises(TargetError, match="2 targets for 3 pictures"):
        explainer.explain_batch(IMAGES, [0, 1])


def test_threads_share_an_explainer(explainer):
    alone = [explainer.explain(IMAGES[turn % 3], turn % 4).cam for turn in range(60)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda turn: explainer.explain(IMAGES[turn % 3], turn % 4).cam, range(60)))
    for one, other in zip(alone, together, strict=True):
        assert (one == other).all()


def test_pictures_of_all_kinds(explainer, tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), IMAGES[0][..., ::-1])
    for image in (path, str(path), path.read_bytes(), IMAGES[0] / 255):
        assert_explains(explainer.explain(image, 1), IMAGES[0], 1)


def test_the_heatmap_lies_where_the_crop_lay():
    """The network sees the middle of a wide picture: there lies the heatmap of the middle alone."""
    spec = replace(MANIFEST.input, resize=24, crop="center")
    explainer = Explainer(tiny_explainer(NETWORK, replace(MANIFEST, input=spec)))
    wide = np.concatenate([IMAGES[1][:, :16], IMAGES[0], IMAGES[1][:, :20]], axis=1)
    explanation = explainer.explain(wide, 1)
    expected = Explainer(tiny_explainer(NETWORK, MANIFEST)).explain(wide[:, 18:50], 1)
    assert explanation.heatmap.shape == (24, 68)
    np.testing.assert_allclose(explanation.cam, expected.cam, atol=1e-6)
    np.testing.assert_allclose(explanation.heatmap[:, 18:50], expected.heatmap, atol=1e-5)
    assert not explanation.heatmap[:, :18].any()
    assert not explanation.heatmap[:, 50:].any()
    assert (explanation.overlay()[:, :18] == wide[:, :18]).all()


def test_several_layers():
    explainer = Explainer(tiny_explainer(NETWORK, two_layers(MANIFEST)))
    early, late = (
        explainer.explain(IMAGES[0], 1, layer="early"),
        explainer.explain(IMAGES[0], 1, layer="late"),
    )
    both = explainer.explain(IMAGES[0], 1)
    assert (early.cam.shape, late.cam.shape) == ((6, 8), (3, 4))
    _, activations, gradients = by_hand(IMAGES[0], 1)
    np.testing.assert_allclose(early.cam, gradcam(activations, gradients), atol=1e-5)
    pooled = activations.reshape(-1, 3, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(late.cam, gradcam(pooled, 4 * gradients[:, ::2, ::2]), atol=1e-5)
    assert (both.layer, both.layers) == ("early+late", ("early", "late"))
    np.testing.assert_allclose(both.heatmap, heatmap([early.cam, late.cam], (24, 32)), atol=1e-6)
    assert both.cam.shape == (6, 8)
    assert both.cam.max() == 1
    with pytest.raises(MethodError, match=r"no target layer 'middle'; it has early, late"):
        explainer.explain(IMAGES[0], 1, layer="middle")


@pytest.mark.parametrize("seed", range(5))
def test_identities_of_the_papers(seed):
    """The mean of CAM and the bias make the logit; CAM is h w times Grad-CAM before its ReLU."""
    network = Network.random(seed=seed)
    explainer = Explainer(tiny_explainer(network, MANIFEST))
    for c, g in zip(
        explainer.explain_classes(IMAGES[0], range(4), method="cam"),
        explainer.explain_classes(IMAGES[0], range(4), method="gradcam"),
        strict=True,
    ):
        assert c.cam.mean() + network.offset[c.index] == pytest.approx(c.logit, abs=1e-4)
        np.testing.assert_allclose(np.maximum(c.cam, 0) / c.cam.size, g.cam, atol=1e-6)


def test_activations():
    """Softmax and sigmoid in float64; neither where the manifest says none."""

    def probabilities(activation, network=NETWORK):
        classes = len(network.weight)
        manifest = replace(tiny_manifest(classes=classes), activation=activation)
        found = Explainer(tiny_explainer(network, manifest)).explain_classes(IMAGES[0], range(classes))
        return [one.logit for one in found], [one.probability for one in found]

    logits, found = probabilities("softmax")
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(), rtol=1e-9)
    assert sum(found) == pytest.approx(1)
    logits, found = probabilities("sigmoid")
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.array(logits))), rtol=1e-9)
    assert probabilities("none")[1] == [None] * 4
    logits, found = probabilities("sigmoid", Network.random(classes=1))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.array(logits))), rtol=1e-9)
    huge = replace(NETWORK, weight=NETWORK.weight * 1e4)
    for activation in ("softmax", "sigmoid"):
        assert np.isfinite(probabilities(activation, huge)[1]).all()


def test_a_class_that_nothing_speaks_for_is_blank():
    dead = replace(NETWORK, weight=-np.abs(NETWORK.weight))
    explanation = Explainer(tiny_explainer(dead, MANIFEST)).explain(IMAGES[0])
    assert (explanation.cam == 0).all()
    assert (explanation.heatmap == 0).all()
    assert explanation.boxes() == []
    assert (explanation.overlay() == IMAGES[0]).all()


def test_an_explanation_is_frozen_and_short(explainer):
    explanation = explainer.explain(IMAGES[0])
    with pytest.raises(FrozenInstanceError):
        explanation.index = 3
    assert explanation.heatmap is explanation.heatmap
    assert len(repr(explanation)) < 250


def test_a_frame_that_is_filled_again_does_not_change_the_explanation(explainer):
    frame = IMAGES[0].copy()
    explanation = explainer.explain(frame, 1)
    frame[:] = 0
    assert (explanation.image == IMAGES[0]).all()


def test_boxes(explainer):
    explanation = explainer.explain(IMAGES[0])
    box = explanation.boxes(0.9)[0]
    y, x = np.unravel_index(explanation.heatmap.argmax(), (24, 32))
    assert any(b.x0 <= x < b.x1 and b.y0 <= y < b.y1 for b in explanation.boxes(0.9))
    assert (explanation.heatmap[box.y0 : box.y1, box.x0 : box.x1] > 0.9).any()


def test_save(explainer, tmp_path):
    explanation = explainer.explain(IMAGES[0])
    explanation.save(tmp_path / "overlay.png", "jet", 0.5)
    saved = cv2.imread(str(tmp_path / "overlay.png"))[..., ::-1]
    assert (saved == explanation.overlay("jet", 0.5)).all()
    explanation.save(tmp_path / "overlay.jpg")
    assert cv2.imread(str(tmp_path / "overlay.jpg")).shape == (24, 32, 3)
    explanation.save(tmp_path / "overlay.jpg")  # over itself
    for name in ("overlay", "overlay.xyz", "overlay.onnx"):
        with pytest.raises(ImageError, match="no picture format"):
            explanation.save(tmp_path / name)
    with pytest.raises(ImageError, match="No such file"):
        explanation.save(tmp_path / "missing" / "overlay.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.jpg", "overlay.png"]


def test_wrong_calls(explainer):
    with pytest.raises(TargetError, match="class 4 is out of range: the model has 4 classes, 0 to 3"):
        explainer.explain(IMAGES[0], 4)
    with pytest.raises(TargetError, match="top must be at most 4, the number of classes, not 5"):
        explainer.explain_classes(IMAGES[0], top=5)
    with pytest.raises(TargetError, match="did you mean 'class 0'"):
        explainer.explain(IMAGES[0], "clas 0")
    with pytest.raises(TargetError, match="top must be at least 1"):
        explainer.explain_classes(IMAGES[0], top=0)
    with pytest.raises(MethodError, match="unknown method 'gradcam2'; there are cam, gradcam"):
        explainer.explain(IMAGES[0], method="gradcam2")
    with pytest.raises(ImageError, match="NaN"):
        explainer.explain(np.full((24, 32, 3), np.nan))
    with pytest.raises(TypeError, match="either targets or top"):
        explainer.explain_classes(IMAGES[0])
    with pytest.raises(TypeError, match="either targets or top"):
        explainer.explain_classes(IMAGES[0], [1], top=2)
    with pytest.raises(TypeError, match="call explain"):
        explainer.explain_classes(IMAGES[0], "class 1")


def test_one_picture_is_no_batch(explainer, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(IMAGES[0]).save(path)
    data = path.read_bytes()
    with path.open("rb") as file, Image.open(path) as picture:
        for one in (path, str(path), data, IMAGES[0], file, io.BytesIO(data), picture):
            with pytest.raises(TypeError, match=r"a list of pictures or an array .*; for one, call explain"):
                explainer.explain_batch(one)
            with pytest.raises(TypeError, match=r"a list of pictures or an array .*; for one, call explain"):
                next(explainer.stream(one))
        assert len(explainer.explain_batch([file, picture])) == 2


class OneFile:
    """An upload, say, that can be read and no more."""

    def read(self) -> bytes:
        raise AssertionError("it isn't read")


class Camera:
    """Its next frame can be asked for by name too."""

    def read(self) -> tuple[bool, object]:
        return True, IMAGES[0]

    def __iter__(self):
        return iter(IMAGES)


def test_a_file_of_any_kind_is_no_batch_and_a_camera_is_one(explainer):
    with tempfile.NamedTemporaryFile() as temporary:
        for one in (OneFile(), temporary, io.BufferedReader(io.BytesIO())):
            with pytest.raises(TypeError, match="for one, call explain"):
                explainer.explain_batch(one)
            with pytest.raises(TypeError, match="for one, call explain"):
                next(explainer.stream(one))
    for found in (explainer.explain_batch(Camera()), list(explainer.stream(Camera()))):
        assert len(found) == len(IMAGES)
        for explanation, image in zip(found, IMAGES, strict=True):
            assert explanation.logit == pytest.approx(explainer.explain(image).logit, abs=1e-5)


def test_nothing_runs_for_a_wrong_target(explainer, monkeypatch):
    monkeypatch.setattr("onnxplain.explainer.read_picture", lambda image: pytest.fail("a picture was read"))
    with pytest.raises(TargetError):
        explainer.explain("missing.png", 4)


def test_cam_is_refused_where_it_is_not_defined():
    layers = tuple(replace(layer, head=None) for layer in MANIFEST.layers)
    explainer = Explainer(tiny_explainer(NETWORK, replace(MANIFEST, layers=layers)))
    assert explainer.explain(IMAGES[0], 1).cam.shape == (6, 8)
    with pytest.raises(
        MethodError,
        match=r"cam needs global average pooling and one linear layer after 'features'.*use gradcam",
    ):
        explainer.explain(IMAGES[0], 1, method="cam")


def test_ambiguous_labels():
    manifest = replace(MANIFEST, labels=("crane", "maillot", "crane", "maillot"))
    with pytest.raises(TargetError, match="give an index: 0, 2"):
        Explainer(tiny_explainer(NETWORK, manifest)).explain(IMAGES[0], "crane")


def test_no_labels():
    explainer = Explainer(tiny_explainer(NETWORK, replace(MANIFEST, labels=None)))
    assert explainer.explain(IMAGES[0], 2).label is None


def test_a_model_that_does_not_say_how_many_classes_it_has():
    model = tiny_model(NETWORK, replace(MANIFEST, labels=None))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes_of_the_model"
    explainer = Explainer(model.SerializeToString())
    assert explainer.explain(IMAGES[0], 3).index == 3
    with pytest.raises(TargetError, match="out of range"):
        explainer.explain(IMAGES[0], 4)
    explainer.network.num_classes = None  # as where onnxruntime can't infer it either
    for targets in ([4], [0, 4], [-5]):
        with pytest.raises(TargetError, match="a class is out of range: the model has 4 classes"):
            explainer.explain_classes(IMAGES[0], targets)


@pytest.mark.parametrize(
    ("output", "node"),
    [
        ("explained_class", "Concat"),  # twice as many as asked for
        ("gradients", "Concat"),
        ("explained_class", "Add"),  # classes that there aren't
        ("explained_class", "Neg"),
    ],
)
def test_outputs_that_are_not_what_the_graph_left_open(output, node):
    model = tiny_model(NETWORK, replace(MANIFEST, labels=None))
    rename_output(model, output, "inner")
    inputs = ["inner"] if node == "Neg" else ["inner", "inner"]
    attributes = {"axis": 1} if node == "Concat" else {}
    model.graph.node.append(onnx.helper.make_node(node, inputs, [output], **attributes))
    kept = next(one for one in model.graph.output if one.name == "inner")
    kept.name = output
    for index, dim in enumerate(kept.type.tensor_type.shape.dim):
        dim.dim_param = f"open{index}"
    explainer = Explainer(model.SerializeToString())
    with pytest.raises(ModelError, match=r"came out as \(|other classes"):
        explainer.explain(IMAGES[0], 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", ["logits", "activations", "gradients"])
def test_outputs_that_are_not_finite(output, value):
    model = tiny_model(NETWORK, MANIFEST)
    rename_output(model, output, "inner")
    model.graph.output[[one.name for one in model.graph.output].index("inner")].name = output
    constant = onnx.numpy_helper.from_array(np.array(value, np.float32), "constant")
    model.graph.initializer.append(constant)
    model.graph.node.append(onnx.helper.make_node("Add", ["inner", "constant"], [output]))
    explainer = Explainer(model.SerializeToString())
    for target in (1, -1):
        with pytest.raises(ModelError, match=rf"'{output}' came out as NaN or infinite.*check its weights"):
            explainer.explain(IMAGES[0], target)


@pytest.mark.parametrize("node", ["Identity", "Neg", "Add"])
def test_another_class_than_asked_for(node):
    """The file says that it explained class 0, -1 or 2, asked for class 1."""
    model = tiny_model(NETWORK, MANIFEST)
    rename_output(model, "explained_class", "inner")
    model.graph.output[1].name = "explained_class"
    inputs = {"Identity": ["nought"], "Neg": ["inner"], "Add": ["inner", "inner"]}[node]
    model.graph.node.append(onnx.helper.make_node("Sub", ["inner", "inner"], ["nought"]))
    model.graph.node.append(onnx.helper.make_node(node, inputs, ["explained_class"]))
    explainer = Explainer(model.SerializeToString())
    with pytest.raises(ModelError, match="other classes than it was asked for"):
        explainer.explain(IMAGES[0], 1)


def test_a_file_and_a_session(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_explainer(NETWORK, MANIFEST))
    for explainer in (
        Explainer(path),
        Explainer(str(path), device="cpu"),
        Explainer(path, providers=["CPUExecutionProvider"]),
        Explainer(path, providers=[("CPUExecutionProvider", {})]),
        Explainer(session=onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])),
    ):
        assert_explains(explainer.explain(IMAGES[0], 1), IMAGES[0], 1)
        assert explainer.providers == ["CPUExecutionProvider"]
        assert explainer.manifest == MANIFEST


def test_a_model_or_a_session():
    with pytest.raises(TypeError, match="either a model or a session"):
        Explainer()
    with pytest.raises(TypeError, match="either a model or a session"):
        Explainer(tiny_explainer(), session=onnxruntime.InferenceSession(tiny_explainer()))
    session = onnxruntime.InferenceSession(tiny_explainer())
    for options in ({"device": "cpu"}, {"providers": ["CPUExecutionProvider"]}):
        with pytest.raises(TypeError, match="a session has its own"):
            Explainer(session=session, **options)


def test_files_that_are_no_models(tmp_path):
    whole = tiny_explainer(NETWORK, MANIFEST)
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    for name, message in [
        ("missing.onnx", "there is no model file"),
        (".", "is a folder"),
        ("empty.onnx", "is empty"),
        ("text.onnx", "can't load .*text"),
        ("half.onnx", "can't load .*half|plain ONNX model"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            Explainer(tmp_path / name)
        assert "\n" not in str(caught.value)
    for data in (b"", b"not a model", whole[:1000]):
        with pytest.raises(ModelError):
            Explainer(data)


def test_a_plain_model(tmp_path):
    model = tiny_model(NETWORK, MANIFEST)
    del model.metadata_props[:]
    path = tmp_path / "resnet.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        ModelError, match=r"plain ONNX model.*onnxplain export .*resnet\.onnx -o explainer\.onnx"
    ):
        Explainer(path)


@pytest.mark.parametrize("providers", ["CPUExecutionProvider", ("CPUExecutionProvider", {})])
def test_one_provider_in_place_of_a_list(providers):
    with pytest.raises(TypeError, match=r"a list of execution providers.*such as \["):
        Explainer(tiny_explainer(), providers=providers)


@pytest.mark.parametrize("provider", ["cuda", "TensorrtExecutionProvider", "NoSuchProvider"])
def test_providers_that_are_not_available(provider):
    options = {"device": provider} if provider == "cuda" else {"providers": [provider]}
    with pytest.raises(ProviderError, match=r"not available; available here: .*CPUExecutionProvider"):
        Explainer(tiny_explainer(), **options)


def test_unknown_device():
    with pytest.raises(ProviderError, match="unknown device 'tpu'; there are auto, cpu and cuda"):
        Explainer(tiny_explainer(), device="tpu")
    with pytest.raises(ProviderError, match="available here"):
        Explainer(tiny_explainer(), providers=[])


def test_a_silent_fallback_is_said(monkeypatch):
    """onnxruntime lists a provider that its build has, and falls back where the machine lacks the device."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    session_class = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers, **more: session_class(model, options, providers=providers[-1:]),
    )
    for device in ("auto", "cuda"):
        with pytest.warns(RuntimeWarning, match=r"CUDAExecutionProvider could not be started.*runs on CPU"):
            Explainer(tiny_explainer(), device=device)
    assert Explainer(tiny_explainer(), device="cpu").providers == ["CPUExecutionProvider"]


def test_a_provider_that_fails_gives_way_to_the_cpu(monkeypatch):
    """onnxruntime raises where a provider's libraries are there but unusable."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    session_class = onnxruntime.InferenceSession

    def load(model, options, providers, **more):
        if "CUDAExecutionProvider" in providers:
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient")
        return session_class(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    with pytest.warns(RuntimeWarning, match="CUDAExecutionProvider could not be started"):
        assert Explainer(tiny_explainer()).providers == ["CPUExecutionProvider"]
    with pytest.raises(ModelError, match="can't load"):
        Explainer(b"not a model")


def test_files_with_flipped_bytes_raise_nothing_else(capfd):
    whole = np.frombuffer(tiny_explainer(NETWORK, MANIFEST), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = whole.copy()
        data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        try:
            explanation = Explainer(data.tobytes()).explain(IMAGES[0])
        except OnnxplainError:
            continue
        assert 0 <= explanation.heatmap.min() <= explanation.heatmap.max() <= 1
    assert capfd.readouterr() == ("", "")


def damaged(change):
    model = tiny_model(NETWORK, MANIFEST)
    change(model)
    return model.SerializeToString()


def rename_output(model, old, new):
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]
    for output in model.graph.output:
        if output.name == old:
            output.name = new


def with_manifest(manifest):
    def change(model):
        onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})

    return change


def layer(**changes):
    return replace(MANIFEST, layers=(replace(MANIFEST.layers[0], **changes),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: rename_output(model, "logits", "scores"), "lacks the output 'logits'"),
        (lambda model: rename_output(model, "gradients", "g"), "lacks the output 'gradients'"),
        (lambda model: model.graph.output.pop(1), "lacks the output 'explained_class'"),
        (with_manifest(layer(activations="logits")), r"output 'logits' is tensor\(float\)"),
        (with_manifest(layer(gradients="explained_class")), "output 'explained_class' is"),
        (with_manifest(layer(gradients="nothing")), "lacks the output 'nothing'"),
        (with_manifest(layer(channels=7)), "output 'activations' is .*but the manifest says"),
        (with_manifest(layer(height=8, width=6)), "output 'activations' is"),
        (with_manifest(replace(MANIFEST, labels=("a", "b"))), r"'logits' is .* says .*\['any', 2\]"),
        (with_manifest(replace(MANIFEST, labels=())), r"'logits' is .* says .*\['any', 0\]"),
        (
            with_manifest(replace(MANIFEST, input=Preprocessing(3, 32, 32, resize=None))),
            "input 'image' is .*but the manifest says",
        ),
        (
            with_manifest(replace(MANIFEST, input=Preprocessing.for_size(1, 24, 32))),
            "input 'image' is .*but the manifest says",
        ),
    ],
)
def test_files_that_are_not_what_their_manifest_says(change, message):
    with pytest.raises(ModelError, match=message):
        Explainer(damaged(change))


def test_a_newer_schema():
    text = MANIFEST.to_json().replace('"schema": 1', '"schema": 2')
    model = tiny_model(NETWORK, MANIFEST)
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    with pytest.raises(ModelError, match=r"schema 2.*upgrade"):
        Explainer(model.SerializeToString())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "1" * 5000, "[" * 100_000])
def test_a_manifest_that_is_none(text):
    model = tiny_model(NETWORK, MANIFEST)
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    with pytest.raises(ModelError, match="manifest") as caught:
        Explainer(model.SerializeToString())
    assert "\n" not in str(caught.value)
