"""Rows on disk: damage, kills, and several processes at once."""

import os
import pickle
import resource
import signal
import time

import pytest
import torch

from mmdora.errors import MmdoraError
from mmdora.models.vlbart.mapped_rows import ENTRY, INDEX, ROWS, MappedRows

SHAPE = (3, 5)


def key(number):
    return number.to_bytes(32, "big")


def row(number):
    return torch.full(SHAPE, float(number)) + torch.arange(15.0).reshape(SHAPE) / 64


def opened(folder, dtype=torch.float32):
    return MappedRows(folder, SHAPE, dtype, setting="data.feature_cache")


def has(rows, numbers):
    """Whether the rows of all these numbers are there, bit for bit."""
    found = [rows.get(key(number)) for number in numbers]
    return all(f is not None and torch.equal(f, row(n)) for f, n in zip(found, numbers, strict=True))


def forked(work):
    """`work()` in a process of its own; returns its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_put_is_got_bit_for_bit_also_after_reopening_and_pickling(tmp_path, dtype):
    rows = opened(tmp_path, dtype)
    assert rows.get(key(1)) is None and key(1) not in rows
    rows.put({key(i): row(i).to(dtype) for i in range(4)})
    rows.put({key(9): row(9).to(dtype).T.contiguous().T})
    for reader in (rows, opened(tmp_path, dtype), pickle.loads(pickle.dumps(rows))):
        assert len(reader) == 5
        for i in (0, 1, 2, 3, 9):
            found = reader.get(key(i))
            assert found is not None and found.dtype == dtype and torch.equal(found, row(i).to(dtype))
    assert (tmp_path / ROWS).stat().st_size == 5 * 15 * dtype.itemsize


def test_a_key_is_written_once(tmp_path):
    rows, other = opened(tmp_path), opened(tmp_path)
    rows.put({key(1): row(1)})
    other.put({key(1): row(2), key(2): row(2)})
    assert has(rows, [1, 2])
    assert (tmp_path / INDEX).stat().st_size == 2 * ENTRY.size


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path, by):
    os.truncate(path, path.stat().st_size - by)


DAMAGE = {
    "a bit of a row": lambda folder: flip(folder / ROWS, 3 * 60 + 7),
    "a bit of a key": lambda folder: flip(folder / INDEX, 3 * ENTRY.size + 5),
    "a bit of a checksum": lambda folder: flip(folder / INDEX, 3 * ENTRY.size + 33),
    "the last row cut short": lambda folder: cut(folder / ROWS, 13),
    "the last entry cut short": lambda folder: cut(folder / INDEX, 13),
    "the last entry cut off": lambda folder: cut(folder / INDEX, ENTRY.size),
    "no rows at all": lambda folder: cut(folder / ROWS, 240),
    "no index at all": lambda folder: cut(folder / INDEX, 4 * ENTRY.size),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("known", [True, False], ids=["open", "reopened"])
def test_damage_is_seen_and_mended_in_place(tmp_path, damage, known):
    rows = opened(tmp_path)
    rows.put({key(i): row(i) for i in range(4)})
    size = (tmp_path / ROWS).stat().st_size
    damage(tmp_path)
    rows = rows if known else opened(tmp_path)
    lost = [i for i in range(4) if rows.get(key(i)) is None]
    assert 3 in lost
    assert has(rows, sorted(set(range(4)) - set(lost)))
    rows.put({key(i): row(i) for i in lost})
    for reader in (rows, opened(tmp_path)):
        assert has(reader, range(4))
    assert (tmp_path / ROWS).stat().st_size == size
    assert (tmp_path / INDEX).stat().st_size == 4 * ENTRY.size


def test_two_processes_write_at_once_and_a_third_reads(tmp_path):
    opened(tmp_path)
    shares = [range(0, 300, 2), range(0, 300, 3)]  # some rows in both

    def write(numbers):
        mine = opened(tmp_path)
        for i in numbers:
            mine.put({key(i): row(i)})

    children = [forked(lambda share=share: write(share)) for share in shares]
    reader, wrong, most = opened(tmp_path), 0, 0
    while children:
        ended = {child: os.waitpid(child, os.WNOHANG) for child in children}
        assert not any(status for _, status in ended.values())
        children = [child for child in children if ended[child][0] == 0]
        found = [(i, reader.get(key(i))) for i in range(0, 300, 5)]
        wrong += sum(value is not None and not torch.equal(value, row(i)) for i, value in found)
        most = max(most, sum(value is not None for _, value in found))
    assert not wrong and most > 0
    wanted = sorted(set(shares[0]) | set(shares[1]))
    assert len(opened(tmp_path)) == len(wanted)
    assert has(reader, wanted)
    assert (tmp_path / INDEX).stat().st_size == len(wanted) * ENTRY.size


@pytest.mark.parametrize("delay", [0.002, 0.01, 0.03])
def test_a_writer_that_is_killed_leaves_what_can_be_read_and_written(tmp_path, delay):
    opened(tmp_path)

    def write():
        mine = opened(tmp_path)
        for i in range(10**6):
            mine.put({key(i): row(i)})

    child = forked(write)
    while (tmp_path / INDEX).stat().st_size == 0:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    rows = opened(tmp_path)
    written = len(rows)
    assert has(rows, range(written))
    rows.put({key(i): row(i) for i in range(written + 3)})
    assert len(opened(tmp_path)) == written + 3
    assert has(rows, [written + 2])


def test_a_kill_between_row_and_entry(tmp_path):
    rows = opened(tmp_path)
    rows.put({key(0): row(0)})

    def write():
        import mmdora.models.vlbart.mapped_rows as module

        real, calls = module._write, []

        def dying(file, data, place):
            calls.append(place)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            real(file, data, place)

        module._write = dying
        opened(tmp_path).put({key(1): row(1)})

    assert exit_code(forked(write)) == -signal.SIGKILL
    assert (tmp_path / ROWS).stat().st_size == 120 and key(1) not in rows  # and its lock is gone
    rows.put({key(2): row(2)})
    assert has(opened(tmp_path), [0, 2]) and has(rows, [0, 2])
    assert (tmp_path / ROWS).stat().st_size == 120


def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path):
    rows = opened(tmp_path)
    rows.put({key(0): row(0)})

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))  # as good as full: writes fail
        with pytest.raises(MmdoraError, match=rf"{tmp_path}: File too large; [\d,]+ bytes are free"):
            rows.put({key(i): row(i) for i in range(1, 9)})

    assert exit_code(forked(write)) == 0
    assert has(opened(tmp_path), [0])
    rows.put({key(i): row(i) for i in range(1, 9)})
    assert has(rows, range(9))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MmdoraError, match=r"data\.feature_cache"):
        opened(tmp_path / "file" / "below")
