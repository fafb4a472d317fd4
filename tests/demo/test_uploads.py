"""What uploads are tried with: too much, in chunks, many at once, broken off, of a form that Gradio forgets."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from demo_page import png, serving

from mmdora.demo import guard, server
from mmdora.demo.guard import MAX_BODY, MAX_REQUEST
from mmdora.demo.upload_cache import PARTS, UploadCache

API = "gradio_api/"


@pytest.fixture(scope="module")
def page():
    with serving() as served:
        yield served


@pytest.fixture
def small_cache(monkeypatch):
    """Pages that are served after this hold 3 MB and 40 files of uploads."""

    def small(folder):
        return UploadCache(folder, files=40, size=3_000_000)

    monkeypatch.setattr(server, "UploadCache", small)
    monkeypatch.setattr(guard, "MAX_REQUEST", 1_000_000)


def test_one_request_is_capped(page):
    before = page.stored()
    nine = os.urandom(9_000_000)
    assert page.upload(*[nine] * 3).status_code == 413
    assert page.stored() == before
    assert page.upload(*[b"x"] * (PARTS + 1)).status_code == 413
    assert page.upload(*map(png, range(PARTS))).status_code == 200


def in_chunks(boundary, *contents, name="files"):
    for number, content in enumerate(contents):
        yield (
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="{number}.png"\r\n\r\n'
        ).encode()
        yield content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


@pytest.mark.parametrize("boundary", ["x", "--", "A" * 70])
def test_a_body_in_chunks_is_capped(page, boundary):
    def send(*contents):
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return page.post(API + "upload", content=in_chunks(boundary, *contents), headers=headers).status_code

    before = page.stored()[0]
    five = b"\0" * 5_000_000
    assert send(*[five] * 5) == 413
    assert send(*[b"1"] * (PARTS + 1)) == 413
    assert page.stored()[0] == before, "what was written is removed"
    assert send(five) == 200


def test_a_body_that_is_no_upload_is_capped(page):
    for path in ("queue/join", "call/compare", "run/compare", "component_server", "cancel", "reset", "vibe-edit",
                 "process_recording", "stream/x"):  # fmt: skip
        big = b'{"data": ["' + b"x" * MAX_BODY + b'"]}'
        for body in (big, iter([big[:100], big[100:]])):
            answer = page.post(API + path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (413, 404, 400, 422), path
            assert b"xxx" not in answer.content
    assert page.post("login", content=b"username=" + b"x" * MAX_BODY).status_code == 413


def test_a_body_that_drips_ends(page, monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE", 0.5)
    before = page.stored()
    for path, kind in ((API + "upload", "multipart/form-data; boundary=x"), (API + "call/compare", "application/json")):
        head = f"POST /{path} HTTP/1.1\r\nhost: {page.netloc}\r\ncontent-type: {kind}\r\ncontent-length: 1000\r\n\r\n"
        told = page.raw(head.encode() + b'--x\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\nab')
        assert " 400 " in told or " 408 " in told
    assert page.stored() == before


def test_an_upload_that_breaks_off_leaves_nothing(page):
    before = page.stored()
    for _ in range(5):
        with page.connect() as connection:
            connection.sendall(
                f"POST /{API}upload HTTP/1.1\r\nhost: {page.netloc}\r\ncontent-length: 100000\r\n"
                "content-type: multipart/form-data; boundary=x\r\n\r\n--x\r\ncontent-disposition: form-data;"
                ' name="files"; filename="a"\r\n\r\n'.encode()
                + b"a" * 50_000
            )
    assert page.upload(png(1)).status_code == 200  # A later upload is answered after the others' ends were seen.
    for _ in range(200):
        if page.stored()[1] <= before[1] + 1:
            break
        asyncio.run(asyncio.sleep(0.05))
    assert page.stored()[1] <= before[1] + 1


@contextmanager
def peak(page):
    """Watches the folder of uploads; gives a list whose first element is the most bytes that it held."""
    most, over = [0], threading.Event()

    def watch():
        while not over.wait(0.01):
            most[0] = max(most[0], page.stored()[0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def test_the_cache_stays_below_its_cap_and_no_upload_is_lost(small_cache):
    with serving() as page, peak(page) as most, ThreadPoolExecutor(8) as pool:
        examples, answered = page.stored()[0], []

        def send(number):
            answer = page.upload(*(bytes([number, n]) * 50_000 for n in range(3)))
            assert answer.status_code == 200
            answered.append(answer.json())

        list(pool.map(send, range(60)))
        assert most[0] - examples <= 3_000_000
        # The cache holds ten of these uploads, and every byte of it is counted once.
        assert [os.path.getsize(path) for paths in answered[-8:] for path in paths] == [100_000] * 24


@pytest.mark.parametrize("headers", [
    b'name="something"; filename="a"', b'name="something"', b'filename="a"', b'name="Files"; filename="a"',
    b'name="files"; filename="a"\r\ncontent-disposition: form-data; name="x"; filename="a"',
])  # fmt: skip
def test_parts_that_gradio_would_forget_are_refused(page, headers):
    before = page.stored()
    good = b'--b\r\ncontent-disposition: form-data; name="files"; filename="0"\r\n\r\n0\r\n'
    body = good + b"--b\r\ncontent-disposition: form-data; " + headers + b"\r\n\r\n" + b"a" * 1000 + b"\r\n--b--\r\n"
    for content in (body, (body[i : i + 1] for i in range(len(body)))):
        answer = page.post(API + "upload", content=content, headers={"content-type": "multipart/form-data; boundary=b"})
        assert answer.status_code == 400
    assert page.stored() == before


def test_more_at_once_than_the_cache_holds_is_told(small_cache):
    with serving() as page:
        head = f"POST /{API}upload HTTP/1.1\r\nhost: {page.netloc}\r\ncontent-length: 900000\r\n\r\n".encode()
        waiting = [page.connect() for _ in range(3)]
        for connection in waiting:
            connection.sendall(head.replace(b"\r\n\r\n", b"\r\ncontent-type: multipart/form-data; boundary=x\r\n\r\n"))
        for _ in range(200):
            answer = page.upload(b"x" * 500_000)
            if answer.status_code == 503:
                break
        assert answer.status_code == 503 and answer.headers["retry-after"]
        for connection in waiting:
            connection.close()
        for _ in range(200):
            if (answer := page.upload(b"x" * 500_000)).status_code == 200:
                break
        assert answer.status_code == 200


def test_an_upload_has_room_for_the_pictures_of_a_question():
    assert MAX_REQUEST > 2 * 10**7
