"""Train the reference networks: `python -m onnxplain_models.train --output DIR`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from onnxplain.files import write_atomically
from onnxplain_models.catalog import NETWORKS, PREPROCESSING
from onnxplain_models.networks import untrained
from onnxplain_models.scenes import Scenes, make_scenes

SCENES = 32_000
BATCH = 64
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Recipe:
    """How long a network is trained, and the peak of its one-cycle learning rate."""

    steps: int
    learning_rate: float


RECIPES = {
    "nin": Recipe(steps=1600, learning_rate=4e-3),
    "vgg_mlp": Recipe(steps=1600, learning_rate=4e-3),
    "vgg_cam": Recipe(steps=600, learning_rate=3e-3),
}


def normalise(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn pictures, uint8 [batch, 96, 96, 3], into what the networks take, float32 [batch, 3, 96, 96]."""
    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)


def train(name: str, scenes: Scenes, folder: Path, progress: Progress) -> nn.Module:
    """Train a network; `vgg_cam` starts from the features of the `vgg_mlp` in `folder`."""
    torch.manual_seed(0)
    network = untrained(name)
    if name == "vgg_cam":
        _keep_features(network, folder)
    network.train()

    recipe = RECIPES[name]
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    task = progress.add_task(name, total=recipe.steps, loss=float("nan"))
    for step, rows in enumerate(_batches(len(scenes.labels), recipe.steps), 1):
        logits = network(normalise(scenes.images[rows]))
        labels = torch.from_numpy(scenes.labels[rows])
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        progress.update(task, advance=1, loss=loss.item())
        if step % 100 == 0:
            progress.console.print(f"{name} {step} of {recipe.steps}, loss {loss.item():.3f}")
    return network.eval()


def _batches(count: int, steps: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each step's batch: all scenes in a new order, again and again."""
    rng = np.random.default_rng(0)
    whole_batches = count // BATCH
    for step in range(steps):
        if step % whole_batches == 0:
            order = rng.permutation(count)
        first = step % whole_batches * BATCH
        yield order[first : first + BATCH]


def accuracy(network: nn.Module, count: int) -> float:
    """Return the share of `count` validation scenes that a network gets right."""
    right = 0
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            scenes = make_scenes("validation", min(BATCH, count - start), start=start)
            answers = network(normalise(scenes.images)).argmax(dim=1).numpy()
            right += int((answers == scenes.labels).sum())
    return right / count


def save(network: nn.Module, path: Path) -> None:
    """Write a network's weights; the file is there whole or not at all."""
    write_atomically(path, serialise(network.state_dict()))


def _keep_features(network: nn.Module, folder: Path) -> None:
    weights = load_file(folder / "vgg_mlp.safetensors")
    kept = {
        key.removeprefix("features."): value for key, value in weights.items() if key.startswith("features.")
    }
    network.get_submodule("features").load_state_dict(kept)


def main() -> None:
    """Train one network, or all of them, and write their weights."""
    parser = argparse.ArgumentParser(prog="python -m onnxplain_models.train", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, help="train this one alone (default: all three)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights")
    arguments = parser.parse_args()
    if arguments.network == "vgg_cam" and not (arguments.output / "vgg_mlp.safetensors").is_file():
        parser.error(f"vgg_cam starts from vgg_mlp's features: train vgg_mlp into {arguments.output} first")
    arguments.output.mkdir(parents=True, exist_ok=True)

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # so that sums are added up in the same order on every machine
    scenes = make_scenes("train", SCENES)
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    for name in [arguments.network] if arguments.network else NETWORKS:
        began = time.perf_counter()
        with Progress(*columns) as progress:
            network = train(name, scenes, arguments.output, progress)
        seconds = time.perf_counter() - began
        save(network, arguments.output / f"{name}.safetensors")
        parameters = sum(parameter.numel() for parameter in network.parameters())
        print(
            f"{name}: {parameters} parameters, {seconds:.0f} s, "
            f"{accuracy(network, 1000):.1%} of 1000 validation scenes"
        )


if __name__ == "__main__":
    main()
