"""GPT-2 in training: the same weights, without the logits of all positions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_gpt2.training.chunked_loss import TokenSums, chunked_loss
from keras_gpt2.training.metrics import Perplexity


class _Given(keras.losses.Loss):
    """A loss that is there already; Keras divides it among the replicas of a strategy."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


@keras.saving.register_keras_serializable(package="keras_gpt2")
class NextTokenModel(keras.Model):
    """Trains a GPT2's own weights on the cross-entropy of the next token, in less memory.

    `fit` and `evaluate` take the token ids and the same ids one place later, as the data of
    `GPT2` with `SparseCategoricalCrossentropy(from_logits=True)` are, and give the same loss and
    the same gradients; the logits exist for `chunk_size` positions at a time only. Targets that
    are negative, or whose input is padding, are left out. Beside the loss come `accuracy` and
    `perplexity`, both of the plain cross-entropy. To predict, generate or export, take `gpt2`.

    Args:
        gpt2: a `GPT2`; it is trained itself, not a copy.
        chunk_size: int >= 1, positions of which logits exist at a time, `4 chunk_size V` bytes
            under XLA and more without. If None 512 on a CPU, where more is no faster, and 2048
            elsewhere.
        label_smoothing: float in [0, 1), see `chunked_loss`.
        z_loss: float >= 0, see `chunked_loss`.

    Shapes: int32 token ids `(B, T)` -> final hidden states `(B, T, D)`.

    Raises:
        ValueError: if an argument is out of range or gpt2 is quantized; at `compile`, if a loss or
            metrics are given; at `fit` on arrays, what `GPT2.fit` raises.

    Example:
        >>> from keras_gpt2 import GPT2
        >>> ids = keras.ops.ones((2, 9), "int32")
        >>> model = NextTokenModel(GPT2(11, 8, num_layers=1, num_heads=1, hidden_dim=4))
        >>> model.compile("adam")
        >>> logs = model.fit(ids[:, :-1], ids[:, 1:], verbose=0).history
        >>> sorted(logs)
        ['accuracy', 'loss', 'perplexity']

    Source: see `chunked_loss`.
    """

    def __init__(
        self,
        gpt2: Any,
        chunk_size: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # Keras scales the loss of a model whose policy is mixed_float16. The layers cast by their
        # own policy; a cast of all weights here would round the gradients of the embeddings.
        super().__init__(dtype=gpt2.model_dtype_policy, autocast=False, **kwargs)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1. Received: chunk_size={chunk_size}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1). Received: label_smoothing={label_smoothing}."
            )
        if z_loss < 0:
            raise ValueError(f"z_loss must be at least 0. Received: z_loss={z_loss}.")
        if gpt2.weights_type != "float":
            raise ValueError(
                "A model must be trained before its weights are made narrow. "
                f"Received: {gpt2.weights_type} weights."
            )
        self.gpt2 = gpt2
        self.chunk_size = chunk_size
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.accuracy = keras.metrics.Mean(name="accuracy")
        self.perplexity = Perplexity()
        self.built = True

    def compile(self, optimizer: Any = "adamw", **kwargs: Any) -> None:
        """`keras.Model.compile`; the loss and the metrics are the model's own."""
        for name in ("loss", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} must not be given: NextTokenModel has its own. "
                    f"Received: {name}={kwargs[name]}."
                )
        super().compile(optimizer, **kwargs)
        # Built inside the first step, as Keras would, its variables would exist twice for a while.
        self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def call(self, token_ids: Any, training: bool | None = None) -> Any:
        # Given by name: in `fit` on JAX, Keras calls this without the context that layers ask.
        return self.gpt2.hidden_states(token_ids, training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        targets = ops.where(ops.cast(x, "int32") >= 0, ops.cast(y, "int32"), -1)  # (B, T)
        if sample_weight is not None:
            while len(sample_weight.shape) < 2:
                sample_weight = ops.expand_dims(sample_weight, -1)
            sample_weight = ops.broadcast_to(sample_weight, ops.shape(targets))
        loss, sums = chunked_loss(
            y_pred,
            self.gpt2.token_embedding.output_matrix(),
            targets,
            sample_weight,
            self.chunk_size,
            self.label_smoothing,
            self.z_loss,
            training=training,
            train_matrix=self.gpt2.token_embedding.output_weight.trainable,
        )
        self._update(sums)
        return _Given(name="given")(ops.zeros((1,)), ops.expand_dims(loss, 0))

    def _update(self, sums: TokenSums) -> None:
        for metric, total in (
            (self.accuracy, sums.correct),
            (self.perplexity, sums.cross_entropy),
        ):
            mean = total / ops.maximum(sums.weight, keras.config.epsilon())
            keras.metrics.Mean.update_state(metric, mean, sums.weight)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.fit`, after the look at the token ids that `GPT2.fit` takes."""
        self.gpt2.check_data(x)
        return super().fit(x, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "gpt2": keras.saving.serialize_keras_object(self.gpt2),
            "chunk_size": self.chunk_size,
            "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> NextTokenModel:
        gpt2 = keras.saving.deserialize_keras_object(config["gpt2"], custom_objects)
        return cls(**{**config, "gpt2": gpt2})
