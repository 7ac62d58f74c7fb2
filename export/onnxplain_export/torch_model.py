"""The front end for PyTorch: trace a module, with taps at its target layers."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node

from onnxplain.errors import LayerError, SourceError
from onnxplain_export.assemble import TracedModel
from onnxplain_export.exportable import Exportable
from onnxplain_export.feature_map import Array, FeatureMap, feature_map_of, has_aspect, token_grids
from onnxplain_export.graph import MODULE_KEY
from onnxplain_export.layers import NO_PLACES, ModuleCall, closest_names, without_unread_grids
from onnxplain_export.torch_places import (
    grids_reach,
    last_read,
    with_any_numbers,
    with_places,
    without_numbers,
)

OPSET = 20


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and each of its modules back as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def first_tensor(output: object) -> torch.Tensor | None:
    """Return the tensor of a module's output: itself, or the first one in a tuple, list or mapping."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((tensor for tensor in map(first_tensor, output) if tensor is not None), None)
    return None


def logits_of(output: object) -> torch.Tensor:
    """Return the logits in a model's output: a tensor, ``.logits``, ``["logits"]``, or the first tensor.

    Raises
    ------
    SourceError
        There are no logits of the shape [batch, num_classes].
    """
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        logits = output.get("logits")
    tensor = first_tensor(output if logits is None else logits)
    if tensor is None:
        raise SourceError(f"the model returns {type(output).__name__}, in which there is no tensor of logits")
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim != 2:
        raise SourceError(
            f"the model returns the shape {_shape(tensor.shape)}, and logits have [batch, num_classes]; "
            "wrap it so that it returns them"
        )
    return tensor


class Tapped(nn.Module):
    """A classifier that also returns what its target layers put out, in the order of their names."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits and each target layer's activations."""
        taps: dict[str, torch.Tensor] = {}

        def tap(name: str) -> Any:
            def hook(module: nn.Module, inputs: object, output: object) -> object:
                tensor = first_tensor(output)
                if tensor is None:
                    raise LayerError(f"the layer {name!r} puts out no tensor; choose another")
                # Cloned, since the next module may work in place: the tap must keep what this one put out.
                taps[name] = tensor.clone()
                return None

            return hook

        with contextlib.ExitStack() as hooks:
            for name in self.layers:
                handle = self.model.get_submodule(name).register_forward_hook(tap(name))
                hooks.callback(handle.remove)
            logits = logits_of(self.model(image))
        return (logits, *(taps[name] for name in self.layers))


def check_layers(model: nn.Module, layers: Sequence[str], calls: Sequence[ModuleCall]) -> None:
    """Check that each named layer exists, runs once, and puts out feature maps that the logits depend on.

    Raises
    ------
    LayerError
        It doesn't; names like the ones asked for are listed.
    """
    modules = dict(model.named_modules())
    for index, name in enumerate(layers):
        if name in layers[:index]:
            raise LayerError(f"the layer {name!r} is named twice; name each once")
        if name not in modules or name == "":
            near = closest_names(name, filter(None, modules))
            raise LayerError(
                f"the model has no layer {name!r}{near}; list them with: onnxplain layers SOURCE"
            )
        own = [call for call in calls if call.name == name]
        if not own:
            raise LayerError(f"the layer {name!r} is not called in a forward pass; choose another")
        if len(own) > 1:
            names = ", ".join(f"{name}#{number} {_shape(call.shape)}" for number, call in enumerate(own, 1))
            raise LayerError(
                f"the layer {name!r} is called {len(own)} times in a forward pass ({names}); "
                "choose one that is called once, such as the module around it"
            )
        if own[0].feature_map is None:
            raise LayerError(
                f"the layer {name!r} puts out the shape {_shape(own[0].shape)}, which has no spatial extent; "
                "choose one of [batch, channels, height, width], channels last, or a grid of tokens"
            )
        if not own[0].has_places:
            raise LayerError(NO_PLACES.format(name=name, count=own[0].shape[1]))
        if not own[0].reaches_logits:
            raise LayerError(f"the logits don't depend on the layer {name!r}; choose another")


