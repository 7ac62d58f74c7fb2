"""How far our maps are from the papers' equations and from other libraries': the table of docs/methods.md.

`python benchmarks/methods.py --weights mobilenet_v2.pth PHOTOGRAPHS...` explains the predicted class of each
photograph with torchvision's mobilenet_v2 and these weights, and of the sample scenes with the networks that
ship with the package, at the last layer and at one before it; and compares the heatmaps with

- the paper's equation, written out in PyTorch in float64, of gradients by its autograd in float64,
- pytorch-grad-cam, torchcam and captum, in float32.

Network, weights and input tensors are the same. Each map goes through ReLU and is scaled to [0, 1] by its
smallest and largest cell, at its own resolution; a cell of the table is the largest difference of any cell of
any picture. What takes many predictions, or explains pixels, is compared on `--few` of the photographs.

`--methods gradcam++ xgradcam` compares these alone, and `--each` prints a line for each picture.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

if TYPE_CHECKING:
    import torch

    from onnxplain import Explainer

Maps = NDArray[np.floating[Any]]

BATCH = 4
MASKS, CELLS = 400, 7
STEPS, NOISY, NOISE = 50, 25, 0.15


@dataclass(frozen=True)
class Text:
    """What the table says about a method."""

    follows: str
    equation: str
    zero: str
    """What is done where it would divide by zero."""


# g = dS_c/dA, or dS_c/dX of the image X.
TEXTS = {
    "cam": Text("Zhou et al. 2016", "sum_k w_k A_k, w the linear layer's", "no division"),
    "gradcam": Text("Selvaraju et al. 2017", "ReLU(sum_k mean(g_k) A_k)", "no division"),
    "gradcam++": Text(
        "Chattopadhay et al. 2018",
        "w_k = sum_xy ReLU(g) g² / (2 g² + g³ sum_ab A_k); ReLU(sum_k w_k A_k)",
        "reduced to ReLU(g) / (2 + g sum A): 0 where g is 0, and where the denominator is; no epsilon",
    ),
    "xgradcam": Text(
        "Fu et al. 2020",
        "w_k = sum_xy (A_k / sum_ab A_k) g_k; sum_k w_k A_k",
        "w_k is 0 where sum A_k is; no epsilon",
    ),
    "hirescam": Text("Draelos and Carin 2020", "sum_k g_k A_k", "no division"),
    "layercam": Text("Jiang et al. 2021", "ReLU(sum_k ReLU(g_k) A_k)", "no division"),
    "gradcam_elementwise": Text("grad-cam `GradCAMElementWise`", "sum_k ReLU(g_k A_k)", "no division"),
    "gradcam_signed": Text("Selvaraju et al. 2017, before the ReLU", "sum_k mean(g_k) A_k", "no division"),
    "counterfactual": Text("Selvaraju et al. 2017, section 3.2", "ReLU(sum_k -mean(g_k) A_k)", "no division"),
    "eigencam": Text(
        "Muhammad and Yeasin 2020",
        "A V_1 of A = U S V^T [hw, k], not centred; its sign: like sum_k A_k²",
        "no division",
    ),
    "eigengradcam": Text(
        "grad-cam `EigenGradCAM`",
        "the same of g A, each channel centred; its sign: like sum_k g_k A_k",
        "no division",
    ),
    "finercam": Text(
        "Zhang et al. 2025", "Grad-CAM of S_c - mean of S_d, d the 3 most likely others", "no division"
    ),
    "scorecam": Text(
        "Wang et al. 2020; grad-cam `ScoreCAM`",
        "w = softmax_k S_c(X s(Up(A_k))); ReLU(sum_k w_k A_k); Up aligns corners",
        "1e-8 is added to max - min in s",
    ),
    "rise": Text("Petsiuk et al. 2018", "sum_i p_c(X M_i) M_i / (N E[M]), 4000 masks", "no division"),
    "saliency": Text("Simonyan et al. 2013", "max over colours of abs(g)", "no division"),
    "smoothgrad": Text(
        "Smilkov et al. 2017",
        f"max abs of the mean of g at {NOISY} noisy images, sigma {NOISE} of X's range",
        "no division",
    ),
    "integrated_gradients": Text(
        "Sundararajan et al. 2017",
        f"sum over colours of X mean(g) on the way from 0 to X, {STEPS} midpoints",
        "no division",
    ),
    "guided_backprop": Text(
        "Springenberg et al. 2015", "max abs of g, where ReLU's backward pass is a ReLU too", "no division"
    ),
    "guided_gradcam": Text(
        "Selvaraju et al. 2017, section 3.1",
        "guided backpropagation times Grad-CAM, resized bilinearly",
        "no division",
    ),
}

SIGN_IS_ARBITRARY = ("eigencam", "eigengradcam")


@dataclass(frozen=True)
class Batch:
    """Images, what they are explained with, and the classes that are explained."""

    network: torch.nn.Module
    double: torch.nn.Module
    """The network in float64."""
    layer: str
    images: torch.Tensor
    classes: list[int]
    file: Callable[[torch.Tensor, list[int]], Sequence[Maps]]
    """Returns what the file puts out for images and classes: A [n, k, h, w] and dS_c/dA [n, 1, k, h, w]."""

    @cached_property
    def moved(self) -> Batch:
        """The same of images that are moved by a few of float32's roundings."""
        import torch

        noise = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(0))
        return replace(self, images=self.images + 1e-6 * noise)

    @property
    def module(self) -> torch.nn.Module:
        """The layer in the network."""
        return self.network.get_submodule(self.layer)

    @cached_property
    def arrays(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A and dS_c/dA, [n, k, h, w], and dS_d/dA of the 3 most likely others, [n, 3, k, h, w]; float64."""
        import torch

        held: list[torch.Tensor] = []
        layer = self.double.get_submodule(self.layer)
        hook = layer.register_forward_hook(lambda *given: held.append(given[2]))
        logits = self.double(self.images.double())
        hook.remove()

        def gradients(classes: Sequence[int]) -> torch.Tensor:
            score = logits[range(len(classes)), classes].sum()
            return torch.autograd.grad(score, held[0], retain_graph=True)[0]

        others = self.others(logits)
        rivals = [gradients(column) for column in zip(*others, strict=True)]
        return held[0].detach(), gradients(self.classes), torch.stack(rivals, dim=1)

    def others(self, logits: torch.Tensor) -> list[list[int]]:
        """Return the three most likely classes of each image other than the explained one."""
        ranking = logits.detach().argsort(dim=1, descending=True).tolist()
        return [
            [one for one in row if one != its][:3] for row, its in zip(ranking, self.classes, strict=True)
        ]


PAPER = "the equation in float64"
OF_FILE = "the same, of the file's A and g"
MOVED = "of images moved by 1e-6"

Reference = Callable[[Batch], Any]
"""From a batch to maps [n, h, w]; None where the method isn't defined."""


def in_float64(equation: Callable[..., torch.Tensor]) -> Reference:
    """Return an equation of A, dS_c/dA and dS_d/dA as a reference."""
    return lambda batch: equation(*batch.arrays).numpy()


def both(equation: Callable[..., torch.Tensor]) -> dict[str, Reference]:
    """Return an equation of PyTorch's A and g in float64, and of the file's own A and g."""

    def of_file(batch: Batch) -> Any:
        import torch

        a, g = (torch.from_numpy(one).double() for one in batch.file(batch.images, batch.classes))
        return equation(a, g[:, 0], None).numpy()

    return {PAPER: in_float64(equation), OF_FILE: of_file}


def of_moved(reference: Reference) -> Reference:
    """Return a reference's maps of images that are moved by rounding."""
    return lambda batch: reference(batch.moved)


def weighted(weights: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.einsum("nk,nkyx->nyx", weights, activations)


def plusplus(a: torch.Tensor, g: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Equations 5, 7 and 19 of the paper, of Y = exp(S)."""
    import torch

    denominators = 2 * g**2 + g**3 * a.sum(dim=(2, 3), keepdim=True)
    alpha = torch.where(denominators != 0, g**2 / denominators, 0)
    return weighted((alpha * g.relu()).sum(dim=(2, 3)), a).relu()


def with_epsilon(a: torch.Tensor, g: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Grad-CAM++ with 1e-6 added to the denominator."""
    alpha = g**2 / (2 * g**2 + g**3 * a.sum(dim=(2, 3), keepdim=True) + 1e-6)
    return weighted((alpha * g.relu()).sum(dim=(2, 3)), a).relu()


def undivided(a: torch.Tensor, g: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Grad-CAM++ without its denominator."""
    return weighted((g**2 * g.relu()).sum(dim=(2, 3)), a).relu()


def axiom(a: torch.Tensor, g: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    sums = a.sum(dim=(2, 3), keepdim=True)
    return weighted((a * g / sums.where(sums != 0, 1)).sum(dim=(2, 3)), a)


def principal(terms: torch.Tensor) -> torch.Tensor:
    import torch

    matrix = terms.flatten(2).transpose(1, 2)
    v: torch.Tensor = torch.linalg.svd(matrix, full_matrices=False).Vh[:, 0]
    return (matrix @ v[:, :, None]).reshape(len(terms), *terms.shape[2:])


def cam_head(batch: Batch) -> Any:
    """CAM with the weights of the linear layer; where there is none, the class's own map."""
    import torch

    linear = [module for module in batch.double.modules() if isinstance(module, torch.nn.Linear)]
    activations = batch.arrays[0]
    if not linear:
        return activations[range(len(batch.classes)), batch.classes].numpy()
    return weighted(linear[-1].weight[batch.classes], activations).detach().numpy()


def finer(a: torch.Tensor, g: torch.Tensor, rivals: torch.Tensor) -> torch.Tensor:
    return weighted((g - rivals.mean(dim=1)).mean(dim=(2, 3)), a).relu()


def finer_weighted(batch: Batch) -> Any:
    """Finer-CAM with the rivals weighted by their probabilities, and the weights differentiated."""
    import torch

    held: list[torch.Tensor] = []
    layer = batch.double.get_submodule(batch.layer)
    hook = layer.register_forward_hook(lambda *given: held.append(given[2]))
    logits = batch.double(batch.images.double())
    hook.remove()
    rivals = torch.tensor(batch.others(logits))
    weights = logits.softmax(dim=1).gather(1, rivals)
    scores = logits[range(len(rivals)), batch.classes][:, None] - logits.gather(1, rivals)
    score = ((weights * scores).sum(dim=1) / (weights.sum(dim=1) + 1e-9)).sum()
    gradients = torch.autograd.grad(score, held[0])[0]
    return weighted(gradients.mean(dim=(2, 3)), held[0].detach()).relu().numpy()


def scorecam_scaled_first(batch: Batch) -> Any:
    """Score-CAM whose channels are scaled before they are resized, corners not aligned."""
    return scorecam_of(batch, scaled_first=True)


def scorecam_paper(batch: Batch) -> Any:
    return scorecam_of(batch, scaled_first=False)


def scorecam_of(batch: Batch, scaled_first: bool) -> Any:
    import torch
    from torch.nn.functional import interpolate

    maps = []
    for image, activations, its in zip(batch.images.double(), batch.arrays[0], batch.classes, strict=True):
        masks = activations[:, None]
        if not scaled_first:
            masks = interpolate(masks, image.shape[1:], mode="bilinear", align_corners=True)
        masks = masks - masks.amin(dim=(2, 3), keepdim=True)
        masks = torch.nan_to_num(masks / masks.amax(dim=(2, 3), keepdim=True))
        if scaled_first:
            masks = interpolate(masks, image.shape[1:], mode="bilinear", align_corners=False)
        with torch.no_grad():
            scores = torch.cat([batch.double(image * part)[:, its] for part in masks.split(2 * BATCH)])
        maps.append(torch.einsum("k,kyx->yx", scores.softmax(dim=0), activations).relu())
    return torch.stack(maps).numpy()


def rise_torch(batch: Batch) -> Any:
    """RISE in PyTorch with our masks, in float32 but for the sum."""
    import torch

    from onnxplain.perturbation import rise_masks

    height, width = batch.images.shape[2:]
    total = torch.zeros(len(batch.images), height, width, dtype=torch.float64)
    for part in rise_masks((height, width), count=MASKS, cells=CELLS):
        masks = torch.from_numpy(part)
        for number, (image, its) in enumerate(zip(batch.images, batch.classes, strict=True)):
            with torch.no_grad():
                scores = batch.network(image * masks[:, None]).softmax(dim=1)[:, its]
            total[number] += torch.einsum("n,nyx->yx", scores.double(), masks.double())
    return (total / (0.5 * MASKS)).numpy()


def image_gradients(network: torch.nn.Module, images: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    import torch

    given = images.detach().clone().requires_grad_()
    scores = network(given)[range(len(classes)), classes]
    return torch.autograd.grad(scores.sum(), given)[0]


def noisy(image: torch.Tensor) -> torch.Tensor:
    """Return the noisy images that our SmoothGrad makes: its noise is numpy's, of seed 0."""
    import torch

    generator = np.random.default_rng(0)
    sigma = NOISE * float(image.max() - image.min())
    return torch.stack(
        [
            image + torch.from_numpy((sigma * generator.standard_normal(image.shape)).astype(np.float32))
            for _ in range(NOISY)
        ]
    )


def saliency_paper(batch: Batch) -> Any:
    gradients = image_gradients(batch.double, batch.images.double(), batch.classes)
    return gradients.abs().amax(dim=1).numpy()


def smoothgrad_paper(batch: Batch) -> Any:
    return smoothgrad_of(
        batch, lambda images, its: image_gradients(batch.double, images.double(), [its] * len(images))
    )


def smoothgrad_captum(batch: Batch) -> Any:
    from captum.attr import Saliency

    saliency = Saliency(batch.network)
    return smoothgrad_of(batch, lambda images, its: saliency.attribute(images, target=its, abs=False))


def smoothgrad_of(batch: Batch, gradients: Callable[[torch.Tensor, int], torch.Tensor]) -> Any:
    import torch

    maps = []
    for image, its in zip(batch.images, batch.classes, strict=True):
        parts = [gradients(part, its) for part in noisy(image).split(5)]
        maps.append(torch.cat(parts).double().mean(dim=0).abs().amax(dim=0).detach().numpy())
    return np.stack(maps)


def integrated_paper(batch: Batch) -> Any:
    import torch

    shares = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
    maps = []
    for image, its in zip(batch.images.double(), batch.classes, strict=True):
        path = shares[:, None, None, None] * image
        parts = [image_gradients(batch.double, part, [its] * len(part)).sum(dim=0) for part in path.split(5)]
        maps.append((image * sum(parts) / STEPS).sum(dim=0).numpy())
    return np.stack(maps)


def integrated_captum(batch: Batch) -> Any:
    from captum.attr import IntegratedGradients

    found = IntegratedGradients(batch.network).attribute(
        batch.images,
        target=batch.classes,
        n_steps=STEPS,
        method="riemann_middle",
        internal_batch_size=len(batch.images),
    )
    return found.sum(dim=1).detach().numpy()


def saliency_captum(batch: Batch) -> Any:
    from captum.attr import Saliency

    return Saliency(batch.network).attribute(batch.images, target=batch.classes).amax(dim=1).numpy()


def guided(network: torch.nn.Module, images: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Return the gradients of guided backpropagation, by hooks behind the ReLUs."""
    import torch

    def positive(_module: object, gradients: Any, _outputs: object) -> tuple[torch.Tensor]:
        return (gradients[0].relu(),)

    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
            module.register_full_backward_hook(positive)
    return image_gradients(network, images, classes)


def guided_paper(batch: Batch) -> Any:
    return guided(batch.double, batch.images.double(), batch.classes).abs().amax(dim=1).numpy()


def guided_captum(batch: Batch) -> Any:
    from captum.attr import GuidedBackprop

    network = without_inplace(batch.network)
    return (
        GuidedBackprop(network)
        .attribute(batch.images, target=batch.classes)
        .abs()
        .amax(dim=1)
        .detach()
        .numpy()
    )


def guided_gradcam_library(batch: Batch) -> Any:
    from pytorch_grad_cam import GuidedBackpropReLUModel

    maps = []
    for image, its in zip(batch.images, batch.classes, strict=True):
        theirs = GuidedBackpropReLUModel(copy.deepcopy(batch.network), "cpu")
        maps.append(np.abs(theirs(image[None].clone(), its)).max(axis=-1))
    return np.stack(maps)


def guided_gradcam_paper(batch: Batch) -> Any:
    from torch.nn.functional import interpolate

    a, g, _ = batch.arrays
    cams = weighted(g.mean(dim=(2, 3)), a).relu()
    heats = interpolate(cams[:, None], batch.images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return guided_paper(batch) * heats.numpy()


def guided_gradcam_captum(batch: Batch) -> Any:
    from captum.attr import GuidedGradCam

    network = without_inplace(batch.network)
    theirs = GuidedGradCam(network, network.get_submodule(batch.layer))
    found = theirs.attribute(batch.images, target=batch.classes, interpolate_mode="bilinear")
    return found.abs().amax(dim=1).detach().numpy()


def without_inplace(network: torch.nn.Module) -> torch.nn.Module:
    """Return a copy whose ReLUs leave their inputs alone, as captum's hooks need it."""
    network = copy.deepcopy(network)
    module: Any  # torch types the attributes of modules as tensors
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return network


def pytorch_grad_cam(
    name: str, target: Callable[[Batch], Sequence[Callable[..., Any]]] | None = None
) -> Reference:
    """Return a class of pytorch-grad-cam as a reference, its maps at the layer's resolution."""

    def maps(batch: Batch) -> Any:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        theirs = getattr(pytorch_grad_cam, name)(batch.network, [batch.module])
        with theirs, contextlib.redirect_stderr(io.StringIO()):  # Score-CAM's progress
            getattr(theirs, "base_cam", theirs).get_target_width_height = lambda _: None
            if name == "FinerCAM":  # its own default, of the predicted class
                return theirs(batch.images)
            targets = target(batch) if target else [ClassifierOutputTarget(its) for its in batch.classes]
            return theirs(batch.images, targets)

    return maps


def negated(batch: Batch) -> list[Callable[..., Any]]:
    return [lambda logits, its=its: -logits[its] for its in batch.classes]


def differences(batch: Batch) -> list[Callable[..., Any]]:
    others = batch.others(batch.double(batch.images.double()))
    return [
        lambda logits, its=its, theirs=theirs: logits[its] - logits[theirs].mean()
        for its, theirs in zip(batch.classes, others, strict=True)
    ]


def torchcam(name: str, **options: Any) -> Reference:
    """Return a class of torchcam as a reference."""

    def maps(batch: Batch) -> Any:
        from torchcam import methods

        kind = getattr(methods, name)
        if name == "CAM":
            import torch

            linear = [key for key, one in batch.network.named_modules() if isinstance(one, torch.nn.Linear)]
            if not linear:
                return None
            options["fc_layer"] = linear[-1]
        with kind(batch.network, batch.layer, **options) as theirs:
            scores = batch.network(batch.images)
            given = {} if name in ("CAM", "ScoreCAM") else {"scores": scores}
            return theirs(class_idx=batch.classes, normalized=False, **given)[0].detach().numpy()

    return maps


#: Each method's references; the first is the one that it follows.
REFERENCES: dict[str, dict[str, Reference]] = {
    "cam": {PAPER: cam_head, "torchcam `CAM`": torchcam("CAM")},
    "gradcam": {
        **both(lambda a, g, _: weighted(g.mean(dim=(2, 3)), a).relu()),
        "grad-cam `GradCAM`": pytorch_grad_cam("GradCAM"),
        "torchcam `GradCAM`": torchcam("GradCAM"),
    },
    "gradcam++": {
        **both(plusplus),
        "grad-cam `GradCAMPlusPlus`": pytorch_grad_cam("GradCAMPlusPlus"),
        "torchcam `GradCAMpp`": torchcam("GradCAMpp"),
    },
    "xgradcam": {
        **both(axiom),
        "grad-cam `XGradCAM`": pytorch_grad_cam("XGradCAM"),
        "torchcam `XGradCAM`": torchcam("XGradCAM"),
    },
    "hirescam": {
        **both(lambda a, g, _: (a * g).sum(dim=1)),
        "grad-cam `HiResCAM`": pytorch_grad_cam("HiResCAM"),
    },
    "layercam": {
        **both(lambda a, g, _: (a * g.relu()).sum(dim=1).relu()),
        "grad-cam `LayerCAM`": pytorch_grad_cam("LayerCAM"),
        "torchcam `LayerCAM`": torchcam("LayerCAM"),
    },
    "gradcam_elementwise": {
        **both(lambda a, g, _: (a * g).relu().sum(dim=1)),
        "grad-cam `GradCAMElementWise`": pytorch_grad_cam("GradCAMElementWise"),
    },
    "gradcam_signed": {
        **both(lambda a, g, _: weighted(g.mean(dim=(2, 3)), a)),
        "grad-cam `GradCAM`": pytorch_grad_cam("GradCAM"),
    },
    "counterfactual": {
        **both(lambda a, g, _: weighted(-g.mean(dim=(2, 3)), a).relu()),
        "grad-cam `GradCAM` of -S_c": pytorch_grad_cam("GradCAM", negated),
    },
    "eigencam": {
        PAPER: in_float64(lambda a, *_: principal(a)),
        "grad-cam `EigenCAM`": pytorch_grad_cam("EigenCAM"),
    },
    "eigengradcam": {
        **both(lambda a, g, _: principal(a * g - (a * g).mean(dim=(2, 3), keepdim=True))),
        "grad-cam `EigenGradCAM`": pytorch_grad_cam("EigenGradCAM"),
    },
    "finercam": {
        PAPER: in_float64(finer),
        "grad-cam `GradCAM` of S_c - mean S_d": pytorch_grad_cam("GradCAM", differences),
        "torchcam `FinerCAM`, gamma 1": torchcam("FinerCAM", gamma=1.0),
        "grad-cam `FinerCAM`": pytorch_grad_cam("FinerCAM"),
    },
    "scorecam": {
        PAPER: scorecam_paper,
        "grad-cam `ScoreCAM`": pytorch_grad_cam("ScoreCAM"),
        "torchcam `ScoreCAM`": torchcam("ScoreCAM"),
    },
    "rise": {f"PyTorch, the same {MASKS} masks": rise_torch},
    "saliency": {PAPER: saliency_paper, "captum `Saliency`": saliency_captum},
    "smoothgrad": {PAPER: smoothgrad_paper, "captum `Saliency`, the same noise": smoothgrad_captum},
    "integrated_gradients": {
        PAPER: integrated_paper,
        "captum `IntegratedGradients`, midpoints": integrated_captum,
    },
    "guided_backprop": {
        PAPER: guided_paper,
        "captum `GuidedBackprop`": guided_captum,
        "grad-cam `GuidedBackpropReLUModel`": guided_gradcam_library,
    },
    "guided_gradcam": {
        PAPER: guided_gradcam_paper,
        "captum `GuidedGradCam`, bilinear": guided_gradcam_captum,
    },
}


#: Where a library differs from the equation: the equation changed as it does it. And where rounding moves the
#: equation itself: how far.
CAUSES: dict[str, list[tuple[str, str, Reference]]] = {
    "gradcam++": [
        ("grad-cam `GradCAMPlusPlus`", "1e-6 added to the denominator", in_float64(with_epsilon)),
        ("torchcam `GradCAMpp`", "the denominator left out", in_float64(undivided)),
    ],
    "saliency": [(PAPER, MOVED, of_moved(saliency_paper))],
    "smoothgrad": [(PAPER, MOVED, of_moved(smoothgrad_paper))],
    "guided_backprop": [(PAPER, MOVED, of_moved(guided_paper))],
    "guided_gradcam": [(PAPER, MOVED, of_moved(guided_gradcam_paper))],
    "eigencam": [
        (
            "grad-cam `EigenCAM`",
            "each channel centred",
            in_float64(lambda a, *_: principal(a - a.mean(dim=(2, 3), keepdim=True))),
        )
    ],
    "finercam": [
        (
            "grad-cam `FinerCAM`",
            "rivals weighted by probability, 1e-9 added to its sum, weights differentiated",
            finer_weighted,
        )
    ],
    "scorecam": [
        (
            "torchcam `ScoreCAM`",
            "scaled before it is resized, corners not aligned",
            scorecam_scaled_first,
        )
    ],
}


@dataclass(frozen=True)
class Case:
    """A network, its explainer, and pictures."""

    name: str
    network: torch.nn.Module
    explainer: Explainer
    session: Any
    layers: tuple[str, str]
    """One before the last, and the last."""
    pictures: Sequence[Any]
    few: int
    """How many of the pictures are explained by what takes many predictions."""
    known: dict[Any, list[Batch]] = field(default_factory=dict)
    """Batches that were made before: float64 takes its time."""

    @cached_property
    def double(self) -> torch.nn.Module:
        """The network in float64."""
        return copy.deepcopy(self.network).double()

    @cached_property
    def predicted(self) -> list[int]:
        """The class of each picture."""
        return [self.explainer.explain(one).index for one in self.pictures]

    @cached_property
    def images(self) -> torch.Tensor:
        """What the network takes."""
        import torch

        from onnxplain.images import read_image
        from onnxplain.preprocessing import preprocess

        spec = self.explainer.manifest.input
        return torch.from_numpy(np.stack([preprocess(read_image(one), spec)[0] for one in self.pictures]))

    def chosen(self, method: str) -> list[int]:
        """Return the pictures that a method explains."""
        count = len(self.pictures)
        return (
            list(range(count))
            if method in METHODS_OF_LAYERS
            else list(range(0, count, -(-count // self.few)))
        )

    def batches(self, chosen: Sequence[int], layer: str) -> list[Batch]:
        """Return the images of pictures, a few in each."""
        key = (layer, *chosen)
        if key not in self.known:
            parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
            self.known[key] = [
                Batch(
                    self.network,
                    self.double,
                    layer,
                    self.images[part],
                    [self.predicted[number] for number in part],
                    self._file(layer),
                )
                for part in parts
            ]
        return self.known[key]

    def _file(self, layer: str) -> Callable[[torch.Tensor, list[int]], Sequence[Maps]]:
        its = next(known for known in self.explainer.manifest.layers if known.name == layer)

        def run(images: torch.Tensor, classes: list[int]) -> Sequence[Maps]:
            feeds = {"image": images.numpy(), "class_index": np.array(classes)[:, None]}
            found: Sequence[Maps] = self.session.run([its.activations, its.gradients], feeds)
            return found

        return run

    def ours(self, method: str, layer: str, chosen: Sequence[int]) -> list[Maps]:
        """Return our maps."""
        if method == "rise":
            return [self._rise(one) for one in chosen]
        pictures, classes = [self.pictures[one] for one in chosen], [self.predicted[one] for one in chosen]
        parts = [slice(start, start + BATCH) for start in range(0, len(pictures), BATCH)]
        return [
            one.cam
            for part in parts
            for one in self.explainer.explain_batch(pictures[part], classes[part], method, layer)
        ]

    def _rise(self, number: int) -> Maps:
        """Return RISE's map with fewer masks than an explainer takes."""
        from onnxplain.network import Network
        from onnxplain.perturbation import rise

        network = Network(self.session, self.explainer.manifest, None)
        classes = [self.predicted[number]]
        found: Maps = rise(network.scores, self.images[number].numpy(), classes, count=MASKS, cells=CELLS)[0]
        return found


METHODS_OF_LAYERS = list(TEXTS)[:12]


def main() -> None:
    """Export the networks, compare, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument(
        "--weights", required=True, type=Path, help="a state_dict of torchvision's mobilenet_v2"
    )
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where explainers are kept for the next run")
    parser.add_argument("--methods", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--each", action="store_true", help="print each picture's difference, on stderr")
    options = parser.parse_args()
    from torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        cases = [photographs(folder, options), *scenes(folder)]
        print_row(["method", "follows", "its map", "where it would divide by 0", "compared with", *COLUMNS])
        print_row(["---"] * 5 + ["---:"] * len(COLUMNS))
        causes = [row for method in options.methods for row in print_method(method, cases, options.each)]
        print()
        print_row(["method", "reference", "and the equation", *COLUMNS])
        print_row(["---"] * 3 + ["---:"] * len(COLUMNS))
        for row in causes:
            print_row(row)


COLUMNS = ("photographs, `features.14`", "photographs, `features`", "scenes, before", "scenes, last")


def photographs(folder: Path, options: argparse.Namespace) -> Case:
    """Return mobilenet_v2 and the photographs."""
    import torch
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2()
    network.load_state_dict(torch.load(options.weights, weights_only=True))
    return case(
        "mobilenet_v2",
        network.eval(),
        224,
        ("features.14", "features"),
        folder,
        sorted(options.photographs),
        options.few,
    )


def scenes(folder: Path) -> Iterator[Case]:
    """Return the networks that ship with the package, and the sample scenes."""
    from onnxplain_models import samples
    from onnxplain_models.networks import load

    layers = {
        "nin": ("mlpconv2", "classes"),
        "vgg_mlp": ("features.20", "features"),
        "vgg_cam": ("features.20", "features"),
    }
    pictures = [sample.picture.read_bytes() for sample in samples()]
    for name, its in layers.items():
        yield case(name, load(name), 96, its, folder, pictures, len(pictures))


def case(
    name: str,
    network: torch.nn.Module,
    size: int,
    layers: tuple[str, str],
    folder: Path,
    pictures: Sequence[Any],
    few: int,
) -> Case:
    """Export a network at its layers, where the folder hasn't it yet."""
    import torch

    from onnxplain import Explainer
    from onnxplain.session import create_session
    from onnxplain_export import export
    from onnxplain_models import PREPROCESSING

    path = folder / f"{name}.onnx"
    preprocessing = PREPROCESSING if size == PREPROCESSING.height else None
    if not path.exists():
        export(
            network,
            torch.zeros(1, 3, size, size),
            path,
            layer=list(layers),
            preprocessing=preprocessing,
            input_gradient=True,
            guided=True,
        )
    session = create_session(path, "cpu", None)
    return Case(name, network, Explainer(session=session), session, layers, pictures, few)


def print_method(method: str, cases: Sequence[Case], each: bool) -> list[list[str]]:
    """Print a method's rows, one for each reference; return those of the causes of its differences."""
    text = TEXTS[method]
    found: dict[tuple[str, str], list[float | None]] = {}
    for number, one in enumerate(cases):
        for place, layer in enumerate(one.layers):
            column = place + 2 * (number > 0)
            for names, largest in compared(method, one, layer, each):
                row = found.setdefault(names, [None] * len(COLUMNS))
                row[column] = max(largest, row[column] or 0.0)
    said = [f"`{method}`", text.follows, text.equation, text.zero]
    causes = []
    for (name, change), row in found.items():
        cells = ["" if one is None else f"{one:.0e}" for one in row]
        if change:
            causes.append([f"`{method}`", name, change, *cells])
        else:
            print_row([*said, name, *cells])
            said = [""] * 4
    return causes


def compared(method: str, one: Case, layer: str, each: bool) -> Iterator[tuple[tuple[str, str], float]]:
    """Compare maps at a layer; yield what with what, and the largest difference.

    Ours with each reference's, by its name; and a library's with the equation changed as the library has it,
    by its name and the change.
    """
    is_last = layer == one.layers[-1]
    its = next(known for known in one.explainer.manifest.layers if known.name == layer)
    if method == "cam" and its.head != "gap_linear":
        return
    if method in OF_THE_IMAGE and not is_last:
        return  # a map of the image has no layer
    chosen = one.chosen(method)
    batches = one.batches(chosen, layer)
    maps = {"ours": one.ours(method, layer, chosen)}
    for name, reference in REFERENCES[method].items():
        parts = [reference(batch) for batch in batches]
        if parts[0] is not None:
            maps[name] = [map_ for part in parts for map_ in part]
    pairs = [((name, ""), "ours", name) for name in maps if name != "ours"]
    for name, change, equation in CAUSES.get(method, []):
        maps[change] = [map_ for batch in batches for map_ in equation(batch)]
        pairs.append(((name, change), change, name))
    for names, mine, theirs in pairs:
        differences = [
            difference(a, b, method in SIGN_IS_ARBITRARY)
            for a, b in zip(maps[mine], maps[theirs], strict=True)
        ]
        if each:
            print(method, one.name, layer, *names, *(f"{d:.1e}" for d in differences), file=sys.stderr)
        yield names, max(differences)


OF_THE_IMAGE = ("rise", "saliency", "smoothgrad", "integrated_gradients", "guided_backprop")


def difference(ours: Maps, theirs: Maps, sign_is_arbitrary: bool) -> float:
    """Return the largest difference of two heatmaps; of the nearer sign, where it is arbitrary."""
    from onnxplain.heatmap import minmax

    expected = minmax(np.maximum(theirs.astype(np.float64), 0))
    signs = (1, -1) if sign_is_arbitrary else (1,)
    return min(float(np.abs(minmax(np.maximum(sign * ours, 0)) - expected).max()) for sign in signs)


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
