"""GPT-2 as a functional Keras model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_gpt2.layers import (
    CausalSelfAttention,
    Dense,
    FeedForward,
    LayerNormalization,
    OwnedCache,
    PositionEmbedding,
    ResidualBlock,
    TokenEmbedding,
)
from keras_gpt2.layers.dense import kernels_by_rows, reading_by_rows
from keras_gpt2.layers.device import for_xla
from keras_gpt2.layers.narrow import check_plain, few_rows
from keras_gpt2.models import layout, lora
from keras_gpt2.models.presets import PRESETS

WEIGHTS_TYPES = ("float", "bfloat16", "int8")
Cache = Sequence[tuple[Any, ...]]


def _normal(stddev: float) -> keras.initializers.Initializer:
    # A new object each time: one initializer object gives the same numbers at every call.
    return keras.initializers.RandomNormal(stddev=stddev)


@keras.saving.register_keras_serializable(package="keras_gpt2")
class GPT2(keras.Model):
    """Predicts every token of a text from the tokens before it.

    `logits = E norm(block_n(... block_1(E[ids] + P)))^T`, each block a causal self-attention and a
    feed-forward network, both residual with normalization before.

    Args:
        vocabulary_size: int, V.
        sequence_length: int, the most positions the model can see.
        num_layers: int, number of blocks.
        num_heads: int, H; must divide hidden_dim.
        hidden_dim: int, D.
        intermediate_dim: int, width inside the feed-forward networks; 4 D if None.
        dropout: float in [0, 1), of the embeddings, attention weights and residual branches.
        activation: the feed-forward networks' activation.
        epsilon: float > 0, of all layer normalizations.
        tie_weights: bool; False gives the output product a matrix of its own.
        rematerialize: bool; in training, keeps the input of each block only and computes the rest
            again in the backward pass: less memory, about a third more time.
        attention_class: class called as `CausalSelfAttention` is; registered with Keras if the
            model is to be saved.
        block_class: class called as `ResidualBlock` is; registered likewise.
        **kwargs: `dtype` (a policy for all layers), `name`, `trainable`.

    Shapes: int32 token ids `(B, T)` -> float32 logits `(B, T, V)`. Negative ids are padding.

    Raises:
        ValueError: if num_heads does not divide hidden_dim, or a size is less than 1; at a call,
            if T is more than sequence_length; at an eager call or `fit` on arrays, if an id is V
            or more (compiled code gives NaN for it).

    Example:
        >>> model = GPT2(101, sequence_length=8, num_layers=1, num_heads=2, hidden_dim=4)
        >>> model(keras.ops.array([[5, 7, 100]])).shape
        TensorShape([1, 3, 101])

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section
    2.3; OpenAI's gpt-2 `src/model.py`. Initialisation: normal(0.02) for kernels and tokens,
    normal(0.01) for positions (`model.py`), and the kernels that end a residual branch divided by
    the square root of their number, 2 num_layers (section 2.3).
    """

    def __init__(
        self,
        vocabulary_size: int,
        sequence_length: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int | None = None,
        dropout: float = 0.1,
        activation: Any = "gelu_tanh",
        epsilon: float = 1e-5,
        tie_weights: bool = True,
        rematerialize: bool = False,
        attention_class: type | str | None = None,
        block_class: type | str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        sizes = dict(
            vocabulary_size=vocabulary_size,
            sequence_length=sequence_length,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim or 4 * hidden_dim,
        )
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1. Received: {name}={size}.")
        if hidden_dim % num_heads:
            raise ValueError(
                "num_heads must divide hidden_dim. "
                f"Received: num_heads={num_heads}, hidden_dim={hidden_dim}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1). Received: dropout={dropout}.")
        attention_class = _registered(attention_class) or CausalSelfAttention
        block_class = _registered(block_class) or ResidualBlock
        dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        residual_stddev = 0.02 * (2 * num_layers) ** -0.5

        # Layers
        self.token_embedding = TokenEmbedding(
            vocabulary_size,
            hidden_dim,
            tie_weights=tie_weights,
            embeddings_initializer=_normal(0.02),
            dtype=dtype,
            name="token_embedding",
        )
        self.position_embedding = PositionEmbedding(
            sequence_length, _normal(0.01), dtype=dtype, name="position_embedding"
        )
        self.embedding_dropout = keras.layers.Dropout(
            dropout, dtype=dtype, name="embedding_dropout"
        )
        self.attention_blocks: list[keras.layers.Layer] = []
        self.feed_forward_blocks: list[keras.layers.Layer] = []
        for i in range(num_layers):
            attention = attention_class(
                num_heads,
                dropout=dropout,
                kernel_initializer=_normal(0.02),
                output_initializer=_normal(residual_stddev),
                dtype=dtype,
                name="attention",
            )
            feed_forward = FeedForward(
                sizes["intermediate_dim"],
                activation,
                kernel_initializer=_normal(0.02),
                output_initializer=_normal(residual_stddev),
                dtype=dtype,
                name="feed_forward",
            )
            for blocks, layer in (
                (self.attention_blocks, attention),
                (self.feed_forward_blocks, feed_forward),
            ):
                blocks.append(
                    block_class(
                        layer,
                        dropout=dropout,
                        epsilon=epsilon,
                        dtype=dtype,
                        name=f"{layer.name}_{i}",
                        **({"rematerialize": True} if rematerialize else {}),
                    )
                )
        self.final_norm = LayerNormalization(epsilon, dtype=dtype, name="final_norm")

        # Functional model
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        hidden, _ = self._hidden_states(token_ids)
        logits = self.token_embedding(hidden, reverse=True)
        super().__init__(inputs=token_ids, outputs=logits, **kwargs)

        # Config
        self.vocabulary_size = vocabulary_size
        self.sequence_length = sequence_length
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = sizes["intermediate_dim"]
        self.dropout = dropout
        self.epsilon = epsilon
        self.tie_weights = tie_weights
        self.rematerialize = rematerialize
        self.activation = activation
        self.attention_class = attention_class
        self.block_class = block_class
        self.model_dtype_policy = dtype

    def _hidden_states(
        self,
        token_ids: Any,
        cache: Cache | None = None,
        position: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, Cache]:
        """The order of the layers: ids (B, T) -> final hidden states (B, T, D) and the cache."""
        cached = {} if cache is None else {"position": position, "mask": mask}
        x = self.token_embedding(token_ids)  # (B, T, D)
        x = self.position_embedding(x, **cached)
        x = self.embedding_dropout(x, training=training)
        new_cache: list[tuple[Any, Any]] = []
        for i, (attention, feed_forward) in enumerate(
            zip(self.attention_blocks, self.feed_forward_blocks, strict=True)
        ):
            if cache is None:
                x = attention(x, training=training)
            else:
                x, layer_cache = attention(x, cache=cache[i], **cached)
                new_cache.append(layer_cache)
            x = feed_forward(x, training=training)
        return self.final_norm(x), new_cache

    def hidden_states(self, token_ids: Any, training: bool | None = None) -> Any:
        """What the output product is applied to: ids `(B, T)` -> normalized `(B, T, D)`."""
        return self._hidden_states(token_ids, training=training)[0]

    def extend_cache(self, cache: Cache, places: Any, owned: bool = False) -> Cache:
        """`cache` with more places at its end.

        `owned` promises that only the newest of the caches that come from it will be read; then a
        TensorFlow graph writes into it where it lies, several times as fast. Not for XLA, which
        does so by itself.
        """
        batch, heads, _, width = ops.shape(cache[0][0])
        room = ops.zeros((batch, heads, places, width), cache[0][0].dtype)
        pair = OwnedCache if owned else lambda key, value: (key, value)

        def longer(tensor: Any) -> Any:
            return ops.concatenate([tensor, room], axis=2)

        return [pair(longer(key), longer(value)) for key, value in cache]

    def call_with_cache(
        self,
        token_ids: Any,
        cache: Cache | None = None,
        position: Any = None,
        mask: Any = None,
        every: bool = False,
    ) -> tuple[Any, Cache]:
        """Logits of the last position, and the cache with these positions written into it.

        Args:
            token_ids: int32 `(B, T)`, at the places position .. position + T - 1.
            cache: what `extend_cache` or the last call gave: for each layer a pair of key and value
                `(B, H, S, K)`. None: T places are all.
            position: int scalar; None where there is no cache.
            mask: bool `(B, S)`, False at the places that hold padding; None likewise.
            every: bool; True gives the logits of all T positions.

        Returns:
            float32 logits `(B, V)`, or `(B, T, V)`, and the new cache. Both equal the model's own
            on the whole text, to rounding.
        """
        before = [()] * self.num_layers if cache is None else cache
        hidden, cache = self._hidden_states(token_ids, before, position, mask)
        if every:
            return self.token_embedding(hidden, reverse=True), cache
        logits = self.token_embedding(hidden[:, -1:], reverse=True)  # (B, 1, V)
        return logits[:, 0], cache

    def enable_lora(self, rank: int, targets: Sequence[str] = lora.TARGETS) -> int:
        """Freezes the model, but for a product `A B` of rank `rank` added to each target kernel.

        Keras's `enable_lora`, layer by layer, before `compile`. What is saved or exported has the
        products added to the kernels; `merge_lora` does so for good.

        Args:
            rank: int >= 1; A has shape `(inputs, rank)`, and B, `(rank, outputs)`, begins as 0.
            targets: names of layers, some of `"query_key_value"`, `"output_projection"` (of the
                attention), `"expand"` and `"project"` (of the feed-forward networks).

        Returns:
            The count of numbers that are trained now.

        Raises:
            ValueError: if an argument breaks its rule, LoRA is enabled or the weights are narrow.

        Example:
            >>> GPT2.from_preset("gpt2-tiny").enable_lora(2, ["query_key_value"])
            1024

        Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
        """
        return lora.enable_lora(self, rank, targets)

    def merge_lora(self) -> None:
        """Adds what LoRA has learnt to the kernels; the model is as without it, and trainable."""
        lora.merge_lora(self)

    def quantize(self, mode: str, **kwargs: Any) -> None:
        """`keras.Model.quantize`: `"int8"` makes the matrices a quarter of their size.

        Every product keeps one scale per output and takes float inputs; position embeddings,
        biases and normalizations stay as they are. See `keras_gpt2.layers.narrow` for when it is
        fast. There is no way back.

        Raises:
            ValueError: if mode is another one, or LoRA is not merged.
        """
        if mode != "int8":
            raise ValueError(f"mode must be 'int8'. Received: mode={mode!r}.")
        self._narrowable()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a `quantize` method.*")
            super().quantize(mode, **kwargs)

    def to_bfloat16(self) -> None:
        """Keeps the matrices in bfloat16: half their size, for good; everything else as it is.

        Inputs of all products stay float, so that only the weights are rounded.

        Raises:
            ValueError: if the weights are narrow already, or LoRA is not merged.
        """
        for layer in self._narrowable():
            layer.to_bfloat16()
        self.train_function = self.test_function = self.predict_function = None

    def _narrowable(self) -> list[Any]:
        """The layers with matrices, all of which can be made narrow; none is if one cannot."""
        layers = [x for x in self._flatten_layers() if isinstance(x, (Dense, TokenEmbedding))]
        for layer in layers:
            check_plain(layer)
        return layers

    def kernels_by_rows(self) -> dict[int, Any]:
        """Copies of the kernels for `reading_by_rows`; see `layers/dense.py`."""
        return kernels_by_rows(self)

    def kernels_for_xla(self, rows: int | None) -> dict[int, Any]:
        """The same where XLA's products of `rows` are faster with them; else none."""
        return kernels_by_rows(self) if few_rows(rows) else {}

    def reading_by_rows(self, copies: dict[int, Any]) -> Any:
        """The context in which this thread reads `copies` instead of the kernels."""
        return reading_by_rows(copies)

    def products_for_xla(self) -> Any:
        """The context in which this thread makes graphs for XLA; see `layers/device.py`."""
        return for_xla()

    @property
    def weights_type(self) -> str:
        """`"float"`; `"int8"` after `quantize("int8")`, `"bfloat16"` after `to_bfloat16()`."""
        return self.token_embedding.quantization_mode or (
            "bfloat16" if self.token_embedding.in_bfloat16 else "float"
        )

    def narrow(self, weights_type: str) -> None:
        """Makes float weights `"int8"` or `"bfloat16"`; raises ValueError where it cannot."""
        if weights_type not in WEIGHTS_TYPES:
            raise ValueError(
                f"weights must be one of {', '.join(WEIGHTS_TYPES)}. Received: {weights_type!r}."
            )
        if self.weights_type not in ("float", weights_type):
            raise ValueError(
                f"{self.weights_type} weights cannot become {weights_type}: start from the float "
                "model."
            )
        if self.weights_type == weights_type:
            return
        if weights_type == "int8":
            self.quantize("int8")
        else:
            self.to_bfloat16()

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.fit`, after `check_data`."""
        self.check_data(x)
        return super().fit(x, *args, **kwargs)

    def check_data(self, x: Any) -> None:
        """Raises ValueError if data for `fit` do not fit the model.

        Arrays are checked whole, a `keras.utils.PyDataset` by its first batch: what compiled code
        could only answer with NaN is an error here.
        """
        batch = x[0] if isinstance(x, keras.utils.PyDataset) else x
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        if hasattr(batch, "__array__"):
            ids = ops.convert_to_numpy(batch)
            self.token_embedding.check(ids)
            if ids.shape[1] > self.sequence_length:
                raise ValueError(
                    "token_ids must have at most sequence_length positions. "
                    f"Received: {ids.shape[1]}, sequence_length={self.sequence_length}."
                )

    @staticmethod
    def layout_map(device_mesh: Any, axis: str = "model") -> Any:
        """Where the weights lie if `keras.distribution.ModelParallel` splits a GPT2 over devices.

        Args:
            device_mesh: `keras.distribution.DeviceMesh`.
            axis: name of its axis over which matrices are split; the axis' size must divide
                hidden_dim and intermediate_dim.

        Returns:
            A `keras.distribution.LayoutMap`. Normalizations and the biases behind a sum over
            devices are on all of them.

        Raises:
            ValueError: if the mesh has no such axis.

        Example:
            >>> mesh = keras.distribution.DeviceMesh((1, 8), ["batch", "model"])  # doctest: +SKIP
            >>> layouts = GPT2.layout_map(mesh)  # doctest: +SKIP
            >>> split = keras.distribution.ModelParallel(layout_map=layouts)  # doctest: +SKIP
            >>> keras.distribution.set_distribution(split)  # doctest: +SKIP

        Source: Shoeybi et al. 2019, "Megatron-LM", section 3.
        """
        return layout.layout_map(device_mesh, axis)

    @classmethod
    def from_preset(cls, preset: str | Path, load_weights: bool = True, **overrides: Any) -> GPT2:
        """The model of a published size, or of a directory.

        Args:
            preset: `"gpt2"`, `"gpt2-medium"`, `"gpt2-large"`, `"gpt2-xl"`, `"gpt2-tiny"`, or a
                directory that holds `model.keras` or a foreign checkpoint.
            load_weights: bool; False gives random weights. `"gpt2-tiny"` has none to load.
            **overrides: arguments of `GPT2` that replace the preset's (random weights only).

        Raises:
            ValueError: if the preset is unknown, or arguments would not fit its weights.

        Example:
            >>> GPT2.from_preset("gpt2-tiny", vocabulary_size=257).count_params()
            124736
        """
        if preset in PRESETS and (not load_weights or preset == "gpt2-tiny"):
            return cls(**{**PRESETS[str(preset)], **overrides})
        from keras_gpt2.models import checkpoints

        if overrides:
            raise ValueError(
                "Arguments can replace a preset's only with load_weights=False. "
                f"Received: preset={str(preset)!r}, {overrides}."
            )
        return checkpoints.load(preset, load_weights)

    def get_config(self) -> dict[str, Any]:
        activation = self.activation
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.model_dtype_policy),
            "vocabulary_size": self.vocabulary_size,
            "sequence_length": self.sequence_length,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "activation": activation
            if isinstance(activation, str)
            else keras.activations.serialize(activation),
            "epsilon": self.epsilon,
            "tie_weights": self.tie_weights,
            "rematerialize": self.rematerialize,
            "attention_class": keras.saving.get_registered_name(self.attention_class),
            "block_class": keras.saving.get_registered_name(self.block_class),
            "weights_type": self.weights_type,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GPT2:
        config = dict(config)
        weights_type = config.pop("weights_type", "float")
        with keras.saving.CustomObjectScope(custom_objects or {}):
            if isinstance(config.get("dtype"), dict):
                config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
            model = cls(**config)
        model.narrow(weights_type)
        return model


def _registered(layer_class: type | str | None) -> type | None:
    """The class itself, or the one registered with Keras under a name."""
    if not isinstance(layer_class, str):
        return layer_class
    found = keras.saving.get_registered_object(layer_class)
    if found is None:
        raise ValueError(
            "A custom layer class must be registered with "
            "keras.saving.register_keras_serializable before its model is loaded. "
            f"Received: {layer_class!r}."
        )
    return found
