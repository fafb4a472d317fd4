"""Lengths of a family's rows in tokens, from their texts and the headers of their pictures alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mmdora.families.conversations import Conversations
from mmdora.families.expansion import Expansions, Size
from mmdora.families.template import check_places, needs_start_token
from mmdora.records.images import FileRef, image_size
from mmdora.records.row import Row, naming, videos_of
from mmdora.records.videos import sampling


class Counting(Conversations):
    """How a family counts tokens; see `Family`."""

    @cached_property
    def expansions(self) -> Expansions:
        """What the processor writes in place of pictures."""
        return Expansions(self.processor, self.placeholder, self.read)

    def image_tokens(self, sizes: Sequence[Size]) -> list[int]:
        """The number of tokens of pictures that stand alone in their conversations, from their (height, width).

        Raises:
            MmdoraError: if the processor cannot read pictures of these sizes.
        """
        if self.expansions.has_rule:
            return self.expansions.tokens(sizes)
        return [self.expansions.tokens([size])[0] for size in sizes]

    def count_image_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: tokens of the pictures and videos of each row; only the headers of their files are read."""
        return self._count_pictures(rows) + np.array([self._video_tokens(row) for row in rows], dtype=np.int32)

    def _video_tokens(self, row: Row) -> int:
        if not videos_of(row) or self.videos is None:
            return 0
        with naming(row):
            texts = [self.videos.written(sampling(video)) for video in videos_of(row)]
        return sum(len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def _count_pictures(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: image tokens of each row."""
        sizes = self._sizes(rows)
        if self.expansions.has_rule:
            every = self.expansions.tokens([size for own in sizes for size in own]) if any(sizes) else []
            counts, owners = np.zeros(len(rows), dtype=np.int32), np.repeat(np.arange(len(rows)), list(map(len, sizes)))
            np.add.at(counts, owners, np.array(every, dtype=np.int32))
            return counts
        return np.array([sum(self.expansions.tokens(own)) for own in sizes], dtype=np.int32)

    def _sizes(self, rows: Sequence[Row]) -> list[list[Size]]:
        """The (height, width) in pixels of the pictures of each row."""
        known: dict[FileRef, Size] = {}
        for row in rows:
            with naming(row):
                known |= {image: image_size(image) for image in row["images"] if image not in known}
        return [[known[image] for image in row["images"]] for row in rows]

    def count_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: tokens of each rendered conversation, with its pictures expanded to their image tokens."""
        texts = []
        for row in rows:
            with naming(row):
                texts.append(self.render(row["messages"]))
        if self.placeholder is None or self.expansions.has_rule:
            more = self._count_pictures(rows)
            # The text is counted with one placeholder per picture, which the image tokens replace.
            more -= np.array([len(row["images"]) * (self.placeholder is not None) for row in rows], dtype=np.int32)
        else:
            written = [self._expanded(*each) for each in zip(rows, texts, self._sizes(rows), strict=True)]
            texts, more = [text for text, _ in written], np.array([count for _, count in written], dtype=np.int32)
        special = needs_start_token(self.processor, texts)
        texts = [self._with_videos(row, text) for row, text in zip(rows, texts, strict=True)]
        ids = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
        return np.array([len(each) for each in ids["input_ids"]], dtype=np.int32) + more

    def _expanded(self, row: Row, text: str, sizes: Sequence[Size]) -> tuple[str, int]:
        with naming(row):
            check_places(text, self.placeholder, len(sizes))
            return self.expansions.into(text, sizes)

    def _with_videos(self, row: Row, text: str) -> str:
        """The text with what the processor writes in place of its videos; only their headers are read."""
        if not videos_of(row) or self.videos is None:
            return text
        with naming(row):
            check_places(text, self.videos.placeholder, len(videos_of(row)), "video")
            return self.videos.into(text, [sampling(video) for video in videos_of(row)])
