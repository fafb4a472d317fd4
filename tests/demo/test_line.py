import asyncio
import threading
import time

import pytest

from mmdora.demo.line import Line
from mmdora.errors import MmdoraError


def steps(log, name, count=3, wait=0.02):
    try:
        for number in range(count):
            time.sleep(wait)
            log.append((name, number))
            yield f"{name}{number}"
    finally:
        log.append((name, "closed"))


async def collect(line, log, name, stop=None, **kwargs):
    return [state async for state in line.run(lambda: steps(log, name, **kwargs), lambda n: n, stop)]


def test_one_after_the_other_in_the_order_they_came():
    async def main():
        line, log = Line(3), []
        collected = await asyncio.gather(*(collect(line, log, name) for name in "abc"))
        return collected, log, len(line)

    (a, b, c), log, left = asyncio.run(main())
    assert a == ["a0", "a1", "a2"] and left == 0
    assert b == [1, "b0", "b1", "b2"] and c == [2, 1, "c0", "c1", "c2"]
    assert [name for name, _ in log] == sorted(name for name, _ in log)


def test_a_full_queue_says_so_at_once():
    async def main():
        line, log = Line(2), []
        running = [asyncio.ensure_future(collect(line, log, name, wait=0.1)) for name in "ab"]
        await asyncio.sleep(0.05)
        with pytest.raises(MmdoraError, match="Busy: 2 questions"):
            await collect(line, log, "c")
        assert len(line) == 2, "it was told only when there was place"
        await asyncio.gather(*running)
        return await collect(line, log, "d")

    assert asyncio.run(main()) == ["d0", "d1", "d2"]


def test_a_position_is_told_again_and_again(monkeypatch):
    monkeypatch.setattr("mmdora.demo.line.HEARTBEAT", 0.1)

    async def main():
        line, log = Line(2), []
        return (await asyncio.gather(*(collect(line, log, name, wait=0.2) for name in "ab")))[1]

    assert asyncio.run(main()).count(1) >= 3


@pytest.mark.parametrize("who", ["running", "waiting"])
def test_being_cancelled_makes_place(who):
    async def main():
        line, log = Line(2), []
        tasks = [asyncio.ensure_future(collect(line, log, name, count=100, wait=0.05)) for name in "ab"]
        await asyncio.sleep(0.12)
        gone, stays = tasks if who == "running" else reversed(tasks)
        begun = time.monotonic()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert time.monotonic() - begun < 2 and len(line) == 1
        await asyncio.sleep(0.5)
        stays.cancel()
        await asyncio.gather(stays, return_exceptions=True)
        return log, len(line)

    log, left = asyncio.run(main())
    assert left == 0 and ("a", "closed") in log
    assert (("b", 0) in log) == (who == "running")


def test_whoever_stops_while_waiting_does_not_start():
    async def main():
        line, log, stop = Line(2), [], threading.Event()
        first = asyncio.ensure_future(collect(line, log, "a", wait=0.1))
        second = asyncio.ensure_future(collect(line, log, "b", stop))
        await asyncio.sleep(0.05)
        stop.set()
        assert await second == [1] and len(line) == 1
        await first
        return log

    assert "b" not in {name for name, _ in asyncio.run(main())}
