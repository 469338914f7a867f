"""A database on a disk that has become full: it opens all the same, by room that was set aside."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from harness.disk import fill, small_disk
from siprec_bridge.store import Database, StoreError
from siprec_bridge.store.reserve import OCTETS, Reserve


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 160 MB."""
    with small_disk(tmp_path / "disk", "160m") as folder:
        yield folder


def database(disk: Path) -> Database:
    return Database(f"sqlite:///{disk / 'a.db'}")


async def test_a_full_disk_keeps_nobody_from_deleting_what_is_on_it(disk: Path) -> None:
    store = database(disk)
    await store.start()
    await store.write(lambda here: here.execute(sa.text("CREATE TABLE old (what)")))
    await store.keep_reserve()
    await store.stop()
    set_aside = (disk / "a.db.reserve").stat().st_blocks * 512
    others = fill(disk)

    store = database(disk)
    await store.start()
    try:
        for number in range(300):  # more than its log has room for at once
            await store.write(
                lambda here, n=number: here.execute(sa.text(f"INSERT INTO old VALUES ({n})"))  # type: ignore[misc]
            )
        await store.write(lambda here: here.execute(sa.text("DELETE FROM old")))
        await store.keep_reserve()  # there is no plenty yet
        spent = not (disk / "a.db.reserve").exists()
        others.unlink()
        await store.keep_reserve()
    finally:
        await store.stop()

    assert set_aside >= OCTETS
    assert spent
    assert sorted(one.name for one in disk.iterdir()) == ["a.db", "a.db.lock", "a.db.reserve"]


async def test_where_nothing_is_set_aside_the_cause_is_told(disk: Path) -> None:
    store = database(disk)
    await store.start()
    await store.stop()
    fill(disk)

    with pytest.raises(StoreError, match="disk is full"):
        await database(disk).start()


def test_a_small_disk_is_left_to_others_and_a_reserve_is_spent_in_need_only(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", f"{15 * OCTETS}") as small:
        Reserve(small / "a.db").keep()
        assert not os.listdir(small)

    reserve = Reserve(tmp_path / "a.db")
    reserve.keep()
    assert not reserve.spend()
    assert (tmp_path / "a.db.reserve").stat().st_size == OCTETS
