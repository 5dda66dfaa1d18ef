"""Texts, tokenised once and kept as flat ids: a view of row i leaves tokens out, by its seed alone.

    crop     a span of ⌈v n⌉ of the n tokens, v uniform in [crop, 1], at a uniform place
    delete   each token of it with that probability, but never all (Wei & Zou 2019, random deletion)

Both at their defaults leave a text as it is: then two views differ by the encoder's dropout alone (Gao, Yao & Chen
2021, SimCSE). What a tokenizer adds at the ends, such as [CLS], stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Gt, Le, Share, checked
from negbank.counter import seeded_uniforms
from negbank.ragged import within
from negbank.train.data.contract import checked_labels
from negbank.train.data.text.tokenizers import Tokenizer
from negbank.train.data.text.tokens import Tokens

BLOCK = 8192
"""Texts tokenised at once."""


class TextData:
    """Rows of text.

    Args:
        texts: N of them, none without a token.
        tokenizer: see `negbank.train.data.text.tokenizers`.
        longest: tokens of a text at most; what comes after is cut off.
        delete, crop: of views.
        prompt: put before every text.
        labels: integers (N,), −1 where unknown.

    Raises:
        ValueError: for a text without a token, or labels that do not fit.
    """

    @checked
    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        *,
        longest: Count = 64,
        delete: Share = 0.0,
        crop: Annotated[float, Gt(0), Le(1)] = 1.0,
        prompt: str = "",
        labels: Tensor | None = None,
    ) -> None:
        self.texts: Sequence[str] | None = texts
        self._tokenizer: Tokenizer | None = tokenizer
        self._ends = tokenizer.before, tokenizer.after
        self.longest, self.delete, self.crop, self.prompt = longest, delete, crop, prompt
        self.describes = {"vocabulary": tokenizer.vocabulary, "tokenizer": tokenizer.name}
        parts = [self.tokenized(texts[at : at + BLOCK], at) for at in range(0, len(texts), BLOCK)]
        every = Tokens.joined(parts)
        self._ids, self._lengths = every.ids.to(torch.int32), every.lengths
        self._starts = every.starts
        self._labels = checked_labels(labels, len(texts))

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), −1 where unknown, or None."""
        return self._labels

    def tokenized(self, texts: Sequence[str], first: int = 0) -> Tokens:
        """Any texts as rows of this data are: with its prompt, cut to its length, no token left out.

        Args:
            first: what row the first of them is, for errors.

        Raises:
            ValueError: for a text without a token, here and where the data was sent to another process.
        """
        if self._tokenizer is None:
            raise ValueError("texts: data in a worker keeps no tokenizer; tokenise in the process that made it")
        before, after = self._ends
        found = self._tokenizer.ids([self.prompt + text for text in texts])
        inner = self.longest - before - after
        cut = [ids if len(ids) <= self.longest else _cut(ids, before, inner, after) for ids in found]
        lengths = np.fromiter(map(len, cut), np.int64, len(cut))
        empty = (lengths <= before + after).nonzero()[0]
        if len(empty):
            raise ValueError(
                f"texts: row {first + int(empty[0])} has no token ({texts[int(empty[0])]!r}, longest={self.longest}); "
                f"leave it out, or raise longest"
            )
        flat = np.fromiter((i for ids in cut for i in ids), np.int64, int(lengths.sum()))
        return Tokens(torch.from_numpy(flat), torch.from_numpy(lengths))

    def read(self, rows: Tensor, seeds: Tensor | None) -> Tokens:
        """Tokens of rows (n,), under the views of seeds. Raises IndexError for a row that is none."""
        lengths = self._lengths[rows]
        place = within(lengths)
        ids = self._ids[place + self._starts[rows].repeat_interleave(lengths)].long()
        if seeds is None or (self.delete == 0 and self.crop == 1) or len(rows) == 0:
            return Tokens(ids, lengths)
        kept = self._kept(place, lengths, seeds)
        text = torch.arange(len(rows)).repeat_interleave(lengths)
        return Tokens(ids[kept], torch.bincount(text[kept], minlength=len(rows)))

    def _kept(self, place: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        """Which of the tokens (T,), each at a place of its text, its view keeps."""
        before, after = self._ends
        u = seeded_uniforms(seeds, int(lengths.max()) + 2).double()
        inner = lengths - before - after
        span = ((self.crop + (1 - self.crop) * u[:, 0]) * inner).ceil().long().clamp(min=1)
        begin = before + (u[:, 1] * (inner - span + 1)).long()
        columns = torch.arange(u.shape[1] - 2)
        inside = (columns >= begin[:, None]) & (columns < (begin + span)[:, None])
        kept = inside & (u[:, 2:] >= self.delete)
        none = ~kept.any(1)
        kept[none, begin[none]] = True
        kept |= (columns < before) | ((columns >= (lengths - after)[:, None]) & (columns < lengths[:, None]))
        text = torch.arange(len(lengths)).repeat_interleave(lengths)
        return kept[text, place]

    def collate(self, parts: Sequence[Tokens]) -> Tokens:
        """Texts read in parts as one."""
        return Tokens.joined(parts)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads tokens alone."""
        return {**vars(self), "texts": None, "_tokenizer": None}


def _cut(ids: list[int], before: int, inner: int, after: int) -> list[int]:
    return ids[: before + max(0, inner)] + ids[len(ids) - after :]
