"""Encoding on the device of what stays in host memory: vectors in and codes out, by pieces."""

from itertools import pairwise
from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK, row_places
from tqindex.gpu.encode import Encoder
from tqindex.gpu.rows import STREAMS, DeviceCodes
from tqindex.gpu.runtime import Runtime
from tqindex.kernels.rows import SIDES, StoredRows

#: Bytes of vectors that are encoded at a time, while the next are sent.
PIECE_BYTES = 8 * 2**20


def encode_to_host(runtime: Runtime, encoder: Encoder, rows: Any, out: StoredRows, first_row: int, at: int) -> None:
    """Encode rows, NumPy's or the device's, (n, dim), into host memory from row `at` of `out` on.

    Raises
    ------
    VectorError, ArgumentError
        As `Encoder.encode_rows`; messages count rows from `first_row`.
    """
    step = max(PIECE_BYTES // rows[:1].nbytes // BLOCK, 1) * BLOCK
    # Every piece but the first begins a block of `out`.
    cuts = [0, *range(step - at % BLOCK, len(rows), step), len(rows)]
    pieces = [slice(*cut) for cut in pairwise(cuts)]

    def send(turn: int) -> Any:
        with runtime.stream(turn % STREAMS):
            piece = rows[pieces[turn]]
            return runtime.upload(piece) if isinstance(rows, np.ndarray) else piece

    following = send(0)
    for turn, piece in enumerate(pieces):
        sent, n, target = following, piece.stop - piece.start, at + piece.start
        if turn + 1 < len(pieces):
            following = send(turn + 1)
        with runtime.stream(turn % STREAMS):
            codes = DeviceCodes.like(runtime, out, target % BLOCK + n)
            encoder.encode_rows(sent, codes, first_row + piece.start, target % BLOCK)
            _bring(runtime, codes, out, target, n)


def _bring(runtime: Runtime, codes: DeviceCodes, out: StoredRows, at: int, n: int) -> None:
    """Copy n rows to row `at` on; `codes` begins with the block that this row is in."""
    begun, first = at % BLOCK, at // BLOCK
    lead = runtime.download(codes.lead)
    if begun:  # earlier rows of the first block are in `out` already, and not in `codes`
        places = row_places(lead.shape[2] // BLOCK)[begun:]
        out.lead[:, first, places] = lead[:, 0, places]
        lead, first = lead[:, 1:], first + 1
    out.lead[:, first : first + lead.shape[1]] = lead
    for name in ("rest", *SIDES):
        target = getattr(out, name)
        if target.size:
            target[at : at + n] = runtime.download(getattr(codes, name)[begun : begun + n])
