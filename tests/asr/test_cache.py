"""Which models stay in memory, and for whom."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.asr import PatientLoader
from siprec_asr.cache import Limits, ModelCache
from siprec_asr.errors import Refused
from siprec_asr.metrics import Metrics


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Room:
    """A cache with everything that it is given."""

    def __init__(self, size: int = 2, ttl: float = 0, memory: int = 0) -> None:
        self.loader = PatientLoader()
        self.metrics = Metrics()
        self.clock = Clock()
        self.cache = ModelCache(self.loader, Limits(size, ttl, memory), self.metrics, self.clock)

    def use(self, *names: str) -> None:
        for name in names:
            self.clock.now += 1
            with self.cache.lease(name, "test"):
                pass

    def names(self) -> list[str]:
        return [one.name for one in self.cache.loaded()]

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"siprec_asr_{name}", labels)


def test_a_model_is_loaded_once_for_all_who_ask_at_the_same_time() -> None:
    room = Room()
    room.loader.may_load.clear()
    together = threading.Barrier(5)

    def lease() -> int:
        together.wait(5)
        with room.cache.lease("base", "test") as engine:
            return id(engine)

    with ThreadPoolExecutor(4) as threads:
        leases = [threads.submit(lease) for _ in range(4)]
        together.wait(5)
        room.loader.may_load.set()
        engines = {one.result(10) for one in leases}

    assert len(engines) == len(room.loader.engines) == 1
    assert room.value("cache_lookups_total", result="hit") == 3
    assert room.value("model_loads_total", result="loaded") == 1


def test_the_longest_unused_makes_room() -> None:
    room = Room(size=2)

    room.use("base", "small", "base", "medium")

    assert room.names() == ["base", "medium"]
    assert [one.closed for one in room.loader.engines] == [False, True, False]
    assert room.value("models_dropped_total", reason="room") == 1
    assert room.value("models_loaded") == 2


def test_who_uses_a_model_keeps_it_in() -> None:
    room = Room(size=2)
    with room.cache.lease("base", "stream 1"), room.cache.lease("small", "stream 2"):
        with pytest.raises(Refused) as told:
            room.use("medium")

        assert (told.value.status, told.value.code) == (503, "no_room")
        assert told.value.retry_after
        assert [one.owners for one in room.cache.loaded()] == [("stream 1",), ("stream 2",)]

    room.use("medium")
    assert "medium" in room.names()


def test_memory_is_a_limit_too() -> None:
    room = Room(size=9, memory=250)

    room.use("one", "two", "three")
    assert room.names() == ["two", "three"]
    assert room.value("models_memory_bytes") == 200

    room.loader.memory = 251
    with pytest.raises(Refused) as told:
        room.use("four")
    assert (told.value.status, told.value.code) == (507, "model_too_large")
    assert room.names() == ["two", "three"]


def test_what_nobody_uses_for_the_ttl_is_dropped() -> None:
    room = Room(ttl=60)
    with room.cache.lease("held", "stream 1"):
        room.use("base")
        room.clock.now += 61
        room.cache.sweep()

        assert room.names() == ["held"]
        assert room.value("models_dropped_total", reason="unused") == 1


def test_a_load_that_fails_is_told_to_all_and_tried_again_by_the_next() -> None:
    room = Room()
    room.loader.failure = Refused(503, "model_failed", "no memory left on the device")
    with pytest.raises(Refused, match="no memory"):
        room.use("base")
    assert room.names() == []
    assert room.value("model_loads_total", result="refused") == 1

    room.loader.failure = None
    room.use("base")
    assert room.names() == ["base"]
    assert room.value("models_memory_bytes") == 100


def test_unload_leaves_a_model_that_is_used() -> None:
    room = Room()
    with room.cache.lease("base", "stream 1"):
        with pytest.raises(Refused, match="stream 1") as told:
            room.cache.unload("base")
        assert told.value.status == 409

    room.cache.unload("base")
    assert room.names() == []
    with pytest.raises(Refused) as told:
        room.cache.unload("base")
    assert told.value.status == 404


def test_reload_lets_a_run_end_with_the_old_model() -> None:
    room = Room(size=1)
    with room.cache.lease("base", "run") as old:
        room.cache.reload("base")

        with room.cache.lease("base", "next") as new:
            assert new is not old
        assert not room.loader.engines[0].closed

    assert [one.closed for one in room.loader.engines] == [True, False]
    assert room.value("models_memory_bytes") == 100


def test_a_reload_that_fails_leaves_the_old_model() -> None:
    room = Room()
    room.use("base")
    room.loader.failure = Refused(503, "model_failed", "half a file")

    with pytest.raises(Refused, match="half a file"):
        room.cache.reload("base")

    with room.cache.lease("base", "test") as engine:
        assert engine is room.loader.engines[0]
    assert room.value("models_memory_bytes") == 100
