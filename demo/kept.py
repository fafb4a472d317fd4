"""Keeps conversations on disk under random names: for a reload, for links, and for the list of earlier ones.

Whoever knows a name may see its conversation, so names cannot be guessed. Without Gradio.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.errors import MmdoraError
from mmdora.files import PARTIAL, full_disk
from mmdora.predict.answers import Token

NAME = re.compile(r"[A-Za-z0-9_-]{22}")
"""A name as `secrets.token_urlsafe(16)` makes it: 128 random bits, and nothing that could lead to another folder."""
FILE = "conversation.json"
LINK_DAYS, DAYS = 7, 90  # Days until a link, or a conversation that nobody has changed, is forgotten.
COUNT, BYTES = 2_000, 10**9  # Most conversations and bytes. The ones unchanged for longest go first.
LISTED = 50  # Most conversations in a visitor's list.


@dataclass(frozen=True)
class Saved:
    """A conversation as it was kept.

    Attributes:
        turns: its questions and answers.
        pictures: the files of its pictures.
        settings: the settings of the next question; `blind` is whether names are hidden in it.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Path, ...]
    settings: AnswerSettings
    blind: bool


@dataclass(frozen=True)
class Listed:
    """A line in a visitor's list of conversations; `time` is in seconds since 1970."""

    name: str
    title: str
    time: float


class Kept:
    """A folder of conversations.

    Args:
        folder: the folder, which is made if need be.
        names: names of the page's models; a conversation with other models is not opened.

    Raises:
        MmdoraError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names, self._lock = folder, list(names), threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            raise MmdoraError(f"--sessions {folder}: cannot be written ({error.strerror})") from None
        self._index = self._found()

    @staticmethod
    def new_name() -> str:
        return secrets.token_urlsafe(16)

    def save(self, name: str, saved: Saved, owner: str, days: int = DAYS) -> None:
        """Keep a conversation, in place of the one of this name.

        Args:
            owner: a secret of the visitor, by which `of` finds it again; only a hash of it is kept.
            days: days until it is forgotten.

        Raises:
            MmdoraError: if the name is none, a picture is gone, or it cannot be written.
        """
        place = self._place(name)
        values: dict[str, Any] = {
            "models": self.names,
            "owner": _hash(owner),
            "until": time.time() + 86_400 * days,
            "settings": asdict(saved.settings),
            "blind": saved.blind,
            "turns": [asdict(turn) for turn in saved.turns],
            "pictures": [f"{number}{picture.suffix}" for number, picture in enumerate(saved.pictures)],
        }
        content = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock:
            partial = self.folder / f"{name}{PARTIAL}"
            try:
                with full_disk(place):
                    partial.mkdir()
                    for picture, file in zip(saved.pictures, values["pictures"], strict=True):
                        shutil.copyfile(picture, partial / file)
                    (partial / FILE).write_bytes(content)
                shutil.rmtree(place, ignore_errors=True)
                partial.rename(place)
                self._index.pop(name, None)
                self._index[name] = _entry(values, place)
            except FileNotFoundError:
                raise MmdoraError("The picture is no longer on the server; choose it again.") from None
            except OSError as error:
                raise MmdoraError(f"The conversation cannot be kept ({error.strerror}).") from None
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._sweep()

    def load(self, name: str) -> Saved:
        """Read a conversation.

        Raises:
            MmdoraError: if there is none of this name, it has expired, or it is one of other models.
        """
        place = self._place(name)
        try:
            values = _read(place)
            if time.time() > values["until"]:
                raise MmdoraError("This conversation has expired.")
            if values["models"] != self.names:
                raise MmdoraError(f"This conversation is one of {', '.join(values['models'])}; the page has others.")
            return Saved(
                tuple(map(_turn, values["turns"])),
                tuple(place / Path(file).name for file in values["pictures"]),
                AnswerSettings(**values["settings"]),
                values["blind"] is True,
            )
        except FileNotFoundError:
            raise MmdoraError("There is no such conversation, or it has expired.") from None
        except MmdoraError:
            raise
        except (OSError, ValueError, KeyError, TypeError):
            raise MmdoraError("This conversation cannot be read.") from None

    def owned(self, name: str, owner: str) -> bool:
        """Whether a conversation is this visitor's, who may then change it."""
        with self._lock:
            return name in self._index and self._index[name].owner == _hash(owner)

    def of(self, owner: str) -> list[Listed]:
        """A visitor's conversations that have a question, the last changed first."""
        own = _hash(owner)
        with self._lock:
            entries = [(name, entry) for name, entry in self._index.items() if entry.owner == own and entry.title]
        return [Listed(name, entry.title, entry.time) for name, entry in reversed(entries)][:LISTED]

    def _place(self, name: str) -> Path:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise MmdoraError("There is no such conversation, or it has expired.")
        return self.folder / name

    def _sweep(self) -> None:
        """Remove what has expired, and what nobody changed for longest until the caps hold."""
        total = sum(entry.size for entry in self._index.values())
        for name, entry in list(self._index.items()):  # The one changed longest ago comes first.
            if len(self._index) > COUNT or total > BYTES or time.time() > entry.until:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                total -= self._index.pop(name).size

    def _found(self) -> dict[str, _Entry]:
        """What lies in the folder, the one changed longest ago first."""
        found = []
        for place in self.folder.iterdir():
            try:
                if NAME.fullmatch(place.name):
                    found.append((place.name, _entry(_read(place), place)))
            except (OSError, ValueError, KeyError, TypeError):  # Somebody damaged it; it is not ours to remove.
                continue
        return dict(sorted(found, key=lambda pair: pair[1].time))


@dataclass(frozen=True)
class _Entry:
    """What is known of a conversation without reading it: a hash of its owner, its first question, times and bytes."""

    owner: str
    title: str
    time: float
    until: float
    size: int


def _read(place: Path) -> Any:
    return json.loads((place / FILE).read_bytes().decode("utf-8", "surrogatepass"))


def _entry(values: Any, place: Path) -> _Entry:
    title = str(values["turns"][0]["question"]) if values["turns"] else ""
    size = sum(file.stat().st_size for file in place.iterdir())
    return _Entry(values["owner"], title, (place / FILE).stat().st_mtime, float(values["until"]), size)


def _turn(values: dict[str, Any]) -> Turn:
    answers = []
    for answer in values["answers"]:
        tokens = [
            Token(token["text"], token["p"], tuple((text, p) for text, p in token["likeliest"]))
            for token in answer["first_tokens"]
        ]
        answers.append(Answer(**answer | {"first_tokens": tuple(tokens)}))
    settings = AnswerSettings(**values["settings"])
    return Turn(**values | {"settings": settings, "answers": tuple(answers), "order": tuple(values["order"])})


def _hash(owner: str) -> str:
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
