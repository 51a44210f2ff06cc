"""Rows that take part in a scan: those that are neither removed nor filtered out, as bits.

Bit r % 8 of byte r // 8 stands for row r; bits of rows that do not exist are 0. No bytes at all: every row.
"""

from typing import Any

from tqindex.kernels.compile import inner_kernel

_ROWS = 8


@inner_kernel
def next_rows(live: Any, row: int, stop: int, numbers: Any) -> tuple[int, int]:
    """Write the numbers of live rows from `row` on, before `stop`; returns how many, and the row to go on with.

    numbers : int64, as many as are wanted
    """
    wanted, count = numbers.shape[0], 0
    if live.shape[0] == 0:
        count = min(wanted, stop - row)
        for i in range(count):
            numbers[i] = row + i
        return count, row + count
    while row < stop and count < wanted:
        bits = live[row // _ROWS]
        if bits == 0:
            row = (row // _ROWS + 1) * _ROWS
            continue
        if (bits >> (row % _ROWS)) & 1:
            numbers[count] = row
            count += 1
        row += 1
    return count, row


@inner_kernel
def live_bits(live: Any, block: int) -> Any:
    """The live rows of a block of 8, as bits."""
    return live[block] if live.shape[0] > 0 else 2**_ROWS - 1
