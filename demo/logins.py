"""Reads the file of logins, and checks passwords while it slows down guessing."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict, deque
from ipaddress import ip_address, ip_network
from pathlib import Path

from starlette.exceptions import HTTPException

from mmdora.demo.hosts import visitor
from mmdora.errors import MmdoraError
from mmdora.files import read_text

TRIES, WINDOW = 5, 60.0
"""An address may fail 5 times within 60 seconds at one account: more than a person mistypes."""
MANY = 20  # After this many failures within the window an account or an address is being guessed at.
KEPT = 10_000  # Most counts that are kept, about 10 MB. When one more comes, the one that failed longest ago goes.
MAX_NAME = 256  # Characters of a name that are kept, since strangers choose it.


def read_logins(path: Path) -> list[tuple[str, str]]:
    """Read a file with NAME:PASSWORD on each line; empty lines and lines that begin with # are left out.

    Raises:
        MmdoraError: if a line is not NAME:PASSWORD (the message gives its number), if there is no login, or if every
            user of the machine can read the file.
    """
    logins = []
    for number, line in enumerate(read_text(path, "file of logins").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            name, _, password = line.strip().partition(":")
            if not name or not password:
                raise MmdoraError(f"{path}: line {number} is not NAME:PASSWORD")
            logins.append((name, password))
    if not logins:
        raise MmdoraError(f"{path}: holds no login; write NAME:PASSWORD, one a line")
    if path.stat().st_mode & 0o004:
        raise MmdoraError(f"{path}: can be read by every user of this machine; chmod 600 {path}")
    return logins


class Logins:
    """Checks passwords. Failures count for the pair of account and address, for the account, and for the address.

    A pair that failed `TRIES` times waits until its oldest failure is `WINDOW` seconds old. If its account or its
    address has failed `MANY` times, it waits after its first failure. So a right password is let in from any
    address that has not itself failed at this account, whatever others do.

    Args:
        logins: name and password of each account.
    """

    def __init__(self, logins: list[tuple[str, str]]):
        self._passwords = dict(logins)
        # Names that are no accounts have counts of their own, so that no flood of them makes those of accounts go.
        self._accounts, self._others, self._addresses = Failures(), Failures(), Failures()

    def check(self, name: str, password: str) -> bool:
        """Whether this is an account and its password. The visitor's address is that of the request being answered.

        Raises:
            HTTPException: with status 429, if the pair has to wait; the password is then not looked at.
        """
        right = self._passwords.get(name)
        name, address = name[:MAX_NAME], _network(visitor.get())
        failures = self._others if right is None else self._accounts
        guessed = failures.count(name) >= MANY or self._addresses.count(address) >= MANY
        if wait := failures.wait((name, address), 1 if guessed else TRIES):
            told = f"Too many failed logins; try again in {wait} s."
            raise HTTPException(429, told, headers={"retry-after": str(wait)})
        given = password.encode("utf-8", "surrogatepass")
        if hmac.compare_digest((right or "").encode(), given) and right is not None:
            failures.forget((name, address))
            return True
        for key in ((name, address), name):
            failures.add(key)
        self._addresses.add(address)
        return False


class Failures:
    """The times of recent failures by key, at most `MANY` for each of at most `KEPT` keys."""

    def __init__(self) -> None:
        self._times: OrderedDict[object, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def add(self, key: object) -> None:
        self._times.setdefault(key, deque(maxlen=MANY)).append(time.monotonic())
        self._times.move_to_end(key)
        if len(self._times) > KEPT:
            self._times.popitem(last=False)

    def count(self, key: object) -> int:
        since = time.monotonic() - WINDOW
        return sum(at > since for at in self._times.get(key, ()))

    def wait(self, key: object, limit: int) -> int:
        """Seconds until the key has failed fewer than `limit` times within the window; 0 if it has."""
        if self.count(key) < limit:
            return 0
        return int(self._times[key][-limit] + WINDOW - time.monotonic()) + 1

    def forget(self, key: object) -> None:
        self._times.pop(key, None)


def _network(address: str) -> str:
    """An IPv4 address, or the /64 network of an IPv6 address, because one visitor has all addresses of that."""
    try:
        return str(ip_network((address, 64), strict=False)) if ip_address(address).version == 6 else address
    except ValueError:
        return address
