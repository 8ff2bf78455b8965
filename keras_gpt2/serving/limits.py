"""How many new tokens a request may ask for, so that a server answers in time."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import Any, NamedTuple

import tensorflow as tf

from keras_gpt2.generation import Sampling

REST_SECONDS = 30.0  # that TensorFlow Serving gives a request unless it is told otherwise
SECONDS = REST_SECONDS / 2  # rows that it merges with others take longer


class Speed(NamedTuple):
    """What one row takes on the machine that measured it."""

    prompt: float  # seconds to read a prompt that fills the context
    token: float  # seconds for a new token

    def seconds(self, new_tokens: int, sequence_length: int) -> float:
        """The longest that a request for one prompt and up to `new_tokens` takes."""
        share = 1 - new_tokens / sequence_length
        return max(self.prompt, share * self.prompt + new_tokens * self.token)

    def limit(self, sequence_length: int) -> int:
        """The most new tokens within SECONDS; at least 64, as far as there is room for them."""
        fits = bisect_right(
            range(1, sequence_length), SECONDS, key=lambda n: self.seconds(n, sequence_length)
        )
        return max(fits, min(64, sequence_length - 1))


def measure_speed(served: Any, sequence_length: int) -> Speed:
    """Times a `ServedGPT2` here and now, each call three times; the least counts."""

    def seconds(prompt: int, new_tokens: int) -> tuple[float, int]:
        """And how many tokens came: so hot that hardly ever a row ends early."""
        values = (new_tokens, 1000.0, 0, 0.95, 0)
        sampling = Sampling(*(tf.constant([value]) for value in values))
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            decoded = served.continue_ids(tf.zeros([1, prompt], tf.int32), sampling)
            count = int(decoded.num_tokens[0])
            taken.append(time.perf_counter() - start)
        return min(taken), count

    steps = min(16, sequence_length - 1)
    prompt = sequence_length - steps  # the last tokens, which see the most, take longest
    one, _ = seconds(prompt, 1)
    several, count = seconds(prompt, steps)
    return Speed(one, max(several - one, 0.0) / max(count - 1, 1))
