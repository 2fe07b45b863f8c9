"""Packs documents into rows of one length, each document starting at a block boundary."""

import bisect
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where each piece of a document lies. Pieces of row `r` are `row_pieces[r]:row_pieces[r + 1]`, left to right.

    `token_start` is a piece's place in the stream of all tokens, `offset` its place in the row, `size` its length.
    """

    row_pieces: np.ndarray
    token_start: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_pieces) - 1


def pack(document_starts: np.ndarray, row_length: int, block_size: int) -> Packing:
    """Packs documents `document_starts[i]:document_starts[i + 1]` of a token stream into rows of `row_length` tokens.

    The last token of a document is only ever a target, so a document of `n` tokens takes `n - 1` positions. Documents
    longer than a row are cut into consecutive pieces of a row each; the rest goes where it fits best, largest first.
    Rows come in a fixed random order, so that the first rows are a fair sample.
    """
    starts, sizes = document_starts[:-1], np.diff(document_starts) - 1
    pieces_of = -(-sizes // row_length)
    document = np.repeat(np.arange(len(sizes)), pieces_of)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(pieces_of) - pieces_of, pieces_of)
    token_start = starts[document] + nth * row_length
    size = np.minimum(sizes[document] - nth * row_length, row_length)

    row, offset = _place(size, row_length, block_size)
    num_rows = int(row.max()) + 1
    row = np.random.default_rng(0).permutation(num_rows)[row]
    order = np.lexsort((offset, row))
    row_pieces = np.searchsorted(row[order], np.arange(num_rows + 1))
    return Packing(row_pieces, token_start[order], offset[order], size[order])


def _place(size: np.ndarray, row_length: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and offset of each piece: best fit, largest first."""
    row_blocks = row_length // block_size
    blocks = -(-size // block_size)
    shares = blocks < row_blocks
    row, offset = np.zeros(len(size), np.int64), np.zeros(len(size), np.int64)
    num_rows = int(np.count_nonzero(~shares))
    row[~shares] = np.arange(num_rows)
    sharing = np.flatnonzero(shares)
    sharing = sharing[np.argsort(-blocks[sharing], kind="stable")]
    open_rows: list[tuple[int, int]] = []  # (free blocks, row), sorted
    for piece, needed in zip(sharing.tolist(), blocks[sharing].tolist(), strict=True):
        best = bisect.bisect_left(open_rows, (needed, -1))
        if best < len(open_rows):
            free, target = open_rows.pop(best)
        else:
            free, target = row_blocks, num_rows
            num_rows += 1
        row[piece], offset[piece] = target, (row_blocks - free) * block_size
        if free > needed:
            bisect.insort(open_rows, (free - needed, target))
    return row, offset
