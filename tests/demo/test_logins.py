import time

import pytest
from starlette.exceptions import HTTPException

from mmdora.demo import logins
from mmdora.demo.hosts import visitor
from mmdora.demo.logins import MANY, Logins, read_logins
from mmdora.errors import MmdoraError


@pytest.fixture
def attempt():
    """Tries a login from an address; gives right, wrong, or the seconds to wait."""
    known = Logins([("anna", "secret"), ("bert", "hidden")])

    def check(name, password, address="1.2.3.4"):
        visitor.set(address)
        try:
            return "right" if known.check(name, password) else "wrong"
        except HTTPException as error:
            assert error.status_code == 429 and error.headers is not None
            return int(error.headers["retry-after"])

    check.known = known
    return check


def test_an_address_that_fails_waits_and_nobody_else(attempt, monkeypatch):
    assert [attempt("anna", "no") for _ in range(5)] == ["wrong"] * 5
    assert 1 <= attempt("anna", "secret") <= 61
    assert attempt("anna", "secret", "5.6.7.8") == "right", "another address"
    assert attempt("bert", "hidden") == "right", "another account behind the same address"
    clock = time.monotonic
    monkeypatch.setattr(logins.time, "monotonic", lambda: clock() + 61)
    assert [attempt("anna", "secret"), attempt("anna", "no")] == ["right", "wrong"]


def test_a_login_that_succeeds_begins_anew(attempt):
    tries = [attempt("anna", word) for word in [*["no"] * 4, "secret"] * 3]
    assert tries == [*["wrong"] * 4, "right"] * 3


def test_an_account_that_is_guessed_at_from_many_addresses(attempt):
    addresses = [f"10.0.0.{n}" for n in range(100)]
    tries = [attempt("anna", "no", address) for address in addresses for _ in range(5)]
    assert tries.count("wrong") == MANY + 100 - MANY // 5, "each further address has one try"
    assert attempt("anna", "secret", "10.0.1.0") == "right"
    assert attempt("bert", "no", "10.0.1.0") == attempt("bert", "no", "10.0.1.0") == "wrong"


def test_an_address_that_tries_many_accounts(attempt):
    for number in range(MANY):
        assert attempt(f"someone {number}", "no") == "wrong"
    assert attempt("bert", "hidden") == "right", "someone else behind the same address"
    assert attempt("anna", "no") == "wrong" and isinstance(attempt("anna", "secret"), int)


def test_all_addresses_of_one_ipv6_network_are_one_visitors(attempt):
    tries = [attempt("anna", "no", f"2001:db8::{n:x}") for n in range(8)]
    assert tries[:5] == ["wrong"] * 5 and "wrong" not in tries[5:]
    assert attempt("anna", "secret", "2001:db8:0:1::1") == "right"


def test_what_is_kept_is_bounded_and_a_flood_of_names_does_not_free_anyone(attempt, monkeypatch):
    monkeypatch.setattr(logins, "KEPT", 50)
    for _ in range(5):
        attempt("anna", "no")
    for number in range(300):
        attempt(f"{number}" + "x" * 10_000, "no", f"10.0.0.{number % 200}")
    assert isinstance(attempt("anna", "secret"), int)
    for failures in (attempt.known._accounts, attempt.known._others, attempt.known._addresses):
        assert len(failures) <= 50
    assert max(len(str(key)) for key in attempt.known._others._times) < 300


@pytest.mark.parametrize("password", ["", "secre", "secret ", "Secret", "\ud800", "sécret"])
def test_only_the_password_is_right(attempt, password):
    assert attempt("anna", password) == "wrong" and attempt("nobody", password) == "wrong"


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no login"), ("# x\n", "holds no login"), ("anna\n", "line 1 is not NAME:PASSWORD"),
     ("a:b\n:c\n", "line 2 is not")],
)  # fmt: skip
def test_bad_login_files(tmp_path, text, message):
    path = tmp_path / "logins"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(MmdoraError, match=message):
        read_logins(path)


def test_logins(tmp_path):
    path = tmp_path / "logins"
    path.write_text("# people\nanna:a:b c\n\nbert:x\n")
    path.chmod(0o600)
    assert read_logins(path) == [("anna", "a:b c"), ("bert", "x")]
    path.chmod(0o644)
    with pytest.raises(MmdoraError, match="chmod 600"):
        read_logins(path)
