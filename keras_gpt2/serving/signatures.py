"""The functions that a server calls, as one TensorFlow module.

Rows in a server's batch belong to strangers: nothing here raises on bad values. A row that breaks
a rule gets its own finish_reason, the others their text.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import tensorflow as tf

from keras_gpt2.generation import (
    Decoded,
    Sampling,
    Vocabulary,
    checked_sampling,
    decode,
    sampling_rules,
)
from keras_gpt2.text import GraphTokenizer

STRINGS = tf.TensorSpec([None], tf.string)
INTS = tf.TensorSpec([None], tf.int32)
FLOATS = tf.TensorSpec([None], tf.float32)
TOKEN_IDS = tf.TensorSpec([None, None], tf.int32)

BUCKETS = [4**i for i in range(11)]  # numbers of rows, and of prompt tokens, that XLA compiles for
SHORTEST = 16  # prompt tokens in the least bucket


def _signature(function: Any, **specs: tf.TensorSpec) -> Any:
    """`function` traced once for these inputs, which a request names like this."""
    named = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()]
    return tf.function(function, input_signature=named, autograph=False)


class ServedGPT2(tf.Module):
    """A model, its tokenizer and the signatures over them; holds tf.Variables, no Keras object.

    Args:
        model: a built `keras_gpt2.GPT2` on the TensorFlow backend.
        kernels: tf.Variables that `model.reading_by_rows` was given.
        tokenizer: a `keras_gpt2.BytePairTokenizer`.
        defaults: the parameters of `serving_default`, one number each.
        limit: int, the most new tokens a request may ask for.
        num_draft_tokens: int, as in `decode`.
        jit_compile: bool; True decodes under XLA, in few shapes (`BUCKETS`), once compiled each.
    """

    def __init__(
        self,
        model: Any,
        kernels: dict[int, Any],
        tokenizer: Any,
        defaults: Sampling,
        limit: int,
        num_draft_tokens: int = 0,
        jit_compile: bool = False,
    ) -> None:
        super().__init__()
        # Tracked one by one and not through the model, which would store every weight twice.
        self.weights = [kernels.get(id(weight), weight.value) for weight in model.weights]
        self.tokenizer = GraphTokenizer(tokenizer)
        self.defaults = Sampling(*map(tf.constant, checked_sampling(limit, 1, *defaults)))
        self._vocabulary = Vocabulary.of(tokenizer, model)
        self._start_id = max(self._vocabulary.end_id, 0)
        self._model = _Untracked(model)
        self.limit = limit
        self._num_draft_tokens = num_draft_tokens
        self._jit_compile = jit_compile
        specs = [TOKEN_IDS, INTS, INTS, FLOATS, INTS, FLOATS, INTS]
        # Functions of their own, so that the graph holds each once, and measuring needs no other.
        self._continue = tf.function(
            self._decode, autograph=False, jit_compile=jit_compile or None
        ).get_concrete_function(*specs)
        self._hidden_states = tf.function(
            model.hidden_states, autograph=False
        ).get_concrete_function(TOKEN_IDS)

    def signatures(self) -> dict[str, Any]:
        """Signature name -> tf.function with named inputs and outputs."""
        defaults = self.defaults

        def generate(
            prompt: Any,
            max_new_tokens: Any = defaults.max_new_tokens,
            temperature: Any = defaults.temperature,
            top_k: Any = defaults.top_k,
            top_p: Any = defaults.top_p,
            seed: Any = defaults.seed,
        ) -> dict[str, Any]:
            parameters = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
            return self.generate(prompt, parameters)

        generate = _signature(
            generate,
            prompt=STRINGS,
            max_new_tokens=INTS,
            temperature=FLOATS,
            top_k=INTS,
            top_p=FLOATS,
            seed=INTS,
        )

        def serving_default(prompt: Any) -> dict[str, Any]:
            # The traced function again, so that the graph holds decoding once.
            return {"text": generate(prompt, *defaults)["text"]}

        return {
            "serving_default": _signature(serving_default, prompt=STRINGS),
            "generate": generate,
            "score": _signature(self.score, text=STRINGS),
            "logits": _signature(self.logits, token_ids=TOKEN_IDS),
            "tokenize": _signature(self.tokenize, text=STRINGS),
            "detokenize": _signature(self.detokenize, token_ids=TOKEN_IDS),
        }

    def generate(self, prompt: Any, parameters: Sampling) -> dict[str, Any]:
        """Prompts (B,) and parameters (B,) or (1,) -> text, num_tokens, log_prob, finish_reason,
        and whether only the end of the prompt was read."""
        batch = tf.shape(prompt)[0]
        parameters = Sampling(*(_broadcast(values, batch) for values in parameters))
        why = self._why_invalid(parameters)  # (B,), empty where all is well
        valid = tf.equal(why, "")
        safe = Sampling(
            tf.where(valid, parameters.max_new_tokens, 0),
            tf.where(valid, parameters.temperature, 0.0),
            tf.where(valid, parameters.top_k, 0),
            tf.where(valid, parameters.top_p, 1.0),
            parameters.seed,
        )
        rows = self.tokenizer.encode(prompt)
        room = tf.cast(self._model.sequence_length - safe.max_new_tokens, tf.int64)  # (B,)
        decoded = self.continue_ids(_right_aligned(rows, room, self._start_id), safe)
        ended = tf.equal(decoded.token_ids, self._vocabulary.end_id)
        reason = tf.where(decoded.ended, "end_of_text", "length")
        return {
            "text": self.tokenizer.decode(tf.where(ended, -1, decoded.token_ids)),
            "num_tokens": decoded.num_tokens,
            "log_prob": decoded.log_prob,
            "finish_reason": tf.where(valid, reason, tf.strings.join(["invalid: ", why])),
            "truncated": valid & (rows.row_lengths() > room),
        }

    def continue_ids(self, token_ids: Any, sampling: Sampling) -> Decoded:
        """Ids (B, P), aligned on their last, and valid parameters (B,) -> what `decode` gives."""
        batch = tf.shape(token_ids)[0]
        if self._jit_compile:
            more = _bucket(batch) - batch
            width = tf.shape(token_ids)[1]
            longest = self._model.sequence_length
            left = tf.minimum(_bucket(tf.maximum(width, SHORTEST)), longest) - width
            token_ids = tf.pad(token_ids, [[0, more], [left, 0]], constant_values=-1)
            # Rows more, which want no tokens; and always the same room.
            sampling = Sampling(*(tf.pad(values, [[0, more]]) for values in sampling))
            steps = tf.constant(self.limit)
        else:
            steps = tf.maximum(tf.reduce_max(sampling.max_new_tokens), 1)
        decoded = self._continue(token_ids, tf.zeros([steps], tf.int32), *sampling)
        return Decoded(*(values[:batch] for values in decoded))

    def _decode(self, token_ids: Any, places: Any, *parameters: Any) -> Decoded:
        # The number of steps comes as a shape, which XLA knows while it compiles.
        model = self._model.object
        with model.products_for_xla() if self._jit_compile else nullcontext():
            return decode(
                model,
                token_ids,
                Sampling(*parameters),
                tf.shape(places)[0],
                self._vocabulary,
                in_place=not self._jit_compile,
                num_draft_tokens=self._num_draft_tokens,
            )

    def score(self, text: Any) -> dict[str, Any]:
        """Texts (B,) -> log_prob, num_tokens, perplexity, each (B,).

        Every token after the first is scored given all before it; of a text longer than
        sequence_length, the tokens that fit.
        """
        length = self._model.sequence_length
        rows = self.tokenizer.encode(text)[:, :length]
        token_ids = rows.to_tensor(-1)  # (B, T)
        token_ids = tf.pad(token_ids, [[0, 0], [0, 1]], constant_values=-1)  # at least one
        token_ids = token_ids[:, :length]
        targets = tf.pad(token_ids[:, 1:], [[0, 0], [0, 1]], constant_values=-1)

        def row_log_prob(row: tuple[Any, Any]) -> Any:
            logits = self._project(row[0][None])[0, :, : self._vocabulary.size]  # (T, V)
            labels = tf.maximum(row[1], 0)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            return -tf.reduce_sum(tf.where(row[1] >= 0, losses, 0.0))

        # Row by row: the logits of a batch of long texts would fill a server's memory.
        rows_of_one = (self._hidden_states(token_ids), targets)
        log_prob = tf.map_fn(
            row_log_prob, rows_of_one, parallel_iterations=1, fn_output_signature=tf.float32
        )  # (B,)
        num_tokens = tf.reduce_sum(tf.cast(targets >= 0, tf.int32), axis=1)
        mean = tf.math.divide_no_nan(log_prob, tf.cast(num_tokens, tf.float32))
        return {"log_prob": log_prob, "num_tokens": num_tokens, "perplexity": tf.exp(-mean)}

    def logits(self, token_ids: Any) -> dict[str, Any]:
        """Ids (B, T), negative ones padding -> logits (B, T, V); NaN where an id is none."""
        return {"logits": self._project(self._hidden_states(token_ids))}

    def _project(self, hidden: Any) -> Any:
        return self._model.object.token_embedding(hidden, reverse=True)

    def tokenize(self, text: Any) -> dict[str, Any]:
        """Texts (B,) -> token_ids (B, T), -1 after a row's last, and num_tokens (B,)."""
        rows = self.tokenizer.encode(text)
        return {
            "token_ids": rows.to_tensor(-1),
            "num_tokens": tf.cast(rows.row_lengths(), tf.int32),
        }

    def detokenize(self, token_ids: Any) -> dict[str, Any]:
        """Ids (B, T), negative ones padding -> text (B,)."""
        return {"text": self.tokenizer.decode(token_ids)}

    def _why_invalid(self, given: Sampling) -> Any:
        """The first broken rule of each row, with the value; empty where there is none."""
        why = tf.fill(tf.shape(given.seed), "")
        rules = zip(Sampling._fields, given, sampling_rules(self.limit), strict=True)
        for name, values, (rule, words) in reversed(list(rules)):
            value = tf.strings.as_string(values)
            message = tf.strings.join([f"{name} must be {words}. Received: {name}=", value, "."])
            why = tf.where(rule(values), why, message)
        return why


