"""Sources by name, as the command line takes them: ``torchvision:NAME`` and ``package.module:factory``."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onnxplain.errors import SourceError
from onnxplain.extras import require
from onnxplain.manifest import Preprocessing
from onnxplain_export.layers import closest_names
from onnxplain_export.torch_model import one_line


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
) -> Source:
    """Load a model by name.

    Parameters
    ----------
    spec
        ``torchvision:NAME``, or ``package.module:factory`` for a callable without arguments that returns an
        `nn.Module`. Modules in the current folder are found.
    checkpoint
        A state dict to load: `.safetensors`, or anything else as a PyTorch file that holds tensors only. For
        torchvision it stands in place of the pretrained weights, which are downloaded otherwise; the
        preprocessing is the one that goes with torchvision's newest weights.
    size
        Height and width of the input; by default the source's own, or 224 x 224.

    Raises
    ------
    SourceError
        There is no such model, or it doesn't take the checkpoint.
    MissingDependencyError
        The source's package isn't installed.
    """
    origin, separator, name = spec.partition(":")
    if Path(spec).suffix in (".onnx", ".pt2"):
        raise SourceError(
            f"{spec} can't be exported yet: sources are PyTorch modules, named as package.module:factory "
            "or torchvision:NAME"
        )
    if not separator or not origin or not name:
        raise SourceError(
            f"{spec!r} is no source; name one as torchvision:NAME or package.module:factory, "
            "such as torchvision:resnet50"
        )
    if origin == "torchvision":
        source = _torchvision(name, pretrained=checkpoint is None)
    else:
        source = Source(spec, _from_factory(origin, name), Preprocessing.for_size(3, 224, 224))
    if checkpoint is not None:
        _load_checkpoint(source.model, Path(checkpoint))
    if size is None:
        return source
    usual = Preprocessing.for_size(source.preprocessing.channels, *size)
    return Source(source.name, source.model, usual, source.labels)


def _torchvision(name: str, *, pretrained: bool) -> Source:
    require("torchvision")
    try:
        models = importlib.import_module("torchvision.models")
    except RuntimeError as error:
        raise SourceError(
            f"torchvision doesn't import beside torch {torch.__version__} ({one_line(error)}); "
            "install the build of it that goes with this torch"
        ) from None
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
    transform = weights.transforms()
    (crop,), (resize,) = transform.crop_size, transform.resize_size
    return Source(
        f"torchvision:{name}",
        model,
        Preprocessing(
            height=crop,
            width=crop,
            resize=resize,
            interpolation=transform.interpolation.value,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
        ),
        tuple(weights.meta["categories"]),
    )


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
