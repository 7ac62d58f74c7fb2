"""The float64 evaluation's products, in forked processes and on several threads at once."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from threading import Event, Thread

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from onnxplain_export import reference_products
from onnxplain_export.reference_products import each, on_one_thread, product

# So many numbers go to the pool's threads.
LARGE = np.ones((8, 64, 64))

forks = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="the system forks no processes"
)


def threads_of_blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def set_threads_of_blas(count: int) -> None:
    """Set them from a thread that ends: threadpoolctl lets no other thread set them as long as it lives."""
    thread = Thread(target=threadpool_limits, kwargs={"limits": count, "user_api": "blas"})
    thread.start()
    thread.join()


@pytest.fixture
def two_threads_of_blas() -> Iterator[None]:
    before = threads_of_blas()
    if not before:
        pytest.skip("threadpoolctl doesn't know numpy's BLAS")
    reference_products._libraries.cache_clear()  # other tests may have loaded more libraries since
    set_threads_of_blas(2)
    yield
    set_threads_of_blas(max(before))


def product_on_one_thread() -> None:
    with on_one_thread():
        product(LARGE, LARGE)


def exit_code_of_a_forked_process() -> int | None:
    """Return the exit code of one that multiplies; None if it doesn't end."""
    child = multiprocessing.get_context("fork").Process(target=product_on_one_thread)
    child.start()
    child.join(timeout=20)
    code = child.exitcode
    if code is None:
        child.kill()
        child.join()
    return code


@forks
def test_a_forked_process_multiplies() -> None:
    """The threads of its parent's pool aren't in it."""
    each(lambda _: time.sleep(0.01), np.ones((64, 1000)))  # so many at once that it starts them all
    assert exit_code_of_a_forked_process() == 0


@forks
def test_a_process_forked_in_the_middle_of_an_evaluation_multiplies() -> None:
    started, ended = Event(), Event()

    def evaluate() -> None:
        with on_one_thread():
            started.set()
            ended.wait(60)

    thread = Thread(target=evaluate)
    thread.start()
    assert started.wait(20)
    code = exit_code_of_a_forked_process()
    ended.set()
    thread.join()
    assert code == 0


@pytest.mark.usefixtures("two_threads_of_blas")
def test_blas_gets_its_threads_back_from_several_evaluations() -> None:
    """The first that starts is the first to end; the other one may have to wait for it."""
    first_in, second_in = Event(), Event()
    found: list[set[int]] = []

    def first() -> None:
        with on_one_thread():
            first_in.set()
            second_in.wait(0.5)

    def second() -> None:
        first_in.wait(20)
        with on_one_thread():
            second_in.set()
            threads[0].join(20)
            found.append(threads_of_blas())

    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{1}]
    assert threads_of_blas() == {2}
