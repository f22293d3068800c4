"""How long things take: counts in the buckets of a Prometheus histogram."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5,
    1.0, 2.0, 5.0,
)  # fmt: skip
"""Upper bounds, seconds; the usual ones of Prometheus begin at 5 ms, where most networks have long finished."""


class Histogram:
    """Counts of durations.

    Attributes:
        counts: for each of BUCKETS_S, and one for all that took longer; not cumulative.
        sum_s: of all durations, seconds.
    """

    __slots__ = ("counts", "sum_s")

    def __init__(self, counts: Sequence[int] = (0,) * (len(BUCKETS_S) + 1), sum_s: float = 0.0) -> None:
        self.counts = list(counts)
        self.sum_s = sum_s

    def add(self, seconds: float) -> None:
        """Count a duration; what is none is left out."""
        if 0.0 <= seconds < math.inf:
            self.counts[bisect_left(BUCKETS_S, seconds)] += 1
            self.sum_s += seconds

    def copy(self) -> Histogram:
        return Histogram(self.counts, self.sum_s)

    def since(self, earlier: Histogram) -> Histogram:
        """What was added after `earlier` was copied from this one."""
        counts = [now - then for now, then in zip(self.counts, earlier.counts, strict=True)]
        return Histogram(counts, max(0.0, self.sum_s - earlier.sum_s))

    @property
    def count(self) -> int:
        return sum(self.counts)

    def percentile_s(self, p: float) -> float:
        """About the p-th percentile: even spreading within a bucket is assumed; 5 s stands for all that is longer."""
        wanted = self.count * p / 100
        low = 0.0
        for bound, n, total in zip(BUCKETS_S, self.counts, accumulate(self.counts), strict=False):
            if n and total >= wanted:
                return low + (bound - low) * (wanted - (total - n)) / n
            low = bound
        return BUCKETS_S[-1] if self.count else 0.0
