import asyncio
import os
import threading
import time

import pytest

from mmdora.demo import upload_cache
from mmdora.demo.upload_cache import STALE, UploadCache


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Nobody waits long for room in these tests."""
    monkeypatch.setattr(upload_cache, "WAIT", 0.2)


def aged(path, seconds):
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def put(folder, number, size=300, age=0.0):
    path = folder / f"{number:03}" / "upload.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    aged(path, age)
    return path


def whole(folder):
    return sorted(path.parent.name for path in folder.rglob("*.png"))


def test_the_oldest_uploads_go(tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "1.png").write_bytes(b"x" * 500)
    cache = UploadCache(tmp_path, files=10, size=1_000)
    for number in range(20):
        put(tmp_path, number, age=100 - number)
        asyncio.run(cache.sweep())
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) <= 1_500
    assert whole(tmp_path) == ["017", "018", "019", "examples"]


def test_the_number_of_files_has_a_cap(tmp_path):
    cache = UploadCache(tmp_path, files=3)
    for number in range(6):
        put(tmp_path, number, age=100 - number)
    asyncio.run(cache.sweep())
    assert whole(tmp_path) == ["003", "004", "005"]


def test_what_arrives_counts_before_it_is_there(tmp_path):
    async def run():
        cache = UploadCache(tmp_path, size=1_000)
        for number in range(3):
            put(tmp_path, number, age=100 - number)
        await cache.sweep()
        first, second, third = object(), object(), object()
        assert await cache.reserve(first, 600)
        assert whole(tmp_path) == ["002"], "room is made before the upload is written"
        assert await cache.reserve(second, 400) and whole(tmp_path) == []
        assert not await cache.reserve(third, 100)
        await cache.release(first)
        assert await cache.reserve(third, 100)

    asyncio.run(run())


def test_what_an_upload_left_half_written_goes(tmp_path):
    async def run():
        cache = UploadCache(tmp_path, size=1_000)
        half = tmp_path / "tmpabc"
        half.write_bytes(b"x" * 900)
        await cache.sweep()
        assert half.exists(), "it may still be arriving"
        aged(half, STALE + 1)
        await cache.sweep()
        assert not half.exists()

    asyncio.run(run())


def test_a_byte_is_counted_once(tmp_path):
    """As a reservation, as a half-written file, or as a whole one; never as two of them."""

    async def run():
        cache = UploadCache(tmp_path, size=1_000)
        newest = put(tmp_path, 1, size=400, age=10)
        request = object()
        assert await cache.reserve(request, 600)
        (tmp_path / "tmpabc").write_bytes(b"x" * 600)
        await cache.sweep()
        assert newest.exists()
        (tmp_path / "tmpabc").rename(put(tmp_path, 2, size=0))
        await cache.release(request)
        assert newest.exists() and (tmp_path / "002" / "upload.png").exists()
        assert await cache.reserve(object(), 600) and not newest.exists()

    asyncio.run(run())


def test_a_file_that_is_moved_during_a_scan_is_met_once(tmp_path, monkeypatch):
    walk = os.walk

    def walk_then_move(folder):
        steps = walk(folder)
        yield next(steps)
        (tmp_path / "tmpabc").rename(tmp_path / "001" / "upload.png")
        yield from steps

    (tmp_path / "001").mkdir()
    (tmp_path / "tmpabc").write_bytes(b"x")
    monkeypatch.setattr(os, "walk", walk_then_move)
    assert [upload.path.name for upload in upload_cache._scan(tmp_path)] == ["upload.png"]


def test_a_folder_that_has_just_become_empty_stays(tmp_path):
    path = put(tmp_path, 1)
    cache = UploadCache(tmp_path / "elsewhere")
    cache.folder, cache.size = tmp_path, 0
    asyncio.run(cache.sweep())
    assert not path.exists() and path.parent.exists()
    aged(path.parent, STALE + 1)
    asyncio.run(cache.sweep())
    assert not path.parent.exists() and tmp_path.exists()


def test_a_file_that_was_uploaded_anew_meanwhile_stays(tmp_path, monkeypatch):
    scan = upload_cache._scan

    def scan_then_upload(folder):
        uploads = scan(folder)
        put(tmp_path, 1)
        return uploads

    path = put(tmp_path, 1, age=100)
    cache = UploadCache(tmp_path / "elsewhere", size=100)
    cache.folder = tmp_path
    monkeypatch.setattr(upload_cache, "_scan", scan_then_upload)
    asyncio.run(cache.sweep())
    assert path.exists()


@pytest.mark.parametrize("sweeps", [1, 8])
def test_no_upload_is_lost_to_a_sweep(tmp_path, sweeps):
    """Uploads come and vanish in the loop, as Gradio writes them, while others sweep."""
    over = threading.Event()

    async def run():
        cache = UploadCache(tmp_path, size=2_000)

        async def upload(number):
            for turn in range(40):
                request = object()
                if await cache.reserve(request, 300):
                    half = tmp_path / f"tmp{number}-{turn}"
                    half.write_bytes(b"x" * 300)
                    await asyncio.sleep(0)
                    folder = tmp_path / f"{number}-{turn % 3}"
                    folder.mkdir(exist_ok=True)
                    half.rename(folder / "upload.png")
                    await cache.release(request)

        async def sweep():
            while not over.is_set():
                await cache.sweep()

        others = [asyncio.create_task(sweep()) for _ in range(sweeps)]
        await asyncio.gather(*(upload(number) for number in range(5)))
        over.set()
        await asyncio.gather(*others)
        await cache.sweep()

    asyncio.run(run())
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 2_000


def test_a_request_waits_for_room(tmp_path, monkeypatch):
    monkeypatch.setattr(upload_cache, "WAIT", 5.0)

    async def requests():
        cache = UploadCache(tmp_path, files=100, size=1000)
        first, second = object(), object()
        assert await cache.reserve(first, 900)
        waiting = asyncio.create_task(cache.reserve(second, 900))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await cache.release(first)
        return await asyncio.wait_for(waiting, 2)

    assert asyncio.run(requests())
