"""What one run writes: files of records, bad rows, card and report. It writes all of it or nothing."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.files import sha256
from mmdora.prepare import card
from mmdora.prepare.convert import Bad, Made
from mmdora.prepare.dataset import Dataset
from mmdora.prepare.index import Seen
from mmdora.prepare.output import JsonlFile, ParquetFile
from mmdora.prepare.read import OfficialRow, split_of
from mmdora.prepare.report import write_report

MOST_CONTENT = 2000
"""How many characters of a bad row are kept beside its place: enough to recognise it."""
BAD_ROWS = "bad_rows.jsonl"


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
        card.check_owner(out, dataset.name)

    def __enter__(self) -> Writer:
        self.out.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=".prep-", dir=self.out)))
        self._seen = Seen(self.scratch / "ids.sqlite")
        self._stack.callback(self._seen.close)
        self._bad_file = self._stack.enter_context((self.scratch / BAD_ROWS).open("w", encoding="utf-8"))
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for file in self._files.values():
            file.discard()
        self._stack.close()
        if isinstance(error, sqlite3.OperationalError):  # the scratch files: most likely the disk is full
            raise MmdoraError(f"{self.out}: {error}; nothing was written") from None

    def take(self, chunk: Sequence[OfficialRow], done: Sequence[Made | Bad], *, skip_bad: bool) -> None:
        """Write a chunk's records, and note its bad rows; unless `skip_bad`, the first of them is an error."""
        bad: list[Bad] = []
        for item in done:
            row = chunk[item.row]
            if isinstance(item, Made):
                split = item.split or self._split or split_of(row.file) or self._default
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
            self._files[split] = kind(self.out / f"{split}{kind.suffix}")
        self._files[split].add(made)
        self.records += 1
        return True

    def finish(self, inputs: Sequence[Path], root: Path | None, unmatched: int) -> dict[str, int]:
        """Write card and report, and give every file its name; return the number of records per split.

        Args:
            inputs: the official files that were read.
            root: the folder that image (or feature) paths start from; None if the images lie below `out`.
            unmatched: how many annotations belong to no row.

        Raises:
            MmdoraError: there is no usable row.
        """
        if not self.records:
            raise MmdoraError(f"{self.out}: no usable row ({self._bad:,} bad ones); nothing was written")
        sources = [{"file": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in inputs]
        run = {"rows": self._rows, "bad_rows": self._bad, "unmatched_annotations": unmatched, "inputs": sources}
        entries, counts = {}, {}
        for split, file in self._files.items():
            files = {"file": file.path.name, "images_root": str(root) if root else None, "packed": self._pack}
            numbers = file.counts.to_dict() | {"duplicate_ids": self._duplicates[split]}
            entries[split] = files | {"sha256": file.commit()} | numbers | run
            counts[split] = file.counts.records
        self._files = {}
        card.write(self.out, self.dataset, entries)
        self._keep_bad_rows({str(path) for path in inputs})
        for number, what in ((self._bad, f"bad rows left out, see {self.out / BAD_ROWS}"),
                             (unmatched, "annotations that belong to no row")):  # fmt: skip
            if number:
                print(f"{self.dataset.name}: {number:,} {what}", file=sys.stderr)
        write_report(self.out)
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
        written = self.scratch / BAD_ROWS
        if written.stat().st_size:
            written.replace(final)
        else:
            final.unlink(missing_ok=True)
