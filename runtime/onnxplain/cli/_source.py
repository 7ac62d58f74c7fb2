"""The SOURCE that `export` and `layers` take, and its options."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxplain.cli._size import read_size
from onnxplain.errors import ModelError, SourceError
from onnxplain.extras import require
from onnxplain.manifest import Preprocessing

if TYPE_CHECKING:
    from onnxplain_export import OnnxModel, Source

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class OnnxSource:
    """An `.onnx` file, in the place of what `load_source` returns."""

    model: OnnxModel
    preprocessing: Preprocessing | None
    """What is stated of it."""
    #: A path says where a file lies on this machine; its name is enough.
    name: None = None
    example_input: None = None
    labels: None = None


def source_arguments(command: _Command) -> _Command:
    """Give a command SOURCE and the options on how to load it."""
    for add in (
        click.option(
            "--preprocessing",
            "preprocessing_file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="How pictures become inputs: JSON with the keys of the manifest's `input`.",
        ),
        click.option(
            "--size",
            metavar="SIZE",
            callback=read_size,
            help="The input's side, or its height and width: 240x320.",
        ),
        click.option(
            "--checkpoint",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="The network's weights: .safetensors, or a PyTorch file, as training scripts, Lightning and "
            "DataParallel write them.",
        ),
        click.argument("source"),
    ):
        command = add(command)
    return command


def load(
    source: str,
    checkpoint: Path | None,
    size: tuple[int, int] | None,
    preprocessing_file: Path | None,
    *,
    pretrained: bool = True,
) -> Source | OnnxSource:
    """Load SOURCE as its options say; its `pretrained` weights too, unless the network will do.

    Raises
    ------
    click.UsageError
        The options contradict each other.
    MissingDependencyError
        A package that the source takes isn't installed.
    SourceError
        There is no such source, or a file doesn't fit it.
    """
    preprocessing = None if preprocessing_file is None else _read_preprocessing(preprocessing_file)
    sides = _stated_sides(preprocessing)
    if size and not sides.items() <= {"height": size[0], "width": size[1]}.items():
        stated = " and ".join(f"{name} {side}" for name, side in sides.items())
        raise click.UsageError(
            f"--size says {size[0]}x{size[1]}, and {preprocessing_file} says {stated}.",
            click.get_current_context(),
        )
    origin = source.partition(":")[0]
    if Path(source).suffix == ".onnx":
        return _load_onnx(source, checkpoint, size, preprocessing)
    require("export", *([origin] if origin in ("torchvision", "timm") else []))
    from onnxplain_export import load_source

    return load_source(
        source, checkpoint=checkpoint, size=size, preprocessing=preprocessing, pretrained=pretrained
    )


def _load_onnx(
    source: str, checkpoint: Path | None, size: tuple[int, int] | None, preprocessing: Preprocessing | None
) -> OnnxSource:
    if checkpoint is not None:
        raise click.UsageError(
            "--checkpoint doesn't go with an .onnx file, which has its weights.", click.get_current_context()
        )
    require("onnx")
    from onnxplain_export import OnnxModel
    from onnxplain_export.evidence import stated_size

    return OnnxSource(OnnxModel(source, size or stated_size(preprocessing)), preprocessing)


def _stated_sides(preprocessing: Preprocessing | None) -> dict[str, int]:
    """Return the height and width by name, so far as they are stated."""
    stated = frozenset[str]() if preprocessing is None else preprocessing.stated
    return {name: getattr(preprocessing, name) for name in ("height", "width") if name in stated}


def read_text(file: Path) -> str:
    """Return the text of a file that goes with a source.

    Raises
    ------
    SourceError
        It can't be read, or isn't text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"can't read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SourceError(f"{file} is not a text file in UTF-8") from None


def _read_preprocessing(file: Path) -> Preprocessing:
    """Read a JSON object with fields of `Preprocessing`; what it leaves out isn't stated."""
    try:
        found: dict[str, Any] = json.loads(read_text(file))
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in found.items()
        }
        known.pop("stated", None)  # of a manifest's input: here all that stands is
        _check_names(known)
        return Preprocessing(**known)
    except (ValueError, AttributeError, TypeError, OverflowError, ModelError) as error:
        raise SourceError(f"{file} doesn't say how pictures become inputs: {error}") from None


def _check_names(given: Iterable[str]) -> None:
    names = [field.name for field in fields(Preprocessing) if field.name != "stated"]
    for unknown in sorted(set(given).difference(names)):
        near = get_close_matches(unknown, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"there is no {unknown!r}; {hint}")
