"""The maps, against the papers' equations written out as loops, and against each other."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_grad_cam import GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM

from onnxplain import cam, gradcam
from onnxplain.maps import METHODS

BATCH, CLASSES, CHANNELS, H, W = 2, 3, 5, 4, 6


def random_arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(BATCH, CHANNELS, H, W)).astype(dtype),
        rng.normal(size=(BATCH, CLASSES, CHANNELS, H, W)).astype(dtype),
    )


def apply(method, activations, gradients, **options):
    """Call a method, with rivals made of the gradients where it takes some."""
    arrays = [activations, gradients]
    if METHODS[method].rivals:
        half = np.asarray(gradients) / 2
        arrays.append(np.stack([half, half[..., ::-1]], axis=-4))
    return METHODS[method].maps(*arrays, **options)


def test_gradcam_by_hand():
    activations = np.array([[[1, 2], [3, 4]], [[0, 1], [0, -2]]], np.float32)
    gradients = np.array([[[1, 1], [1, 1]], [[-4, 0], [0, -4]]], np.float32)
    # alpha = (1, -2); sum = A_0 - 2 A_1 = [[1, 0], [3, 8]]
    assert gradcam(activations, gradients).tolist() == [[1, 0], [3, 8]]
    # alpha = (-1, 2): everything is negative or 0, and the ReLU leaves nothing
    assert gradcam(activations, -gradients).tolist() == [[0, 0], [0, 0]]


def test_cam_by_hand():
    activations = np.array([[[1, 2], [3, 4]], [[0, 1], [0, -2]]], np.float32)
    weights = np.array([2, -3], np.float32)
    gradients = np.ones((2, 2, 2), np.float32) * (weights / 4)[:, None, None]
    assert cam(activations, gradients).tolist() == [[2, 1], [6, 14]]
    assert cam(activations, -gradients).tolist() == [[-2, -1], [-6, -14]]


def test_gradcam_is_its_equation():
    activations, gradients = random_arrays()
    maps = gradcam(activations, gradients)
    assert maps.shape == (BATCH, CLASSES, H, W)
    assert maps.dtype == np.float32
    for b in range(BATCH):
        for c in range(CLASSES):
            expected = sum(gradients[b, c, k].mean() * activations[b, k] for k in range(CHANNELS))
            np.testing.assert_allclose(maps[b, c], np.maximum(expected, 0), atol=1e-6)


ACTIVATIONS_BY_HAND = np.array([[[1, 2], [3, 4]], [[0, 1], [0, 0]]], np.float32)
GRADIENTS_BY_HAND = np.array([[[1, 0], [0, -1]], [[2, 0], [0, -4]]], np.float32)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # weights: 1 / (2 + 1 * 10) and 2 / (2 + 2 * 1)
        ("gradcam++", [[1 / 12, 2 / 12 + 1 / 2], [3 / 12, 4 / 12]]),
        # weights: (1 * 1 - 4 * 1) / 10 and (0 * 2 - 0 * 4) / 1
        ("xgradcam", [[-0.3, -0.6], [-0.9, -1.2]]),
        ("hirescam", [[1, 0], [0, -4]]),
        ("layercam", [[1, 0], [0, 0]]),
        ("gradcam_elementwise", [[1, 0], [0, 0]]),
        # alpha = (0, -0.5)
        ("gradcam_signed", [[0, -0.5], [0, 0]]),
        ("counterfactual", [[0, 0.5], [0, 0]]),
    ],
)
def test_others_by_hand(method, expected):
    found = METHODS[method].maps(ACTIVATIONS_BY_HAND, GRADIENTS_BY_HAND)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_eigencam_by_hand():
    """A = u s v^T has one principal component, s u, and the sign that agrees with the energy (s u)^2."""
    u, v = np.array([[0.6, 0.8], [0, 0]]), np.array([-0.28, 0.96])
    activations = 5 * v[:, None, None] * u
    for sign in (1, -1):
        found = METHODS["eigencam"].maps(sign * activations, np.zeros((3, 2, 2, 2)))
        np.testing.assert_allclose(found, np.broadcast_to(5 * u, (3, 2, 2)), rtol=0, atol=1e-12)


def test_eigengradcam_by_hand():
    """Each channel of A dS/dA loses its mean: (1, 0, 0, -1) and 0 of what is left lie on one axis."""
    activations = np.array([[[1, 2], [3, 4]], [[1, 1], [1, 1]]], np.float32)
    gradients = np.array([[[3, 1], [2 / 3, 1 / 4]], [[1, 1], [1, 1]]], np.float32)
    # A dS/dA is 3, 2, 2, 1 and 1, 1, 1, 1: less its mean 1, 0, 0, -1 and 0, 0, 0, 0.
    found = METHODS["eigengradcam"].maps(activations, gradients)
    np.testing.assert_allclose(found, [[1, 0], [0, -1]], rtol=0, atol=1e-6)
    # The other way round, what was against the class is for it.
    np.testing.assert_allclose(
        METHODS["eigengradcam"].maps(activations, -gradients), [[-1, 0], [0, 1]], rtol=0, atol=1e-6
    )


def test_finercam_by_hand():
    activations = np.array([[[1, 2], [3, 4]], [[0, 1], [0, -2]]], np.float32)
    ones = np.ones((2, 2), np.float32)
    gradients = np.array([3 * ones, ones])
    rivals = np.array([[ones, ones], [3 * ones, 5 * ones]])  # their mean is (2, 3)
    finercam = METHODS["finercam"].maps
    # alpha = (3, 1) - (2, 3) = (1, -2), as in Grad-CAM's case above
    assert finercam(activations, gradients, rivals).tolist() == [[1, 0], [3, 8]]
    # alpha = (3, 1) - (1, 1.5)
    np.testing.assert_allclose(
        finercam(activations, gradients, rivals, gamma=0.5), [[2, 3.5], [6, 9]], rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(
        finercam(activations, gradients, rivals[:0]), gradcam(activations, gradients)
    )
    with pytest.raises(ValueError, match="rivals"):
        finercam(activations, gradients, gradients)


@pytest.mark.parametrize("shape", [(5, 4, 6), (40, 2, 3)], ids=["few channels", "many channels"])
@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_principal_components_are_those_of_the_svd(method, shape):
    rng = np.random.default_rng(4)
    activations, gradients = np.abs(rng.normal(size=(2, *shape))), rng.normal(size=(2, 3, *shape))
    found = METHODS[method].maps(activations, gradients)
    for b, c in np.ndindex(2, 3):
        terms = activations[b] if method == "eigencam" else activations[b] * gradients[b, c]
        matrix = terms.reshape(shape[0], -1).T
        like = (matrix**2).sum(axis=1) if method == "eigencam" else matrix.sum(axis=1)
        if method == "eigengradcam":
            matrix = matrix - matrix.mean(axis=0)
        expected = matrix @ np.linalg.svd(matrix)[2][0]
        expected *= np.sign(expected @ like)
        np.testing.assert_allclose(found[b, c].ravel(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].is_eigen])
def test_eigen_smooth_takes_the_principal_component_of_the_terms(method):
    """Where a single channel counts, that is the channel itself less its mean."""
    activations, gradients = random_arrays(np.float64)
    activations, gradients = np.abs(activations), np.abs(gradients)
    if method == "counterfactual":
        gradients = -gradients
    only = np.zeros((CHANNELS, 1, 1))
    only[2] = 1
    plain = apply(method, activations, gradients * only)
    smooth = apply(method, activations, gradients * only, eigen_smooth=True)
    centred = plain - plain.mean(axis=(-2, -1), keepdims=True)
    is_positive = method not in ("cam", "xgradcam", "hirescam", "gradcam_signed")
    np.testing.assert_allclose(smooth, np.maximum(centred, 0) if is_positive else centred, rtol=0, atol=1e-9)


def test_a_principal_component_of_what_is_not_finite_is_not_a_number():
    activations, gradients = random_arrays()
    gradients[0, 1, 2, 3, 4] = np.nan
    maps = METHODS["eigengradcam"].maps(activations, gradients)
    assert np.isnan(maps).all(axis=(-2, -1)).tolist() == [[False, True, False], [False] * 3]


@pytest.mark.parametrize("method", ["gradcam++", "xgradcam"])
def test_what_is_divided_by_zero_is_zero(method):
    """The first channel sums up to 0, and its 2 + g * sum is 2; the second's is 2 - 1 * 2."""
    activations = np.array([[[1, -1]], [[-1, -1]]], np.float32)
    gradients = np.array([[[1, 1]], [[1, 1]]], np.float32)
    expected = {"gradcam++": [[1, 0]], "xgradcam": [[-1, -1]]}[method]
    with np.errstate(all="raise"):
        assert METHODS[method].maps(activations, gradients).tolist() == expected