class _Untracked:
    """Hides a Keras model from tf.Module, which would save what it finds."""

    def __init__(self, model: Any) -> None:
        self.object = model
        self.sequence_length = model.sequence_length


def _broadcast(values: Any, batch: Any) -> Any:
    """(B,) as it is, (1,) repeated for all rows."""
    return tf.cond(
        tf.equal(tf.shape(values)[0], batch),
        lambda: values,
        lambda: tf.broadcast_to(values, [batch]),
    )


def _bucket(size: Any) -> Any:
    """The least of BUCKETS that is no less than `size`."""
    return tf.gather(BUCKETS, tf.searchsorted(BUCKETS, [size])[0])


def _right_aligned(rows: Any, room: Any, start_id: int) -> Any:
    """The last `room` ids of each ragged row, -1 before them; an empty row starts at start_id."""
    ends = rows.row_splits[1:]
    lengths = tf.minimum(rows.row_lengths(), room)  # (B,)
    width = tf.maximum(tf.reduce_max(lengths), 1)
    place = tf.range(width) - width  # (P,), -P .. -1
    flat = tf.concat([rows.values, [start_id]], axis=0)
    here = ends[:, None] + place
    token_ids = tf.gather(flat, tf.clip_by_value(here, 0, tf.size(flat, tf.int64) - 1))
    token_ids = tf.where(place >= -lengths[:, None], token_ids, -1)
    start = tf.equal(lengths[:, None], 0) & tf.equal(place, -1)
    return tf.where(start, start_id, token_ids)  # (B, P)