def record_calls(model: nn.Module, example: torch.Tensor) -> tuple[list[ModuleCall], int]:
    """Run a model once and return every call of its modules, in order, and the number of classes.

    It is run on two images of noise of the example's size: on a picture of zeros many modules would put out
    what they take in, and with a single image a model that squeezes its output would lose its batch.

    Raises
    ------
    SourceError
        The model fails on the images.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *example.shape[1:], generator=generator).to(example.device)
    outputs: list[_Output] = []
    versions: list[int] = []

    def before(module: nn.Module, inputs: tuple[object, ...]) -> None:
        source = first_tensor(inputs)
        versions.append(0 if source is None else source._version)

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            tensor, source, version = first_tensor(output), first_tensor(inputs), versions.pop()
            if tensor is None:
                return
            # A module that works in place returns its input, but as another version of it.
            same = source is not None and source._version == version and _same_elements(source, tensor)
            outputs.append(
                _Output(
                    name,
                    type(module).__name__,
                    tuple(tensor.shape),
                    tensor.is_floating_point(),
                    same,
                    _edge(tensor),
                )
            )

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.enable_grad())
        # What depends on what is asked, not how much: no numbers need to be kept for a backward pass.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(without_numbers, with_any_numbers))
        try:
            for name, module in model.named_modules():
                if name:
                    stack.callback(module.register_forward_pre_hook(before).remove)
                    stack.callback(module.register_forward_hook(record(name)).remove)
            logits = logits_of(model(image.requires_grad_().clone()))
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(
                f"the model fails on an input of {_shape(image.shape)}: {one_line(error)}"
            ) from error
    if not logits.isfinite().all():
        raise SourceError("the model returns logits that are not finite; check its weights and its input")
    calls = _described(model, outputs, _ancestors(logits), (image.shape[2], image.shape[3]))
    seen = image.detach()

    def run(images: torch.Tensor) -> torch.Tensor:
        return logits_of(model(images))

    with evaluation_mode(model):
        calls = with_places(model, run, calls, seen)
        guess = last_read(calls, [output.edge for output in outputs], logits)
        calls = without_unread_grids(calls, lambda sets: grids_reach(model, run, sets, seen[:1]), guess)
    return calls, logits.shape[1]


@dataclass(frozen=True)
class _Output:
    """What a module put out: its first tensor, but for the numbers."""

    name: str
    kind: str
    shape: tuple[int, ...]
    is_float: bool
    same_as_input: bool
    edge: GradientEdge | None
    """Its place in autograd's graph; None where no gradient comes back to it."""


def _edge(tensor: torch.Tensor) -> GradientEdge | None:
    return torch.autograd.graph.get_gradient_edge(tensor) if tensor.requires_grad else None


def _described(
    model: nn.Module, outputs: Sequence[_Output], reached: Set[Node], image_size: tuple[int, int]
) -> list[ModuleCall]:
    """Return the calls of a model's modules, given what they put out for two images."""
    attention = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if re.search("attention|attn", f"{type(module).__name__} {name.split('.')[-1]}", re.IGNORECASE)
    )
    # Attention has maps of tokens by tokens; and what has another batch are maps of a part of the image.
    sizes = [
        (output.shape[2], output.shape[3])
        for output in outputs
        if len(output.shape) == 4 and output.shape[0] == 2 and not f"{output.name}.".startswith(attention)
    ]
    grids = token_grids(sizes, image_size)
    calls = []
    for output in outputs:
        is_map = output.is_float and output.shape[:1] == (2,)
        maps = feature_map_of(output.shape, image_size, grids) if is_map else None
        calls.append(
            ModuleCall(
                output.name,
                output.kind,
                output.shape,
                maps,
                output.edge is not None and output.edge.node in reached,
                output.same_as_input,
                in_attention=f"{output.name}.".startswith(attention),
                has_image_aspect=maps is not None and has_aspect(maps.size, image_size),
                is_final_norm="." not in output.name and "norm" in output.kind.lower(),
            )
        )
    return calls


