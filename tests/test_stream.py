"""Streams of pictures: in order, a few at a time, and nothing left running."""

from __future__ import annotations

import itertools
import threading
import time

import cv2
import numpy as np
import pytest

from onnxplain import Explainer, ImageError, MethodError, TargetError
from onnxplain.pipeline import cores, in_order
from tiny_explainer import tiny_explainer

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (20 + n, 40, 3), dtype=np.uint8) for n in range(30)]
MOST = 2 * (cores() + 1)


@pytest.fixture(scope="module")
def explainer():
    return Explainer(tiny_explainer(), threads=1)


def running():
    return [thread for thread in threading.enumerate() if thread.name.startswith("onnxplain")]


def test_a_stream_says_what_explain_says_in_order(explainer):
    for target, method in ((None, "gradcam"), ("class 2", "cam"), (-2, "layercam")):
        found = list(explainer.stream(IMAGES, target, method))
        assert len(found) == len(IMAGES)
        for one, image in zip(found, IMAGES, strict=True):
            alone = explainer.explain(image, target, method)
            assert (one.index, one.label, one.logit, one.method) == (
                alone.index,
                alone.label,
                alone.logit,
                method,
            )
            assert (one.cam == alone.cam).all()
            assert (one.image == image).all()
    assert list(explainer.stream([])) == []


def test_pictures_of_all_kinds(explainer, tmp_path):
    data = cv2.imencode(".png", IMAGES[0][..., ::-1])[1].tobytes()
    (tmp_path / "a.png").write_bytes(data)
    for one in explainer.stream([data, tmp_path / "a.png", str(tmp_path / "a.png"), IMAGES[0]], 1):
        assert (one.image == IMAGES[0]).all()


def test_an_endless_stream_is_taken_as_there_is_room(explainer):
    taken = itertools.count()
    stream = explainer.stream(IMAGES[next(taken) % 30] for _ in itertools.repeat(None))
    assert not running()
    for number in range(50):
        assert (next(stream).image == IMAGES[number % 30]).all()
        so_far = int(repr(taken).removeprefix("count(").removesuffix(")"))
        assert number + 1 <= so_far <= number + MOST + 1
    assert running()
    stream.close()
    assert not running()


def test_a_frame_may_be_filled_again_once_the_next_is_asked_for(explainer):
    frame = np.empty_like(IMAGES[0])

    def camera():
        for level in range(40):
            frame[:] = level
            yield frame

    for level, one in enumerate(explainer.stream(camera(), 0)):
        assert (one.image == level).all()


def test_a_bad_picture_is_raised_at_its_turn(explainer):
    stream = explainer.stream([*IMAGES[:5], b"no picture", *IMAGES[5:]])
    assert [one.image.shape for one in itertools.islice(stream, 5)] == [image.shape for image in IMAGES[:5]]
    with pytest.raises(ImageError, match="not a picture"):
        next(stream)
    assert not running()


def test_wrong_calls(explainer):
    with pytest.raises(TargetError):
        next(explainer.stream(IMAGES, 4))
    with pytest.raises(MethodError):
        next(explainer.stream(IMAGES, method="guess"))
    with pytest.raises(TypeError, match="threads"):
        Explainer(session=explainer._session, threads=1)


def broken(count, error):
    """Pictures, and then an error."""
    for number in range(count):
        yield IMAGES[number % len(IMAGES)]
    raise error


@pytest.mark.parametrize("count", [0, 1, 3, MOST - 1, MOST, 50])
@pytest.mark.parametrize("threads", [1, None])
def test_an_error_of_the_iterable_comes_after_all_that_was_before_it(count, threads):
    error = OSError("unplugged")
    stream = Explainer(tiny_explainer(), threads=threads).stream(broken(count, error))
    found = []
    with pytest.raises(OSError, match="unplugged") as caught:
        found.extend(stream)
    assert [one.image.shape for one in found] == [IMAGES[n % len(IMAGES)].shape for n in range(count)]
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert [entry.name for entry in caught.traceback][-1] == "broken"
    assert not running()
    assert list(stream) == []


def test_a_bad_picture_before_an_error_of_the_iterable_comes_first(explainer):
    def camera():
        yield from [*IMAGES[:2], b"no picture", *IMAGES[:2]]
        raise OSError("unplugged")

    stream = explainer.stream(camera())
    assert [one.image.shape for one in itertools.islice(stream, 2)] == [image.shape for image in IMAGES[:2]]
    with pytest.raises(ImageError, match="not a picture"):
        next(stream)


def test_who_stops_before_an_error_of_the_iterable_never_sees_it(explainer):
    stream = explainer.stream(broken(20, OSError("unplugged")))
    assert len(list(itertools.islice(stream, 19))) == 19
    stream.close()
    assert not running()


def test_an_interruption_does_not_wait(explainer):
    stream = explainer.stream(broken(2, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert not running()


def test_what_was_not_taken_is_left_to_its_owner(explainer):
    frames = iter(IMAGES[number % 30] for number in range(100))
    stream = explainer.stream(frames)
    next(stream)
    stream.close()
    assert next(frames).ndim == 3


def test_what_is_done_does_not_wait_for_the_next():
    """A camera's frames come slowly: each is answered before the next but one."""
    gate = threading.Semaphore(2)

    def items():
        for number in range(6):
            assert gate.acquire(timeout=10)
            yield number
            time.sleep(0.2)  # by then it is done

    for number, call in enumerate(in_order(lambda item: item, items())):
        assert call.result() == number
        gate.release()


def test_other_calls_go_on_where_one_fails():
    def inverse(number):
        return 1 / number

    calls = list(in_order(inverse, [1, 0, 2]))
    assert calls[0].result() == 1
    assert isinstance(calls[1].exception(), ZeroDivisionError)
    assert calls[2].result() == 0.5


def test_no_more_than_a_few_answers_are_held():
    """Answers that were yielded and let go are gone: memory doesn't grow with the stream."""
    alive = 0
    most = 0
    lock = threading.Lock()

    class Answer:
        def __init__(self):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1

    for call in in_order(lambda _: Answer(), range(300)):
        call.result()
    assert most <= MOST + 2
