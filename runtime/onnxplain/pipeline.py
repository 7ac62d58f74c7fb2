"""A function over a stream, on several threads, with the answers in the stream's order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_order(
    function: Callable[[Item], Answer], items: Iterable[Item], stopped: Event | None = None
) -> Generator[Future[Answer], None, None]:
    """Call a function for each item, on several threads; yield the finished calls in the items' order.

    Items are taken as there is room: at most two a thread are under way or wait to be yielded, so the items
    may be endless. OpenCV, numpy and onnxruntime let other threads run while they compute, so pictures are
    decoded while the network runs on others. What fails is raised by the call's `result()`, and the others go
    on. An error of the items' own comes after the calls for the items before it, an interruption at once. No
    thread outlives the iterator.

    Parameters
    ----------
    function
        Called on several threads at once.
    items
        Taken by the thread that iterates.
    stopped
        Set when the iterator ends, is closed or interrupted. It then waits for the calls under way, of which
        long ones had better end.
    """
    workers = cores() + 1  # one more, for the moments at which two wait for Python's lock
    calls: deque[Future[Answer]] = deque()
    errors: list[Exception] = []
    pool = ThreadPoolExecutor(workers, thread_name_prefix="onnxplain")
    try:
        for item in _until_error(items, errors):
            calls.append(pool.submit(function, item))
            # What is done is yielded at once: the next item of a camera may be long in coming.
            while calls and (len(calls) >= 2 * workers or calls[0].done()):
                yield _finished(calls.popleft())
        while calls:
            yield _finished(calls.popleft())
        if errors:
            raise errors.pop()
    finally:
        if stopped:
            stopped.set()
        pool.shutdown(cancel_futures=True)


def _until_error(items: Iterable[Item], errors: list[Exception]) -> Generator[Item, None, None]:
    """Yield items; where taking one fails, keep the error and end."""
    try:
        yield from items
    except Exception as error:
        errors.append(error)


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def _finished(call: Future[Answer]) -> Future[Answer]:
    call.exception()  # waits
    return call
