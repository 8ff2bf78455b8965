"""Token ids in several arrays, read as one."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np


class ShardedIds:
    """Arrays of token ids, one after another, as one sequence with a length and slices.

    A slice is an array: a view where it lies in one shard, a copy where it crosses a border.

    Args:
        shards: at least one array of integers, shape (N_i,), for instance memory-mapped.

    Raises:
        ValueError: a slice with a step other than 1.

    >>> ids = ShardedIds([np.array([5, 6, 7]), np.array([8, 9])])
    >>> len(ids), ids[2:5].tolist()
    (5, [7, 8, 9])
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self.shards = [np.asarray(shard) for shard in shards]  # slices of a memmap itself are slow
        self._ends = list(accumulate(map(len, self.shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, places: slice) -> np.ndarray:
        views = self._views(places)
        return views[0] if len(views) == 1 else np.concatenate(views)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All ids in memory, for `np.asarray`."""
        return np.concatenate(self.shards, dtype=dtype)

    def split(self, place: int) -> "tuple[ShardedIds, ShardedIds]":
        """The ids before a place and those from it on, in the same memory."""
        return ShardedIds(self._views(slice(place))), ShardedIds(self._views(slice(place, None)))

    def _views(self, places: slice) -> list[np.ndarray]:
        start, stop, step = places.indices(len(self))
        if step != 1:
            raise ValueError(f"A slice's step must be 1. Received: step={step}.")
        stop = max(start, stop)
        views = []
        # Of the shards that end behind `start` the first, or else the last of all.
        first = bisect_right(self._ends, start, hi=len(self.shards) - 1)
        for shard, end in zip(self.shards[first:], self._ends[first:], strict=True):
            begin = end - len(shard)
            views.append(shard[max(start - begin, 0) : stop - begin])
            if stop <= end:
                break
        return views
