"""Values that many threads ask for at once."""

import threading
import time

import pytest

from app.results.once import Once


def test_what_many_ask_for_at_once_is_computed_once():
    cache: Once[int] = Once()
    begun, computed, given = threading.Barrier(20), [], []

    def slow() -> int:
        computed.append(1)
        time.sleep(0.2)
        return 7

    def ask() -> None:
        begun.wait()
        given.append(cache.get(1, slow))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (computed, given) == ([1], [7] * 20)


def test_an_error_goes_to_all_who_wait_and_is_tried_again_later():
    cache: Once[int] = Once()
    with pytest.raises(ZeroDivisionError):
        cache.get(1, lambda: 1 // 0)
    assert cache.get(1, lambda: 5) == 5
    resting: Once[int] = Once(error_rest=0.2)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            resting.get(1, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        resting.get(1, lambda: 5)
    time.sleep(0.25)
    assert resting.get(1, lambda: 5) == 5
