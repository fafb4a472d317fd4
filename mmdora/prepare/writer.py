"""What one run writes: files of records, bad rows, card and report. It writes all of it or nothing."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.files import FULL, PARTIAL, free_bytes, full_disk, sha256
from mmdora.outputs.lock import locked
from mmdora.outputs.stop import stoppable
from mmdora.outputs.written import Written
from mmdora.prepare import card
from mmdora.prepare.convert import Bad, Made
from mmdora.prepare.dataset import Dataset
from mmdora.prepare.draw import SPLITS
from mmdora.prepare.index import Seen
from mmdora.prepare.output import BAD_ROWS, JsonlFile, ParquetFile
from mmdora.prepare.read import OfficialRow, split_of
from mmdora.prepare.report import REPORT, write_report
from mmdora.records.card import CARD

MOST_CONTENT = 2000
"""How many characters of a bad row are kept beside its place: enough to recognise it."""
SCRATCH = f".prep{PARTIAL}"
"""The folder in that of the records in which everything is written until it is complete."""


class Writer:
    """Takes converted rows. `finish` gives the files their names; leaving the context without it removes them.

    Args:
        pack: write Parquet with the images inside, instead of JSON Lines.
        unique: refuse an id that comes twice in a split.
        split: of all records that do not tell theirs; without it the name of their file tells it.
        default: the split where that name tells none.

    Raises:
        MmdoraError: the folder holds the records of another dataset.
    """

    def __init__(
        self,
        out: Path,
        dataset: Dataset,
        *,
        pack: bool = False,
        unique: bool = True,
        split: str | None = None,
        default: str | None = None,
    ):
        self.out, self.dataset, self.records = out, dataset, 0
        self._pack, self._unique, self._split, self._default = pack, unique, split, default
        self._files: dict[str, JsonlFile | ParquetFile] = {}
        self._duplicates: Counter[str] = Counter()
        self._rows = self._bad = 0
        self._stack = ExitStack()
        self.scratch = out / SCRATCH
        self.written = Written(out)
        self._placed: list[str] = []
        card.check_owner(out, dataset.name)

    def __enter__(self) -> Writer:
        with ExitStack() as stack:
            stack.enter_context(stoppable(self.left))
            stack.enter_context(_one_line(self))
            stack.enter_context(locked(self.out))
            card.check_owner(self.out, self.dataset.name)  # Another run may have ended since.
            self.written.check(CARD, REPORT, BAD_ROWS)
            shutil.rmtree(self.scratch, ignore_errors=True)  # by a run that was killed
            self.scratch.mkdir()
            stack.callback(shutil.rmtree, self.scratch, ignore_errors=True)
            self._seen = Seen(self.scratch / "ids.sqlite")
            stack.callback(self._seen.close)
            self._bad_file = stack.enter_context((self.scratch / BAD_ROWS).open("w", encoding="utf-8"))
            stack.callback(self._discard)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _discard(self) -> None:
        for file in self._files.values():
            file.discard()

    def left(self) -> str:
        """What a signal has left, in words."""
        if self._placed:
            return f"of {self.out} only {', '.join(self._placed)} is new; the same command begins anew"
        return f"nothing was written to {self.out}; the same command begins anew"

    def take(
        self,
        chunk: Sequence[OfficialRow],
        done: Sequence[Made | Bad],
        *,
        skip_bad: bool,
        drawn: Sequence[int] | None = None,
    ) -> None:
        """Write a chunk's records, and note its bad rows; unless `skip_bad`, the first of them is an error.

        Args:
            drawn: [rows of the whole run] what `draw.draw` gave, if that says which split a row is of.
        """
        bad: list[Bad] = []
        for item in done:
            row = chunk[item.row]
            if isinstance(item, Made):
                drawn_split = SPLITS[drawn[self._rows + item.row]] if drawn is not None else None
                split = drawn_split or item.split or self._split or split_of(row.file) or self._default
                if split is None:
                    raise MmdoraError(f"{row.file}: the name tells no split (train, val, dev, test); give --split")
                if self.add(item, split):
                    continue
                item = Bad(item.row, f"the id {item.id!r} comes twice in {split}")
            bad.append(item)
            self._note(row, item.reason)
        self._rows += len(chunk)
        if bad and not skip_bad:
            count = f" ({len(bad)} bad rows in the first {self._rows:,})" if len(bad) > 1 else ""
            where, reason = chunk[bad[0].row].where, bad[0].reason
            raise MmdoraError(f"{where}: {reason}{count}; --skip-bad lists such rows and goes on without them")

    def add(self, made: Made, split: str) -> bool:
        """Write a record. For an id that must not come twice nothing is written, and False is returned."""
        if not self._seen.add(f"{split}\0{made.id}"):
            if self._unique:
                return False
            self._duplicates[split] += 1
        if split not in self._files:
            if not re.fullmatch(r"\w[\w.+-]*", split):
                raise MmdoraError(f"{split!r}: a split needs a name of letters, digits, '_', '-' or '.'")
            kind = ParquetFile if self._pack else JsonlFile
            self.written.check(name := f"{split}{kind.suffix}")
            self._files[split] = kind(self.scratch / name)
        self._files[split].add(made)
        self.records += 1
        return True

    def finish(
        self, inputs: Sequence[Path], root: Path | None, unmatched: int, drawn: Mapping[str, Any] | None = None
    ) -> dict[str, int]:
        """Write card and report, and give every file its name; return the number of records per split.

        Args:
            inputs: the official files that were read.
            root: the folder that image (or feature) paths start from; None if the images lie below `out`.
            unmatched: how many annotations belong to no row.
            drawn: how test rows were drawn, for the card.

        Raises:
            MmdoraError: there is no usable row.
        """
        if not self.records:
            raise MmdoraError(f"{self.out}: no usable row ({self._bad:,} bad ones); nothing was written")
        sources = [{"file": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in inputs]
        run = {
            "rows": self._rows,
            "bad_rows": self._bad,
            "unmatched_annotations": unmatched,
            "inputs": sources,
            **(drawn or {}),
        }
        if own := {path.resolve() for path in inputs} & {
            (self.out / f.path.name).resolve() for f in self._files.values()
        }:
            raise MmdoraError(f"{next(iter(own))}: is read here, and would be overwritten; give another --out")
        entries, counts, digests = {}, {}, {}
        for split, file in self._files.items():
            files = {
                "file": file.path.name,
                "images_root": str(root.absolute()) if root else None,
                "packed": self._pack,
            }
            numbers = file.counts.to_dict() | {"duplicate_ids": self._duplicates[split]}
            digests[split] = file.finish()
            entries[split] = files | {"sha256": digests[split]} | numbers | run
            counts[split] = file.counts.records
        for split, file in self._files.items():  # All are complete by now, so little can come between these renames.
            self.written.place(file.path, file.path.name, digests[split])
            self._placed.append(file.path.name)
        self._files = {}
        card.write(self.written, self.dataset, entries)
        self._keep_bad_rows({str(path) for path in inputs})
        for number, what in ((self._bad, f"bad rows left out, see {self.out / BAD_ROWS}"),
                             (unmatched, "annotations that belong to no row")):  # fmt: skip
            if number:
                print(f"{self.dataset.name}: {number:,} {what}", file=sys.stderr)
        write_report(self.written)
        return counts

    def _note(self, row: OfficialRow, reason: str) -> None:
        self._bad += 1
        content = row.value.decode("utf-8", "replace") if isinstance(row.value, bytes) else repr(row.value)
        place: dict[str, Any] = {"file": str(row.file), "line": row.line, "row": row.number}
        self._bad_file.write(json.dumps(place | {"reason": reason, "content": content[:MOST_CONTENT]}) + "\n")

    def _keep_bad_rows(self, inputs: set[str]) -> None:
        """Keep the bad rows of other files that went into the same folder, behind those of this run."""
        final = self.out / BAD_ROWS
        if final.exists():
            with final.open(encoding="utf-8") as earlier:
                self._bad_file.writelines(line for line in earlier if json.loads(line)["file"] not in inputs)
        self._bad_file.close()
        if (self.scratch / BAD_ROWS).stat().st_size:
            self.written.place(self.scratch / BAD_ROWS, BAD_ROWS)
        else:
            self.written.remove(BAD_ROWS)


@contextmanager
def _one_line(writer: Writer) -> Iterator[None]:
    """Turn the errors of a full disk into one line; what they left is cleared away by then."""
    try:
        with full_disk(writer.out):
            yield
    except sqlite3.OperationalError as error:  # The scratch files: most likely the disk is full.
        free = free_bytes(writer.out)
        raise MmdoraError(f"{writer.out}: {error}; {free:,} bytes are free on that disk; {writer.left()}") from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise MmdoraError(f"{error.filename}: {error.strerror}; {writer.left()}") from None
