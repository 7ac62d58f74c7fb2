"""The demo's page: one HTML file that holds its pictures, and needs no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

Box = tuple[int, int, int, int]
"""x0, y0, x1 and y1 in pixels, the ends not included."""


@dataclass(frozen=True)
class Network:
    """A network as the page presents it."""

    name: str
    method: str
    description: str


@dataclass(frozen=True)
class Answer:
    """What a network answered to a scene, and its map over the scene, as a PNG."""

    network: str
    label: str
    probability: float
    overlay: bytes
    boxes: Sequence[Box]


@dataclass(frozen=True)
class Scene:
    """A scene, as a PNG of `width` x `height` pixels: its digit, where that is, and the networks' answers."""

    picture: bytes
    width: int
    height: int
    digit: str
    box: Box
    answers: Sequence[Answer]


def render(
    *,
    networks: Sequence[Network],
    scenes: Sequence[Scene],
    ramp: bytes,
    facts: Sequence[tuple[str, str]],
    steps: Sequence[tuple[str, str]],
    torch: str,
    made: str,
) -> str:
    """Return the page.

    Parameters
    ----------
    ramp
        The colour map from 0 to 1, as a PNG.
    facts
        Names and values for the line under the title.
    steps
        What a user may do next, and the commands that do it, one a line.
    torch
        One sentence on where PyTorch was and was not.
    made
        One sentence on where the networks' files come from.
    """
    page = files("onnxplain").joinpath("demo_page.html").read_text(encoding="utf-8")
    return Template(page).substitute(
        networks="".join(map(_network, networks)),
        scenes="".join(map(_scene, scenes)),
        ramp=_data_uri(ramp),
        facts="".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts),
        steps="".join(
            f"<li><p>{escape(what)}</p><pre><code>{escape(lines)}</code></pre></li>" for what, lines in steps
        ),
        torch=escape(torch),
        made=escape(made),
    )


def _network(network: Network) -> str:
    return (
        f"<article><h3>{escape(network.name)}</h3>"
        f'<p class="method">{escape(network.method)}</p><p>{escape(network.description)}</p></article>'
    )


def _scene(scene: Scene) -> str:
    digit = escape(scene.digit)
    true_box = _rectangle(scene.box, "true")
    figures = [
        _figure(
            scene,
            scene.picture,
            true_box,
            f"The scene; its digit is {digit}",
            f"<b>{digit}</b> the scene",
            "",
        )
    ]
    for answer in scene.answers:
        label, right = escape(answer.label), answer.label == scene.digit
        figures.append(
            _figure(
                scene,
                answer.overlay,
                true_box + "".join(_rectangle(box, "") for box in answer.boxes),
                f"Why {escape(answer.network)} answered {label}",
                f'<b>{label}</b> <span class="of">{escape(answer.network)}</span> '
                f'<span class="probability">{answer.probability:.1%}</span>',
                "right" if right else "wrong",
            )
        )
    return f'<section class="scene">{"".join(figures)}</section>'


def _figure(scene: Scene, png: bytes, boxes: str, alt: str, caption: str, kind: str) -> str:
    return (
        f'<figure><div class="picture"><img src="{_data_uri(png)}" width="{scene.width}" '
        f'height="{scene.height}" alt="{alt}"><svg viewBox="0 0 {scene.width} {scene.height}" '
        f'preserveAspectRatio="none" aria-hidden="true">{boxes}</svg></div>'
        f'<figcaption class="{kind}">{caption}</figcaption></figure>'
    )


def _rectangle(box: Box, kind: str) -> str:
    x0, y0, x1, y1 = box
    return f'<rect class="{kind}" x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>'


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
