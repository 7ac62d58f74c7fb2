"""Sources by name, as the command line takes them.

``torchvision:NAME``, ``timm:NAME``, ``package.module:factory``, or a program of ``torch.export``, `.pt2`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onnxplain.errors import ModelError, SourceError
from onnxplain.extras import require
from onnxplain.manifest import Preprocessing
from onnxplain_export.checkpoints import SUFFIXES, classes_in, load_weights, read_weights
from onnxplain_export.evidence import (
    SAYS_CHANNELS,
    Evidence,
    check_size,
    guessed_by_source,
    settle,
    stated_size,
)
from onnxplain_export.exported_program import as_module, input_shape, load_program
from onnxplain_export.layers import closest_names
from onnxplain_export.module_evidence import of_batch_norm, timm_preprocessing
from onnxplain_export.torch_model import first_tensor, one_line
from onnxplain_export.transform import preprocessing_of

_SHAPE = frozenset(("channels", "height", "width"))


@dataclass(frozen=True)
class Source:
    """A model to export, and what its origin knows about it."""

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None

    @property
    def example_input(self) -> torch.Tensor:
        """An image of zeros of the size that the preprocessing makes, [1, channels, height, width]."""
        return torch.zeros(
            1, self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width
        )


def load_source(
    spec: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    pretrained: bool = True,
) -> Source:
    """Load a model by name.

    Parameters
    ----------
    spec
        ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory`` for a callable without arguments that
        returns an `nn.Module` (modules in the current folder are found), or ``FILE.pt2``, a program that
        ``torch.export.save`` wrote for a dynamic batch. Read a program only if you trust where it comes from.
    checkpoint
        Weights to load: `.safetensors`, or a PyTorch file of tensors by name, bare or as Lightning,
        DataParallel and training scripts wrap them. For torchvision and timm they stand in place of the
        pretrained weights, which are downloaded otherwise, and the network is built with as many classes as
        their head has; the preprocessing is the one that goes with torchvision's newest weights, or with the
        name of timm's, and no statement. A program has its own weights.
    size
        Height and width of the input; by default those of `preprocessing`, the source's own, or 224 x 224.
    preprocessing
        What is stated of how pictures become inputs; the rest is as the source says.
    pretrained
        Without, and without a checkpoint, torchvision's and timm's networks have random weights, and nothing
        is downloaded.

    Raises
    ------
    SourceError
        There is no such model, or it doesn't take the checkpoint.
    MissingDependencyError
        The source's package isn't installed.
    """
    size = size or stated_size(preprocessing)
    source = _load(spec, size, None if checkpoint is None else Path(checkpoint), pretrained)
    own = source.preprocessing
    statement = preprocessing or Preprocessing()
    says_channels = not statement.stated.isdisjoint(SAYS_CHANNELS)
    channels = statement.channels if says_channels and "channels" not in own.stated else own.channels
    check_size(statement, channels, own.height, own.width)
    said = Evidence({name: getattr(own, name) for name in own.stated - _SHAPE}, "the source", is_stated=True)
    evidence = [said, *of_batch_norm(source.model, channels), *guessed_by_source(own)]
    return replace(source, preprocessing=settle(statement, channels, own.height, own.width, evidence))


def _load(spec: str, size: tuple[int, int] | None, checkpoint: Path | None, pretrained: bool) -> Source:
    file = Path(spec)
    if file.suffix == ".pt2":
        if checkpoint is not None:
            raise SourceError(f"{spec} has its own weights; leave the checkpoint out")
        return _program(file, size)
    origin, separator, name = spec.partition(":")
    if not separator or not origin or not name:
        raise SourceError(_no_source(spec))
    if origin not in _LIBRARIES:
        model = _from_factory(origin, name)
        if size is None:
            warnings.warn(
                f"nobody stated the size of the images that {spec} takes, so 224x224 is a guess; state it "
                "with --size, or height and width in the preprocessing",
                stacklevel=3,
            )
        source = Source(spec, model, _of_size(_channels_of(model), *(size or (224, 224))))
        if checkpoint is not None:
            load_weights(model, read_weights(checkpoint, model), checkpoint)
        return source
    make = _LIBRARIES[origin]
    if checkpoint is None:
        return make(name, size, pretrained=pretrained)
    source = make(name, size, pretrained=False)
    weights = read_weights(checkpoint, source.model)
    classes = classes_in(weights, source.model)
    if classes is not None:
        source = make(name, size, pretrained=False, num_classes=classes)
    load_weights(source.model, weights, checkpoint)
    # Whoever trained these weights may have done otherwise than the library.
    return replace(source, preprocessing=replace(source.preprocessing, stated=_SHAPE))


def _no_source(spec: str) -> str:
    """Say what to do with a word that names no source."""
    file = Path(spec)
    if file.suffix == ".onnx":
        return (
            f"{spec} is no module, and needs none: export it as it is, without PyTorch, with "
            f"onnxplain_export.export({spec!r}, None, OUT) or on the command line"
        )
    if file.suffix in SUFFIXES:
        return (
            f"{spec} holds weights, and not the network that they belong to: name that, torchvision:NAME, "
            f"timm:NAME or package.module:factory, and give the file with --checkpoint {spec}"
        )
    origins = [origin for origin in _LIBRARIES if spec in _names_in(origin)]
    near = (
        f"did you mean {' or '.join(f'{origin}:{spec}' for origin in origins)}?"
        if origins
        else (
            "name one as torchvision:NAME, timm:NAME, package.module:factory, model.pt2 or model.onnx, "
            "such as torchvision:resnet50"
        )
    )
    return f"{spec!r} is no source; {near}"


def _names_in(origin: str) -> list[str]:
    """Return the names of a library's networks; none where it isn't installed."""
    try:
        library: Any = importlib.import_module("torchvision.models" if origin == "torchvision" else "timm")
        return list(library.list_models(module=library) if origin == "torchvision" else library.list_models())
    except (ImportError, RuntimeError):
        return []


def _of_size(channels: int | None, height: int, width: int) -> Preprocessing:
    """Return the usual preprocessing of a size, of three channels where their number isn't known."""
    known = {"height", "width", *(["channels"] if channels else [])}
    return Preprocessing(channels or 3, height, width, stated=frozenset(known))