@pytest.mark.parametrize(
    ("method", "theirs"),
    [("gradcam++", GradCAMPlusPlus), ("xgradcam", XGradCAM), ("hirescam", HiResCAM), ("layercam", LayerCAM)],
)
def test_others_are_those_of_the_grad_cam_package(method, theirs):
    """Theirs have a ReLU behind all, and an epsilon, beside which these gradients are large."""
    activations, gradients = random_arrays()
    activations, gradients = np.abs(activations), gradients + np.sign(gradients)
    their = object.__new__(theirs)
    their.activations_and_grads = SimpleNamespace(release=lambda: None)
    maps = METHODS[method].maps(activations, gradients)
    for index in range(CLASSES):
        expected = their.get_cam_image(None, None, None, activations, gradients[:, index], False)
        np.testing.assert_allclose(
            np.maximum(maps[:, index], 0), np.maximum(expected, 0), rtol=0, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize("method", METHODS)
def test_axes_that_are_left_out_give_the_same_maps(method):
    activations, gradients = random_arrays()
    whole = apply(method, activations, gradients)
    np.testing.assert_allclose(apply(method, activations[1], gradients[1]), whole[1], atol=1e-6)
    np.testing.assert_allclose(apply(method, activations, gradients[:, 2]), whole[:, 2], atol=1e-6)
    np.testing.assert_allclose(apply(method, activations[1], gradients[1, 2]), whole[1, 2], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_no_classes_give_no_maps(method):
    activations, gradients = random_arrays()
    assert apply(method, activations, gradients[:, :0]).shape == (BATCH, 0, H, W)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("given", "returned"), [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)]
)
def test_precision(method, given, returned):
    activations, gradients = random_arrays(given)
    activations = np.abs(
        activations
    )  # as behind a ReLU: sums of theirs, which some methods divide by, aren't small
    maps = apply(method, activations, gradients)
    assert maps.dtype == returned
    exact = apply(method, activations.astype(np.float64), gradients.astype(np.float64))
    np.testing.assert_allclose(maps, exact, atol=1e-5)