def _same_elements(source: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Say whether two tensors hold the same elements, in the same order or with their axes permuted."""
    if source.numel() != tensor.numel():
        return False
    if torch.equal(source.flatten(), tensor.flatten()):
        return True
    if source.shape == tensor.shape or sorted(source.shape) != sorted(tensor.shape):
        return False
    permuted = (source.permute(axes) for axes in itertools.permutations(range(source.ndim)))
    return any(torch.equal(one, tensor) for one in permuted if one.shape == tensor.shape)


def trace(
    model: nn.Module,
    layers: Sequence[str],
    image: torch.Tensor,
    calls: Sequence[ModuleCall],
    *,
    dynamic_size: bool,
) -> TracedModel:
    """Trace a model in evaluation mode to an ONNX graph of the design's opset, its batch dynamic.

    Parameters
    ----------
    dynamic_size
        Height and width are to be dynamic too.

    Raises
    ------
    SourceError
        PyTorch's exporter can't trace the model, or not with a dynamic size.
    """
    dimensions = {0: "batch", **({2: "height", 3: "width"} if dynamic_size else {})}
    batch = image[:1].repeat(2, 1, 1, 1)
    with evaluation_mode(model), torch.no_grad(), Exportable(), _quiet():
        try:
            program = torch.onnx.export(
                Tapped(model, layers).eval(),
                (batch,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={"image": dimensions},
                verbose=False,
            )
        except Exception as error:
            causes = list(_causes(error))
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                raise KeyboardInterrupt from None
            fixed = re.findall(r"a static shape of \d+ for dimension \S+\.shape\[(\d)\]", str(causes[-1]))
            if "0" in fixed:
                raise SourceError(
                    "the model makes a constant of its batch, as len(image) does; use image.shape[0] there"
                ) from error
            if fixed:
                raise SourceError(
                    f"the network takes images of {image.shape[2]}x{image.shape[3]} alone; leave the dynamic "
                    "size out"
                ) from error
            raise SourceError(f"PyTorch can't export the model: {one_line(causes[-1])}") from error
    assert program is not None
    graph: ir.Graph = program.model.graph
    _register_constants(graph)
    for node in graph:
        node.metadata_props[MODULE_KEY] = _module_of(node)
    logits, *taps = graph.outputs
    maps = {call.name: call.feature_map for call in calls if call.feature_map is not None}
    return TracedModel(
        program.model,
        graph.inputs[0],
        logits,
        dict(zip(layers, taps, strict=True)),
        {layer: maps[layer] for layer in layers},
        size=(image.shape[2], image.shape[3]),
    )


def _register_constants(graph: ir.Graph) -> None:
    """Register the constants that PyTorch's exporter left out of its graph, such as a Clip's infinities."""
    for node in graph:
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.graph is None:
                graph.register_initializer(value)


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, their names included."""
    digest = hashlib.sha256()
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_in_float64(model: nn.Module, image: torch.Tensor, layers: Sequence[str]) -> tuple[Array, list[Array]]:
    """Return the logits and what layers put out, by a copy of a model in float64 on the CPU."""
    wide = Tapped(copy.deepcopy(model, _widened_caches(model)).cpu().double(), layers).eval()
    with torch.no_grad():
        logits, *activations = wide(image.cpu().double())
    return logits.numpy(), [tensor.numpy() for tensor in activations]


def _widened_caches(model: nn.Module) -> dict[int, Any]:
    """Return copies in float64, by identity, of the tensors that modules computed and keep.

    They are no state of theirs, and as they have a history of gradients, deepcopy refuses them.
    """
    kept = [value for module in model.modules() for value in vars(module).values()]
    kept += [value for cache in kept if isinstance(cache, dict) for value in cache.values()]
    computed = (value for value in kept if isinstance(value, torch.Tensor) and not value.is_leaf)
    return {id(tensor): tensor.detach().cpu().double() for tensor in computed}


@dataclass(frozen=True)
class Reference:
    """What PyTorch says of a batch, for one layer."""

    activations: Array
    """What the layer puts out, [batch, channels, height, width]."""
    gradients: Array
    """By autograd, [batch, classes, channels, height, width]."""


def reference_logits(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return a model's own logits."""
    with evaluation_mode(model), torch.no_grad():
        return logits_of(model(image.clone())).cpu()


def reference(
    model: nn.Module,
    layer: str,
    maps: FeatureMap,
    image: torch.Tensor,
    classes: torch.Tensor,
    activations: torch.Tensor,
) -> Reference:
    """Compute gradients with autograd, for int64 classes [batch, classes] without ranks.

    `activations` take the place of the layer's own, so that both gradients are taken at the same point: where
    PyTorch's own differ by rounding, ReLUs behind the layer would be open in one and closed in the other. The
    difference is added as a constant: the layer may have computed more from its own than it hands on first.

    Raises
    ------
    SourceError
        PyTorch can't differentiate the model.
    """
    own: list[torch.Tensor] = []

    def move(module: nn.Module, inputs: object, output: object) -> object:
        own.append(_first(output))
        # A sum is a new tensor, so that the next module may work in place and leave this one's as it is.
        kept = own[0].detach()
        folded = maps.fold(kept.cpu().numpy())
        if folded.shape != activations.shape:
            raise SourceError(
                f"the layer {layer!r} was traced as one of fixed size, and puts out another one on images of "
                f"another size, such as {image.shape[2]}x{image.shape[3]}; leave the dynamic size out"
            )
        difference = maps.unfold(activations.numpy() - folded)
        return _replace_first(output, own[0] + torch.from_numpy(difference).to(kept.device))

    def differentiated(*, keep_all: bool) -> Array:
        own.clear()
        # The backward pass ends at the layer: what is computed before its output needn't be kept.
        hooks = (lambda tensor: tensor if keep_all or own else None), _remembered
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            return _gradients(logits_of(model(image.clone())), classes, own[0])

    image = image.requires_grad_()
    with evaluation_mode(model), torch.enable_grad(), contextlib.ExitStack() as stack:
        stack.callback(model.get_submodule(layer).register_forward_hook(move).remove)
        try:
            try:
                gradients = differentiated(keep_all=False)
            except _ForgottenError:
                # The layer computes more from its maps than it hands on first.
                gradients = differentiated(keep_all=True)
        except RuntimeError as error:
            raise SourceError(f"PyTorch can't differentiate the model: {one_line(error)}") from error
    return Reference(maps.fold(own[0].detach().cpu().numpy()), maps.fold(gradients))


class _ForgottenError(Exception):
    """A backward pass needs what its forward pass didn't keep."""


def _remembered(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise _ForgottenError("what a backward pass needs wasn't kept")
    return tensor


def reference_image_gradients(model: nn.Module, image: torch.Tensor, classes: torch.Tensor) -> Array:
    """Return the gradients of an image by autograd, [batch, classes, channels, height, width]."""
    with evaluation_mode(model), torch.enable_grad():
        source = image.clone().requires_grad_()
        try:
            return _gradients(logits_of(model(source.clone())), classes, source)
        except RuntimeError as error:
            raise SourceError(f"PyTorch can't differentiate the model: {one_line(error)}") from error


def _gradients(logits: torch.Tensor, classes: torch.Tensor, source: torch.Tensor) -> Array:
    """Return the gradients of the classes' logits by autograd, [batch, classes, ...]."""
    scores = logits.gather(1, classes.to(logits.device)).sum(dim=0)
    gradients = [torch.autograd.grad(score, source, retain_graph=True)[0] for score in scores]
    return torch.stack(gradients, dim=1).cpu().numpy()


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, with its type where that says more."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[0]}" if isinstance(error, LookupError) else lines[0]


def _shape(shape: Sequence[int]) -> str:
    """Return a shape for a message; how many images it was tried on says nothing to its reader."""
    return f"[{', '.join(['batch', *map(str, shape[1:])])}]" if shape else "[]"


def _first(output: object) -> torch.Tensor:
    tensor = first_tensor(output)
    assert tensor is not None
    return tensor


def _replace_first(output: Any, tensor: torch.Tensor) -> Any:
    """Return a module's output with its first tensor replaced."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, Mapping):
        mapping: Any = copy.copy(output)
        key = next(key for key, value in output.items() if first_tensor(value) is not None)
        mapping[key] = _replace_first(output[key], tensor)
        return mapping
    replaced = list(output)
    index = next(index for index, item in enumerate(replaced) if first_tensor(item) is not None)
    replaced[index] = _replace_first(replaced[index], tensor)
    return type(output)(*replaced) if hasattr(output, "_fields") else type(output)(replaced)


def _ancestors(tensor: torch.Tensor) -> set[Node]:
    """Return the nodes of autograd's graph that a tensor depends on."""
    found: set[Node] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(source for source, _ in node.next_functions)
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and the ones that it was raised from, the first of all last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _module_of(node: ir.Node) -> str:
    """Return the name of the module that a node was traced from, as the model's own user knows it."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    # The last scope is the operator's own; the ones before are modules, outermost first, ours around them.
    return scopes[-2].removeprefix("model").removeprefix(".") if len(scopes) > 1 else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch's exporter logs, warns of and prints for its own developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