def _channels_of(model: nn.Module) -> int | None:
    """Return how many channels a network takes, by its first convolution; None where that doesn't tell."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None


def _torchvision(
    name: str, size: tuple[int, int] | None, *, pretrained: bool, num_classes: int | None = None
) -> Source:
    require("torchvision")
    models = _import_beside_torch("torchvision.models")
    if name not in models.list_models(module=models):
        raise SourceError(
            f"torchvision has no classifier {name!r}{closest_names(name, models.list_models(module=models))}"
        )
    weights = models.get_model_weights(name).DEFAULT
    # Random weights that a checkpoint is about to replace need no costly initialisation.
    options: dict[str, Any] = (
        {"init_weights": False} if name in ("googlenet", "inception_v3") and not pretrained else {}
    )
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        model = models.get_model(name, weights=weights if pretrained else None, **options)
    except OSError as error:
        raise SourceError(
            f"can't download the weights of {name} ({one_line(error)}); give a file with --checkpoint"
        ) from None
    preprocessing = preprocessing_of(weights.transforms())
    return Source(
        f"torchvision:{name}",
        model,
        preprocessing if size is None else preprocessing.at_size(*size),
        tuple(weights.meta["categories"]) if num_classes is None else None,
    )


def _timm(
    name: str, size: tuple[int, int] | None, *, pretrained: bool, num_classes: int | None = None
) -> Source:
    require("timm")
    timm = _import_beside_torch("timm")
    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if name not in known:
        tags = [other for other in known if other.startswith(f"{name.partition('.')[0]}.")]
        near = closest_names(name, tags if "." in name and tags else known)
        raise SourceError(f"timm has no network {name!r}{near}")
    config = timm.get_pretrained_cfg(name)
    if pretrained and not config.has_weights:
        raise SourceError(f"timm has no weights of {name}; give a file with --checkpoint")
    # Networks with position embeddings or windows are made for one size; the others take any.
    options: dict[str, Any] = {"img_size": size} if size is not None and config.fixed_input_size else {}
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        model = timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise SourceError(
            f"can't download the weights of {name} ({one_line(error)}); give a file with --checkpoint"
        ) from None
    except Exception as error:
        raise SourceError(f"timm can't make {name}: {one_line(error)}") from error
    if model.num_classes == 0:
        raise SourceError(
            f"timm's {name} puts out features, no logits; choose one that was trained to classify"
        )
    found = timm.data.resolve_model_data_config(model)
    if size is not None:
        found["input_size"] = (found["input_size"][0], *size)
    labels = _timm_labels(timm, model) if num_classes is None else None
    return Source(f"timm:{name}", model, timm_preprocessing(found), labels)


_LIBRARIES = {"torchvision": _torchvision, "timm": _timm}


def _timm_labels(timm: Any, model: nn.Module) -> tuple[str, ...] | None:
    """Return the first name of each class where a network tells the 1000 classes of ImageNet apart."""
    if timm.data.infer_imagenet_subset(model) != "imagenet-1k":
        return None
    names = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    return tuple(name.partition(", ")[0] for name in names)


def _program(file: Path, size: tuple[int, int] | None) -> Source:
    program = load_program(file)
    model = as_module(program)
    _, channels, *own = input_shape(program)
    # What the program leaves open is as in the example that it was exported with.
    example = first_tensor(program.example_inputs)
    usual = (224, 224) if example is None or example.ndim != 4 else example.shape[2:]
    wanted = usual if size is None else size
    fixed = [side if isinstance(side, int) else other for side, other in zip(own, wanted, strict=True)]
    if size is not None and fixed != list(size):
        raise SourceError(
            f"{file.name} takes images of {fixed[0]} x {fixed[1]} alone, not of {size[0]} x {size[1]}; "
            "leave the size out, or export the program again"
        )
    if not isinstance(channels, int):
        raise SourceError(f"{file.name} leaves its number of channels open; export it again with a fixed one")
    try:
        return Source(file.name, model, _of_size(channels, *fixed))
    except ModelError as error:
        raise SourceError(f"{file.name}: {error}") from None


def _import_beside_torch(name: str) -> Any:
    """Import a package that brings operators for torch of its own, or needs one that does."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        raise SourceError(
            f"torchvision doesn't import beside torch {torch.__version__} ({one_line(error)}); "
            "install the build of it that goes with this torch"
        ) from None


def _from_factory(module_name: str, factory_name: str) -> nn.Module:
    with _current_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise SourceError(f"can't import {module_name!r} ({one_line(error)})") from error
    factory: Any = module
    for part in factory_name.split("."):
        if not hasattr(factory, part):
            public = [name for name in dir(factory) if not name.startswith("_")]
            raise SourceError(f"{module_name!r} has no {factory_name!r}{closest_names(part, public)}")
        factory = getattr(factory, part)
    try:
        model = factory if isinstance(factory, nn.Module) else factory()
    except (Exception, SystemExit) as error:
        raise SourceError(f"{module_name}:{factory_name} fails: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"{module_name}:{factory_name} returns {type(model).__name__}, not a torch.nn.Module"
        )
    return model


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
