"""Whether an index is worth building: what index="auto" of the miner asks.

For Q queries and N rows on the CPU, in nanoseconds, as measured on two cores at N = 100 000 and D = 128 (all three grow
with D, and fall with cores, alike):

    exact   e Q N                        e = 0.65 with products in bfloat16, 1.5 in float32
    index   155 N^1.5 + 475 Q √N         4√N lists: k-means, and the search of 128 of them for a recall of 0.99

So below 530 000 rows (100 000 in float32) no number of queries makes up for the index; at 5 million rows, 800 000 do.
"""

from __future__ import annotations

import math

EXACT_HALF, EXACT_SINGLE = 0.65, 1.5
BUILD, PROBE = 155.0, 475.0


def index_pays(queries: int, rows: int, half: bool) -> bool:
    """Whether building an index over the rows and searching it takes less time than exact search.

    Args:
        half: products in bfloat16 are fast.
    """
    exact = (EXACT_HALF if half else EXACT_SINGLE) * queries * rows
    return exact > BUILD * rows**1.5 + PROBE * queries * math.sqrt(rows)
