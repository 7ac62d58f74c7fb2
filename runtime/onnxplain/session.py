"""Loading an explainer into onnxruntime, and checking that the file is what its manifest says."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from onnxplain.errors import MissingDependencyError, ModelError, ProviderError
from onnxplain.manifest import IMAGE_OUTPUTS, METADATA_KEY, Manifest

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

try:
    import onnxruntime
except ImportError as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
        problem = "onnxruntime is not installed"
    else:
        problem = f"onnxruntime is installed but does not import ({error})"
    raise MissingDependencyError(
        f'{problem}; run: pip install "onnxplain[cpu]" (or "onnxplain[gpu]")'
    ) from None

Device = Literal["auto", "cpu", "cuda"]
Provider = str | tuple[str, Mapping[str, Any]]
"""The name of an onnxruntime execution provider, alone or with its options."""

_Promise = tuple[str, tuple[int | None, ...]]
"""A tensor's type and shape; None where any length will do."""

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def create_session(
    model: str | os.PathLike[str] | bytes,
    device: Device,
    providers: Sequence[Provider] | None,
    threads: int | None = None,
    *,
    spin: bool = True,
) -> InferenceSession:
    """Load a model file, or the bytes of one; a run takes `threads` of the CPU's, one a core by default.

    Idle, its threads `spin` for a while. They find the next task sooner so, and keep cores from other work.

    Warns
    -----
    RuntimeWarning
        A provider that was asked for could not be started, and onnxruntime fell back to another.

    Raises
    ------
    ModelError
        The file is missing, empty or damaged.
    ProviderError
        A provider isn't available here.
    """
    chosen = _choose_providers(device, providers)
    name = model_name(model)
    if not isinstance(model, bytes):
        _check_file(Path(model))
    elif not model:
        raise ModelError("the model is empty")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about its own optimisations
    options.intra_op_num_threads = threads or 0
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else os.fspath(model)

    def load(providers: list[Any]) -> InferenceSession:
        # Its own fallback prints to stdout, for a damaged model too.
        return onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)

    # Its errors have no common base of their own. Where the provider is to blame, the CPU can load the model.
    try:
        try:
            session = load(chosen)
        except Exception:
            if _names(chosen) == [_CPU]:
                raise
            session = load([_CPU])
    except Exception as error:
        raise ModelError(
            f"onnxruntime can't load {name} ({_first_line(error)}); is it a whole .onnx?"
        ) from None
    _warn_of_fallback(chosen, session.get_providers())
    return session


def model_name(model: str | os.PathLike[str] | bytes | None) -> str:
    """Return what an error calls a model."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else "the model"


def read_manifest(session: InferenceSession, name: str) -> Manifest:
    """Return the manifest in a session's model, checked against the model's own inputs and outputs.

    Raises
    ------
    ModelError
        The model is not an explainer, its schema is newer than this version, or it is not what it says.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except UnicodeDecodeError:
        raise ModelError(f"{name}: its metadata is damaged; export the model again") from None
    if text is None:
        raise ModelError(
            f"{name} is a plain ONNX model, not an explainer; make one of it, without PyTorch: "
            f"onnxplain export {_shown(name)} -o explainer.onnx"
        )
    try:
        manifest = Manifest.from_json(text)
        _check_tensors(session, manifest)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{name}: a tensor's name is damaged; export the model again") from None
    return manifest


def _shown(name: str) -> str:
    """Return a model's path as it is typed; of one in memory, what stands for it."""
    return shlex.quote(name) if name != model_name(None) else "MODEL.onnx"


def num_classes(session: InferenceSession) -> int | None:
    """Return the length of the logits; None where the graph leaves it open."""
    shape = next(output.shape for output in session.get_outputs() if output.name == "logits")
    return shape[1] if isinstance(shape[1], int) else None


def _image_size(session: InferenceSession) -> list[int | str]:
    """Return the height and width of a session's images, names where they may be any."""
    return next(given.shape[2:] for given in session.get_inputs() if given.name == "image")


def takes_any_size(session: InferenceSession) -> bool:
    """Say whether a session's model takes images of any height and width."""
    return all(isinstance(side, str) for side in _image_size(session))


def check_size(session: InferenceSession, height: int, width: int) -> None:
    """Check that a session's model takes images of a size.

    Raises
    ------
    ModelError
        It takes those of another size alone.
    """
    own = _image_size(session)
    if any(
        isinstance(side, int) and side != wanted for side, wanted in zip(own, (height, width), strict=True)
    ):
        raise ModelError(
            f"the model takes images of {own[0]}x{own[1]} alone, not of {height}x{width}; "
            "export it again with --dynamic-size"
        )


