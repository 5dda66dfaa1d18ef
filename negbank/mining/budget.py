"""What a run may take: queries and corpus rows held at once under a memory budget, and whether an index is worth it.

The budget is for the whole process: what it holds already (Python, torch, the arrays it was given) counts. For Q
queries and N rows on the CPU, in nanoseconds, as measured on two cores at N = 100 000 and D = 128 (all three grow with
D, and fall with cores, alike):

    exact   e Q N                        e = 0.65 with products in bfloat16, 1.5 in float32
    index   155 N^1.5 + 475 Q √N         4√N lists: k-means, and the search of 128 of them for a recall of 0.99

So below 530 000 rows (100 000 in float32) no number of queries makes up for an index; at 5 million rows, 800 000 do.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch

from negbank.mining.search import TILE, TOGETHER, half_is_fast, room

BLOCK_ROWS = 16_384
PART_QUERIES = 8192
SMALLEST = 256
SLACK = 1.5
"""Allocators keep what they freed; estimates are multiplied by this."""
LIBRARIES = 96 << 20
"""What kernels and libraries take at their first use; those of compiled loops most of it."""
EXACT_HALF, EXACT_SINGLE = 0.65, 1.5
BUILD, PROBE = 155.0, 475.0
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Plan(NamedTuple):
    """Queries of a part, corpus rows of a block, and the bytes that may go into a resident copy of the corpus."""

    queries: int
    rows: int
    resident: int


def parse_size(budget: int | str) -> int:
    """Bytes of a budget such as 2_000_000_000, "2GB", "1.5 GiB" or "800M"; units are powers of 1024.

    Raises:
        ValueError: for anything else, or nothing above 0.
    """
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(?:i?B)?\s*", budget, re.IGNORECASE)
        try:
            size = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
        except ValueError:
            size = 0
    else:
        size = int(budget)
    if size <= 0:
        raise ValueError(f"memory_budget={budget!r}: expected bytes, or a string such as '2GB'")
    return size


def plan(
    budget: int | None, queries: int, rows: int, dim: int, depth: int, kept: int, query_batch: int | None, near: bool
) -> Plan:
    """Fit parts and blocks into what is left of the budget; without a budget, sizes that are fast.

    Args:
        depth: candidates a query.
        kept: bytes of results that stay in memory; 0 where they go to disk.
        query_batch: queries of a part, if the user says so.
        near: candidates are compared with each other.

    Raises:
        ValueError: when not even the smallest sizes fit, saying what would.
    """
    part, block = min(query_batch or PART_QUERIES, queries), min(BLOCK_ROWS, rows)
    if budget is None:
        return Plan(part, block, 1 << 30)
    held = resident_bytes()
    while True:
        need = LIBRARIES + kept + SLACK * _bytes(part, block, rows, dim, depth, near)
        if held + need <= budget:
            return Plan(part, block, max(0, int((budget - held - need) / SLACK)))
        if part > SMALLEST and (query_batch is None or block <= SMALLEST):
            part = max(SMALLEST, part // 2)
        elif block > SMALLEST:
            block = max(SMALLEST, block // 2)
        else:
            remedy = "raise it, or give `out`" if kept else "raise it"
            raise ValueError(
                f"memory_budget={budget}: the process holds {held} bytes, mining needs {int(need)} more; {remedy}"
            )
        if part <= SMALLEST < block:
            block = max(SMALLEST, block // 2)


def index_pays(queries: int, rows: int, half: bool | None = None) -> bool:
    """Whether building an index over the rows and searching it takes less time than exact search.

    Args:
        half: products in bfloat16 are fast; as this processor has it by default.
    """
    exact = (EXACT_HALF if (half_is_fast() if half is None else half) else EXACT_SINGLE) * queries * rows
    return exact > BUILD * rows**1.5 + PROBE * queries * math.sqrt(rows)


def _bytes(part: int, block: int, rows: int, dim: int, depth: int, near: bool) -> int:
    """An upper estimate of what a part allocates at its peak."""
    wide = room(min(depth, rows), rows)
    reading = block * dim * (8 + 4 + 4 + 2)
    scoring = torch.get_num_threads() * (TILE * 8 + min(TOGETHER, part) * wide * 48)
    kept = part * (wide * 8 + depth * 12 * 4 + dim * 12)
    pairs = min(part, 256) * depth * (dim * 8 + depth * 8) if near else 0
    return reading + scoring + kept + pairs


def resident_bytes() -> int:
    """What the process holds in memory now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    import resource

    return pages * resource.getpagesize()
