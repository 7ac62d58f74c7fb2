"""Products of matrices for the float64 evaluation: image by image on threads, each on one thread of BLAS.

BLAS's own threads wait for each other in a loop. Where anything else runs on the machine they take several
times the processor time of the product itself, and longer than one thread alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from onnxplain.pipeline import cores

Array = npt.NDArray[Any]

# To wake a thread takes longer than to multiply so few numbers.
_SMALL = 10_000


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores())


_lock = RLock()


def _forget_threads() -> None:
    """Forget the parent's threads, which a forked process has not: the pool's, and one with the lock."""
    global _lock
    _lock = RLock()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_threads)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Keep BLAS to the thread that calls it, as long as the context lasts; another thread waits until then.

    The limit is the whole process's. Of two threads that each set and restore it, the last one restores what
    the other has set, and threadpoolctl lets only one thread set it as long as that lives.
    """
    with _lock, _libraries().limit(limits=1, user_api="blas"):
        yield


def each(function: Callable[..., object], *arrays: Array) -> None:
    """Call a function with the items of arrays along their first axis, of large ones on threads.

    Numbers may overflow there, as they do in networks, and nobody is warned.
    """

    def call(*items: Array) -> None:
        with np.errstate(all="ignore"):  # a thread has its own
            function(*items)

    list((map if arrays[0].size < _SMALL else _pool().map)(call, *arrays))


def product(a: Array, b: Array) -> Array:
    """Return the product of matrices as `numpy.matmul` does."""
    if a.ndim < 2 or b.ndim < 2 or max(a.ndim, b.ndim) == 2:
        result: Array = np.matmul(a, b)
        return result
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    result = np.empty((*leading, a.shape[-2], b.shape[-1]), np.result_type(a, b))

    def multiply(out: Array, one: Array, other: Array) -> None:
        np.matmul(one, other, out=out)

    each(multiply, result, *(np.broadcast_to(factor, (*leading, *factor.shape[-2:])) for factor in (a, b)))
    return result