def test_half_precision_does_not_overflow():
    activations = np.full((1, 8, 8), 60000, np.float16)
    gradients = np.full((1, 8, 8), 1, np.float16)
    assert (cam(activations, gradients) == 64 * np.float32(60000)).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_arguments_are_left_alone(method):
    activations, gradients = random_arrays()
    before = activations.copy(), gradients.copy()
    apply(method, activations, gradients)
    assert (activations == before[0]).all()
    assert (gradients == before[1]).all()


def test_identities_of_a_gap_linear_head():
    """The mean of CAM and the bias make the logit; CAM is h w times Grad-CAM before its ReLU."""
    rng = np.random.default_rng(1)
    activations = rng.normal(size=(BATCH, CHANNELS, H, W)).astype(np.float32)
    weight = rng.normal(size=(CLASSES, CHANNELS)).astype(np.float32)
    bias = rng.normal(size=CLASSES).astype(np.float32)
    logits = activations.mean((2, 3)) @ weight.T + bias
    gradients = np.broadcast_to(
        (weight / (H * W))[None, :, :, None, None], (BATCH, CLASSES, CHANNELS, H, W)
    ).astype(np.float32)
    maps = cam(activations, gradients)
    np.testing.assert_allclose(maps.mean((2, 3)) + bias, logits, atol=1e-5)
    np.testing.assert_allclose(np.maximum(maps / (H * W), 0), gradcam(activations, gradients), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("activations", "gradients"),
    [
        ((2, 5, 4, 6), (2, 3, 4, 4, 6)),  # another number of channels
        ((2, 5, 4, 6), (1, 3, 5, 4, 6)),  # another batch
        ((2, 5, 4, 6), (2, 3, 5, 6, 4)),  # height and width swapped
        ((4, 6), (3, 4, 6)),  # no channels
        ((5, 4, 6), (2, 3, 5, 4, 6)),  # gradients of a batch, activations of one
    ],
)
def test_shapes_that_do_not_fit(method, activations, gradients):
    with pytest.raises(ValueError, match=r"channels, h, w"):
        apply(method, np.zeros(activations), np.zeros(gradients))