def run(
    session: InferenceSession, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Return the named outputs of a session.

    Raises
    ------
    ModelError
        The model fails on these inputs.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # what fails is raised, and need not be on stderr too
    try:
        arrays: list[NDArray[Any]] = session.run(list(outputs), dict(feeds), options)
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise ModelError(f"the model failed in onnxruntime ({_first_line(error)})") from None
    return arrays


def _choose_providers(device: Device, providers: Sequence[Provider] | None) -> list[Any]:
    available = onnxruntime.get_available_providers()
    if providers is None:
        if device not in ("auto", "cpu", "cuda"):
            raise ProviderError(f"unknown device {device!r}; there are auto, cpu and cuda")
        use_cuda = device == "cuda" or (device == "auto" and _CUDA in available)
        providers = [_CUDA, _CPU] if use_cuda else [_CPU]
    elif isinstance(providers, str) or not all(isinstance(one, (str, tuple)) for one in providers):
        raise TypeError(
            "providers is a list of execution providers, each a name or a tuple (name, options); "
            'such as ["CPUExecutionProvider"]'
        )
    names = _names(providers)
    if not names:
        raise ProviderError(f"no execution provider given; available here: {', '.join(available)}")
    missing = [name for name in names if name not in available]
    if missing:
        hint = '; for CUDA, run: pip install "onnxplain[gpu]"' if _CUDA in missing else ""
        raise ProviderError(
            f"{', '.join(missing)} is not available; available here: {', '.join(available)}{hint}"
        )
    return list(providers)


def _names(providers: Sequence[Provider]) -> list[str]:
    return [provider if isinstance(provider, str) else provider[0] for provider in providers]


def _warn_of_fallback(chosen: Sequence[Provider], running: Sequence[str]) -> None:
    lost = [name for name in _names(chosen) if name not in running]
    if lost:
        warnings.warn(
            f"{', '.join(lost)} could not be started, so the model runs on {', '.join(running)}; "
            "check the driver and its libraries",
            RuntimeWarning,
            stacklevel=4,
        )


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a model file")
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise ModelError(f"there is no model file {path}") from None
        raise ModelError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None
    if size == 0:
        raise ModelError(f"{path} is empty, so it is not a model")


def _check_tensors(session: InferenceSession, manifest: Manifest) -> None:
    """Compare every tensor's name, type and shape with what the manifest promises."""
    spec = manifest.input
    classes = None if manifest.labels is None else len(manifest.labels)
    image: _Promise = ("tensor(float)", (None, spec.channels, spec.height, spec.width))
    if manifest.pixels:
        image = ("tensor(uint8)", (None, None, None, 3))
    inputs: dict[str, _Promise] = {
        "image": image,
        "class_index": ("tensor(int64)", (None, None)),
    }
    outputs: dict[str, _Promise] = {
        "logits": ("tensor(float)", (None, classes)),
        "explained_class": ("tensor(int64)", (None, None)),
    }
    for layer in manifest.layers:
        shape = (layer.channels, layer.height, layer.width)
        outputs |= {
            layer.activations: ("tensor(float)", (None, *shape)),
            layer.gradients: ("tensor(float)", (None, None, *shape)),
        }
        if manifest.heatmap is not None:
            outputs[manifest.cam(layer)] = ("tensor(float)", (None, None, layer.height, layer.width))
    present = {output.name for output in session.get_outputs()}
    of_image: _Promise = ("tensor(float)", (None, None, spec.channels, spec.height, spec.width))
    outputs |= {name: of_image for name in IMAGE_OUTPUTS if name in present and not manifest.pixels}
    _compare("input", session.get_inputs(), inputs)
    _compare("output", session.get_outputs(), outputs)
    extra = {tensor.name for tensor in session.get_inputs()} - inputs.keys()
    if extra:
        raise ModelError(f"it has inputs that an explainer doesn't have: {', '.join(sorted(extra))}")


def _compare(kind: str, tensors: Sequence[Any], promised: Mapping[str, _Promise]) -> None:
    present = {tensor.name: tensor for tensor in tensors}
    for name, (dtype, shape) in promised.items():
        if name not in present:
            raise ModelError(f"it lacks the {kind} {name!r} that an explainer has; export the model again")
        found = present[name]
        fits = len(found.shape) == len(shape) and all(
            want is None or not isinstance(have, int) or have == want
            for have, want in zip(found.shape, shape, strict=True)
        )
        if found.type != dtype or not fits:
            expected = ["any" if size is None else size for size in shape]
            raise ModelError(
                f"its {kind} {name!r} is {found.type} {found.shape}, but the manifest says "
                f"{dtype} {expected}; export the model again"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
