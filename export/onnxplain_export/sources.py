"""Sources by name, as the command line takes them.

``torchvision:NAME``, ``timm:NAME``, ``package.module:factory``, or a program of ``torch.export``, `.pt2`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onnxplain.errors import ModelError, SourceError
from onnxplain.extras import require
from onnxplain.manifest import Preprocessing
from onnxplain_export.evidence import SAYS_CHANNELS, Evidence, check_size, settle, stated_size
from onnxplain_export.exported_program import as_module, input_shape, load_program
from onnxplain_export.layers import closest_names
from onnxplain_export.module_evidence import timm_preprocessing
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
) -> Source:
    """Load a model by name.

    Parameters
    ----------
    spec
        ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory`` for a callable without arguments that
        returns an `nn.Module` (modules in the current folder are found), or ``FILE.pt2``, a program that
        ``torch.export.save`` wrote for a dynamic batch. Read a program only if you trust where it comes from.
    checkpoint
        A state dict to load: `.safetensors`, or anything else as a PyTorch file that holds tensors only. For
        torchvision and timm it stands in place of the pretrained weights, which are downloaded otherwise; the
        preprocessing is the one that goes with torchvision's newest weights, or with the name of timm's. A
        program has its own weights.
    size
        Height and width of the input; by default those of `preprocessing`, the source's own, or 224 x 224.
    preprocessing
        What is stated of how pictures become inputs; the rest is as the source says.

    Raises
    ------
    SourceError
        There is no such model, or it doesn't take the checkpoint.
    MissingDependencyError
        The source's package isn't installed.
    """
    size = size or stated_size(preprocessing)
    source = _load(spec, size, None if checkpoint is None else Path(checkpoint))
    own = source.preprocessing
    if preprocessing is None:
        return source
    says_channels = not preprocessing.stated.isdisjoint(SAYS_CHANNELS)
    channels = preprocessing.channels if says_channels and "channels" not in own.stated else own.channels
    check_size(preprocessing, channels, own.height, own.width)
    said = Evidence({name: getattr(own, name) for name in own.stated - _SHAPE}, "the source", is_stated=True)
    settled = settle(preprocessing, channels, own.height, own.width, [said])
    return replace(source, preprocessing=settled)


def _load(spec: str, size: tuple[int, int] | None, checkpoint: Path | None) -> Source:
    if Path(spec).suffix == ".pt2":
        if checkpoint is not None:
            raise SourceError(f"{spec} has its own weights; leave the checkpoint out")
        return _program(Path(spec), size)
    origin, separator, name = spec.partition(":")
    if Path(spec).suffix == ".onnx":
        raise SourceError(
            f"{spec} can't be exported yet: sources are PyTorch modules, named as package.module:factory "
            "or torchvision:NAME"
        )
    if not separator or not origin or not name:
        raise SourceError(
            f"{spec!r} is no source; name one as torchvision:NAME, timm:NAME or package.module:factory, "
            "such as torchvision:resnet50"
        )
    if origin == "torchvision":
        source = _torchvision(name, pretrained=checkpoint is None)
        if size is not None:
            source = replace(source, preprocessing=source.preprocessing.at_size(*size))
    elif origin == "timm":
        source = _timm(name, size, pretrained=checkpoint is None)
    else:
        model = _from_factory(origin, name)
        source = Source(spec, model, _of_size(_channels_of(model), *(size or (224, 224))))
    if checkpoint is not None:
        _load_checkpoint(source.model, checkpoint)
    return source


def _of_size(channels: int | None, height: int, width: int) -> Preprocessing:
    """Return the usual preprocessing of a size, of three channels where their number isn't known."""
    known = {"height", "width", *(["channels"] if channels else [])}
    return replace(Preprocessing.for_size(channels or 3, height, width), stated=frozenset(known))


def _channels_of(model: nn.Module) -> int | None:
    """Return how many channels a network takes, by its first convolution; None where that doesn't tell."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None


def _torchvision(name: str, *, pretrained: bool) -> Source:
    require("torchvision")
    models = _import_beside_torch("torchvision.models")
    if name not in models.list_models(module=models):
        raise SourceError(
            f"torchvision has no classifier {name!r}{closest_names(name, models.list_models(module=models))}"
        )
    weights = models.get_model_weights(name).DEFAULT
    # Random weights that a checkpoint is about to replace need no costly initialisation.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") and not pretrained else {}
    try:
        model = models.get_model(name, weights=weights if pretrained else None, **options)
    except OSError as error:
        raise SourceError(
            f"can't download the weights of {name} ({one_line(error)}); give a file with --checkpoint"
        ) from None
    return Source(
        f"torchvision:{name}",
        model,
        preprocessing_of(weights.transforms()),
        tuple(weights.meta["categories"]),
    )


def _timm(name: str, size: tuple[int, int] | None, *, pretrained: bool) -> Source:
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
    options = {"img_size": size} if size is not None and config.fixed_input_size else {}
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
    return Source(f"timm:{name}", model, timm_preprocessing(found), _timm_labels(timm, model))


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


def _load_checkpoint(model: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise SourceError(f"there is no checkpoint {str(file)!r}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(f"can't read the checkpoint {str(file)!r}: {one_line(error)}") from error
    if isinstance(state, Mapping):
        # Training scripts save more than the weights, and DataParallel puts a prefix before their names.
        state = next(
            (state[key] for key in ("state_dict", "model") if isinstance(state.get(key), Mapping)), state
        )
        state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except Exception as error:
        detail = " ".join(str(error).split())
        raise SourceError(f"the checkpoint {str(file)!r} doesn't fit the model: {detail[:200]}") from error


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
