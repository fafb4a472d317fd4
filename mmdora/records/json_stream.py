"""Reads the values of a JSON text of any size one at a time, with the line on which each begins.

`json.JSONDecoder.raw_decode` works on a buffer that is refilled when it is used up, so that memory holds one buffer and
one value. ijson 3.5 with its C backend reads half as many rows per second, and does not know lines.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmdora.errors import MmdoraError

CHUNK = 1 << 20
"""Bytes of a file, or characters of a text, that are read at a time: few reads, and little memory."""
MAX_VALUE = 1 << 26
"""The most characters of a value. A longer one is taken for broken JSON whose end is never found."""
LONGEST_TOKEN = 16
"""Characters of the longest word or escape that the end of the buffer can cut in two, with some room. A parse error
this near to the end may come from such a cut, so more text is read before it counts as an error."""
BLANK = " \t\n\r"


def text_of(path: Path, passed: Callable[[int], object] = lambda size: None) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces, without its byte order mark; `passed` gets each one's size in bytes."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                passed(len(data))
                yield decoder.decode(data)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise MmdoraError(f"{path}: not UTF-8 text") from None


def parse_line(line: bytes) -> Any:
    """The value of a line of JSON Lines.

    Raises:
        MmdoraError: if the line is no JSON; the message does not say where the line stands.
    """
    try:
        value = json.loads(
            line.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_no_number, parse_float=_finite
        )
        if b"\\u" in line:
            check_text(value)
        return value
    except UnicodeDecodeError:
        raise MmdoraError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise MmdoraError(f"broken JSON ({error.msg} at column {error.colno})") from None
    except MmdoraError:
        raise
    except RecursionError:
        raise MmdoraError("JSON nested too deeply") from None
    except ValueError as error:  # Python refuses to read numbers with thousands of digits.
        raise MmdoraError(f"JSON that cannot be read ({error})") from None


def check_text(value: Any) -> None:
    """Raise an MmdoraError if a string in a JSON value holds half of a surrogate pair, which UTF-8 cannot express."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MmdoraError(
            "half of a surrogate pair (\\ud800 to \\udfff without its partner), which is no UTF-8 text; remove it"
        ) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's pairs. Repeated keys are an error, because readers differ in which one they take."""
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise MmdoraError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return values


def _no_number(constant: str) -> Any:
    raise MmdoraError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise MmdoraError(f"the number {text:.20} is too large")
    return value


class Value(NamedTuple):
    """A value below the top, with its key in a dict (None in a list) and its line."""

    key: str | None
    value: Any
    line: int


class Scanner:
    """Reads one JSON document from pieces of text.

    Args:
        name: name of the document in errors.
    """

    def __init__(self, pieces: Iterator[str], name: str):
        self._pieces, self._name = pieces, name
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0  # `_line` is the number of the line with the character at `_counted`.
        self._decode = json.JSONDecoder(
            object_pairs_hook=_each_once, parse_constant=_no_number, parse_float=_finite
        ).raw_decode

    def elements(self, member: str | None = None, *, optional: bool = False) -> Iterator[Value]:
        """Yield the elements of the top-level list, or of the list that is `member` of the top-level dict.

        Raises:
            MmdoraError: if the JSON is broken (the message names the line), or if there is no such list and it is not
                `optional`.
        """
        if member is None:
            if self.peek() != "[":
                raise self._error("expected a JSON list")
            yield from self._list()
        else:
            there = False
            for key in self._keys():
                if self.peek() != "[":
                    self._value()
                    continue
                there |= key == member
                for element in self._list():
                    if key == member:
                        yield element
            if not there and not optional:
                raise self._error(f"the JSON has no list {member!r}")
        if self.peek():
            raise self._error("broken JSON (text after the end)")

    def items(self) -> Iterator[Value]:
        """Yield the entries of the top-level dict."""
        for key in self._keys():
            self.peek()
            line = self._line_here()
            yield Value(key, self._value(), line)

    def header(self) -> tuple[dict[str, Any], str]:
        """The entries of the top-level dict before its first list, and that list's key ("" if there is no list)."""
        values = {}
        for key in self._keys():
            if self.peek() == "[":
                return values, key
            values[key] = self._value()
        return values, ""

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in BLANK:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def _list(self) -> Iterator[Value]:
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            self.peek()
            line = self._line_here()
            yield Value(None, self._value(), line)
            if self.peek() == "]":
                self._take("]")
                return
            self._take(",")

    def _keys(self) -> Iterator[str]:
        """Yield the keys of the top-level dict; the caller must read each value before it asks for the next key."""
        if self.peek() != "{":
            raise self._error("expected a JSON object")
        self._take("{")
        more = self.peek() != "}"
        while more:
            if self.peek() != '"':
                raise self._error("broken JSON (expected a key)")
            key = self._value()
            self._take(":")
            yield key
            more = self.peek() != "}"
            if more:
                self._take(",")
        self._take("}")

    def _take(self, character: str) -> None:
        following = self.peek()
        if following != character:
            shown = repr(following) if following else "the end"
            raise self._error(f"broken JSON (expected {character!r}, found {shown})")
        self._at += 1

    def _value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # A number at the end of the buffer may go on in the next piece, like "1" in "1.5" or "1e-7".
                if end + 2 < len(self._text) or self._ended:
                    if self._text.find("\\u", self._at, end) >= 0:
                        check_text(value)
                    self._at = end
                    return value
            except MmdoraError as error:
                raise self._error(str(error)) from None
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self._ended or not cut or len(self._text) - self._at > MAX_VALUE:
                    self._at = error.pos
                    ending = "; the file seems cut short" if self._ended and cut else ""
                    raise self._error(f"broken JSON ({error.msg}{ending})") from None
            except (ValueError, RecursionError) as error:  # A number is too long for Python, or brackets nest too deep.
                raise self._error(f"JSON that cannot be read ({error})") from None
            self._more()

    def _more(self) -> None:
        """Drop the text that was used, and read at least as much as is left.

        The buffer of a long value thus doubles each time, and parsing the value again takes linear time in all.
        """
        self._line_here()
        parts, wanted = [self._text[self._at :]], max(CHUNK, len(self._text) - self._at)
        while wanted > 0:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            parts.append(piece)
            wanted -= len(piece)
        self._text, self._at, self._counted = "".join(parts), 0, 0

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _error(self, what: str) -> MmdoraError:
        return MmdoraError(f"{self._name}:{self._line_here()}: {what}")
