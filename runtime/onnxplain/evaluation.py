"""Which method to trust on a model: maps of many pictures, measured and compared with maps of noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onnxplain import __version__
from onnxplain.errors import BoxesError, ImageError, MethodError
from onnxplain.explainer import Explainer
from onnxplain.explanation import Explanation
from onnxplain.faithfulness import Predict, confidence_drop, deletion, insertion, road
from onnxplain.heatmap import heatmap
from onnxplain.images import Picture, decode_image, read_file
from onnxplain.localization import Annotation, Region, box_overlap, energy_in_boxes, pointing_game
from onnxplain.metrics import CONTROL, METRICS
from onnxplain.pipeline import cores
from onnxplain.targets import resolve_target

RESAMPLES = 2000

Scores = Mapping[str, Mapping[str, float]]
"""By method and metric."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Parameters
    ----------
    methods
        Names of methods; the control is measured too.
    metrics
        Keys of `onnxplain.metrics.METRICS`.
    layer
        One of the file's target layers; None for all of them together.
    seed
        Of the control's noise, and of ROAD's.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    layer: str | None = None
    seed: int = 0

    @property
    def with_control(self) -> tuple[str, ...]:
        """The methods, after the control."""
        return (CONTROL, *self.methods)


@dataclass(frozen=True)
class Case:
    """A picture to measure on, and the boxes in it."""

    path: Path
    annotations: tuple[Annotation, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured for one class of a picture."""

    index: int
    label: str | None
    scores: Scores


Journal = Mapping[str, Sequence[Measured]]
"""What was measured before, of other methods and metrics too: for each key of an outcome, its classes."""


@dataclass(frozen=True)
class Outcome:
    """What the plan asks of a picture, or why it couldn't be measured.

    Parameters
    ----------
    number
        Of the case.
    key
        Says of which file, picture, boxes and settings these are the measurements.
    classes
        The measurements.
    is_new
        Whether some of it was measured now.
    error
        Why there are none.
    """

    number: int
    key: str
    classes: tuple[Measured, ...] = ()
    is_new: bool = False
    error: str | None = None


class Evaluator:
    """Measures maps of an explainer by a plan.

    Raises
    ------
    MethodError
        The file can't be explained by one of the methods, lacks the layer, or prepares pictures itself.
    """

    def __init__(self, explainer: Explainer, model: bytes, plan: Plan) -> None:
        self._explainer, self._network, self._plan = explainer, explainer.network, plan
        if explainer.manifest.pixels:
            raise MethodError(
                "evaluating changes what the network takes, and this file prepares pictures itself; "
                "export it without --pixels"
            )
        for method in plan.methods:
            explainer.check(method, plan.layer)
        self._settings = {
            "onnxplain": __version__,
            "onnxruntime": [onnxruntime.__version__, *explainer.providers],
            "model": hashlib.sha256(model).hexdigest(),
            "size": [self._network.input.height, self._network.input.width],
            "layer": plan.layer,
            "seed": plan.seed,
        }

    def check_classes(self, cases: Sequence[Case]) -> None:
        """Check that the classes of the boxes exist.

        Raises
        ------
        TargetError
            One doesn't, or its label names more than one.
        """
        for label in {one.label for case in cases for one in case.annotations}:
            self._resolve(label)

    def run(
        self,
        cases: Sequence[Case],
        known: Journal,
        progress: Callable[[int, float], None] = lambda number, fraction: None,
    ) -> Iterator[Outcome]:
        """Measure pictures, one a core at a time; yield each as it is done.

        Parameters
        ----------
        cases
            The pictures.
        known
            What was measured before: it isn't again.
        progress
            Called, by several threads, with the number of a case and how much of it is measured, about.
        """
        stopped = Event()
        pool = ThreadPoolExecutor(cores(), thread_name_prefix="onnxplain")
        costs: dict[str, int] = {}
        calls = [
            pool.submit(self._measure, number, case, known, _Watch(stopped, partial(progress, number), costs))
            for number, case in enumerate(cases)
        ]
        try:
            for call in as_completed(calls):
                yield call.result()
        finally:  # an interruption doesn't wait until a picture is done
            stopped.set()
            pool.shutdown(cancel_futures=True)

    def _measure(self, number: int, case: Case, known: Journal, watch: _Watch) -> Outcome:
        key = ""
        try:
            data = read_file(case.path)
            digest = hashlib.sha256(data).hexdigest()
            key = self._key(digest, case.annotations)
            before = known.get(key, ())
            metrics = [
                name for name in self._plan.metrics if case.annotations or not METRICS[name].needs_boxes
            ]
            is_known = bool(before) and not any(self._missing(one.scores, metrics) for one in before)
            classes = (
                before if is_known else self._measure_picture(data, digest, case, metrics, before, watch)
            )
            planned = tuple(self._planned(one, metrics) for one in classes)
            return Outcome(number, key, planned, is_new=not is_known)
        except (ImageError, BoxesError) as error:
            return Outcome(number, key, error=str(error))

    def _missing(self, scores: Scores, metrics: Sequence[str]) -> dict[str, list[str]]:
        """Return the methods that lack some of the metrics, and which."""
        found = {
            method: [name for name in metrics if name not in scores.get(method, {})]
            for method in self._plan.with_control
        }
        return {method: names for method, names in found.items() if names}

    def _planned(self, one: Measured, metrics: Sequence[str]) -> Measured:
        """Return what the plan asks of what was measured, in its order."""
        scores = {
            method: {name: one.scores[method][name] for name in metrics} for method in self._plan.with_control
        }
        return replace(one, scores=scores)

    def _key(self, digest: str, annotations: Sequence[Annotation]) -> str:
        settings = {**self._settings, "picture": digest, "boxes": [one[1:] for one in annotations]}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _measure_picture(
        self,
        data: bytes,
        digest: str,
        case: Case,
        metrics: Sequence[str],
        before: Sequence[Measured],
        watch: _Watch,
    ) -> list[Measured]:
        """Return the measurements of each class: those from before, and what they lack."""
        image = decode_image(data, str(case.path))
        # Of the picture's own bytes: neither its name nor its turn change its noise.
        seed = [self._plan.seed, int(digest[:16], 16)]
        scores = {one.index: one.scores for one in before}
        classes = self._classes(case, image)
        lacks = {first.index: self._missing(scores.get(first.index, {}), metrics) for first, _ in classes}
        watch.expect([(method, names) for lack in lacks.values() for method, names in lack.items()])
        return [
            self._measure_class(
                image, first, regions, lacks[first.index], scores.get(first.index, {}), seed, watch
            )
            for first, regions in classes
        ]

    def _classes(
        self, case: Case, image: NDArray[np.uint8]
    ) -> Collection[tuple[Explanation, Sequence[Region]]]:
        """Return an explanation of each class, and its boxes: two targets may name the same class."""
        found: dict[int, tuple[Explanation, list[Region]]] = {}
        for target, regions in self._targets(case, image.shape).items():
            first = self._explainer.explain(image, target, layer=self._plan.layer)
            found.setdefault(first.index, (first, []))[1].extend(regions)
        return found.values()

    def _targets(self, case: Case, shape: Sequence[int]) -> dict[int, list[Region]]:
        """Return the boxes of each target that the boxes name: of the predicted one where they name none."""
        found: dict[int, list[Region]] = {}
        for _, region, label in case.annotations:
            if region.x0 >= shape[1] or region.y0 >= shape[0] or region.x1 <= 0 or region.y1 <= 0:
                raise BoxesError(
                    f"{case.path} has {shape[1]} x {shape[0]} pixels, and a box is outside: {tuple(region)}"
                )
            found.setdefault(self._resolve(label), []).append(region)
        return found or {-1: []}

    def _resolve(self, label: str | int | None) -> int:
        return resolve_target(label, self._explainer.manifest.labels, self._network.num_classes)

    def _measure_class(
        self,
        image: NDArray[np.uint8],
        first: Explanation,
        regions: Sequence[Region],
        lacks: Mapping[str, Sequence[str]],
        before: Scores,
        seed: list[int],
        watch: _Watch,
    ) -> Measured:
        """Return the measurements of a class, of which there is an explanation; some methods lack some."""
        tensor = self._network.prepare(Picture(image, image.shape[:2]))[0]

        def predict(images: NDArray[np.float32]) -> NDArray[Any]:
            watch.count(len(images))
            return self._network.scores(images)[:, first.index]

        def explain(method: str) -> Explanation:
            if method == CONTROL:
                generator = np.random.default_rng(seed)
                noise = tuple(generator.random(cam.shape, np.float32) for cam in first.cams)
                return replace(first, method=CONTROL, cams=noise)
            if method == first.method:
                return replace(first)  # the heatmap goes with the copy
            layer = self._plan.layer
            return self._explainer.explain(image, first.index, method, layer, progress=watch.explain)

        found = dict(before)
        # One by one: what an explanation holds of a large picture is large too.
        for method, names in lacks.items():
            watch.begin(method)
            new = measure(explain(method), tensor, predict, regions, names, seed)
            found[method] = {**found.get(method, {}), **new}
        return Measured(first.index, first.label, found)


class _Watch:
    """Looks after a picture's measurements: it ends them where they are stopped, and says how far they are.

    Parameters
    ----------
    stopped
        Set where they are to end.
    progress
        Called with how much of them is done, about.
    costs
        Predictions that a method's map takes, of methods that take many: learnt from its first.
    """

    def __init__(self, stopped: Event, progress: Callable[[float], None], costs: dict[str, int]) -> None:
        self._stopped, self._progress, self._costs = stopped, progress, costs
        self._expected: Sequence[tuple[str, Sequence[str]]] = ()
        self._method = ""
        self._done = self._explained = 0

    def expect(self, maps: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Say which maps will be made, by their methods, and what is measured of each."""
        self._expected = maps

    def begin(self, method: str) -> None:
        """Say that a map is begun."""
        self._method, self._explained = method, 0
        self.count(0)

    def explain(self, done: int, total: int) -> None:
        """Say how many predictions are made of those that a map takes."""
        self._costs[self._method] = total
        if done < self._explained:  # Score-CAM at another layer
            self._explained = 0
        self.count(done - self._explained)
        self._explained = done

    def count(self, predictions: int) -> None:
        """Say that so many predictions are made.

        Raises
        ------
        KeyboardInterrupt
            They aren't to be.
        """
        if self._stopped.is_set():
            raise KeyboardInterrupt
        self._done += predictions
        expected = sum(
            self._costs.get(method, 0) + sum(METRICS[name].predictions for name in names)
            for method, names in self._expected
        )
        self._progress(self._done / max(expected, 1))


def measure(
    explanation: Explanation,
    tensor: NDArray[np.float32],
    predict: Predict,
    regions: Sequence[Region],
    metrics: Sequence[str],
    seed: Sequence[int],
) -> dict[str, float]:
    """Return a map's metrics.

    Parameters
    ----------
    explanation
        The map.
    tensor
        The network's input, [channels, height, width].
    predict
        Returns probabilities of the explained class.
    regions
        The boxes; some, where a metric needs them.
    metrics
        Keys of `onnxplain.metrics.METRICS`.
    seed
        Of ROAD's noise, the same for all methods.
    """
    heat = heatmap(explanation.cams, (tensor.shape[1], tensor.shape[2]))
    found: dict[str, float] = {}
    for metric in metrics:
        if metric == "road":
            found[metric] = road(predict, tensor, heat, seed=seed)
        elif metric == "insertion":
            found[metric] = insertion(predict, tensor, heat)
        elif metric == "deletion":
            found[metric] = deletion(predict, tensor, heat)
        elif metric in ("drop", "increase") and metric not in found:
            found["drop"], found["increase"] = confidence_drop(predict, tensor, heat)
        elif metric == "pointing":
            found[metric] = pointing_game(explanation.heatmap, regions)
        elif metric == "energy":
            found[metric] = energy_in_boxes(explanation.heatmap, regions)
        elif metric == "iou":
            found[metric] = box_overlap(explanation.boxes(0.2), regions)
    return {metric: found[metric] for metric in metrics}


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures, and its 95 % interval; None of a single picture."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Summary:
    """How a method did by a metric.

    Parameters
    ----------
    pictures
        How many there are.
    value
        The mean over them.
    difference
        The mean of what it has more than the control, picture by picture; None for the control itself.
    """

    method: str
    metric: str
    pictures: int
    value: Estimate
    difference: Estimate | None

    @property
    def verdict(self) -> str:
        """Whether the method is better than noise: where the difference's interval leaves 0 out."""
        if self.difference is None:
            return "control"
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return "no telling"
        return "better" if (low > 0) == METRICS[self.metric].more_is_better else "worse"


def summarise(outcomes: Sequence[Outcome], plan: Plan) -> list[Summary]:
    """Return how each method did by each metric, the best first.

    Of a picture of several classes the mean counts: what is drawn again is pictures.
    """
    found = []
    for metric in plan.metrics:
        control = _by_picture(outcomes, CONTROL, metric)
        if not len(control):
            continue
        rows = []
        for method in plan.with_control:
            values = _by_picture(outcomes, method, metric)
            difference = None if method == CONTROL else bootstrap(values - control, plan.seed)
            rows.append(Summary(method, metric, len(values), bootstrap(values, plan.seed), difference))
        sign = -1 if METRICS[metric].more_is_better else 1
        found += sorted(rows, key=lambda row: sign * row.value.mean)
    return found


def bootstrap(values: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean and its 95 % bootstrap interval: the middle of the means of resamples.

    Parameters
    ----------
    values
        One a picture.
    seed
        Of the resamples. They are the same for all methods of as many pictures.
    resamples
        How often as many pictures are drawn, with replacement.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, None, None)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def _by_picture(outcomes: Sequence[Outcome], method: str, metric: str) -> NDArray[np.float64]:
    """Return a metric of each picture that has it, in the order of the outcomes."""
    found = [
        [one.scores[method][metric] for one in outcome.classes if metric in one.scores[method]]
        for outcome in outcomes
    ]
    return np.array([np.mean(values) for values in found if values])
