"""GPT-2's optimizer, from Keras's parts."""

from __future__ import annotations

from typing import Any

import keras

from keras_gpt2.training.devices import sum_over_devices

NO_DECAY = ("bias", "beta", "gamma", "embeddings")


@keras.saving.register_keras_serializable(package="keras_gpt2")
class AdamW(keras.optimizers.AdamW):
    """Keras clips the gradients of each device and then adds them up; this one adds them first."""

    def _clip_gradients(self, grads: Any) -> Any:
        return super()._clip_gradients(sum_over_devices(grads))

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


def adamw(
    model: keras.Model,
    learning_rate: float = 6e-4,
    total_steps: int = 10_000,
    warmup_steps: int = 100,
    final_learning_rate: float | None = None,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    beta_2: float = 0.95,
) -> keras.optimizers.AdamW:
    """AdamW with linear warm-up, cosine decay and clipping, that decays matrices only.

    Biases and the scales and shifts of normalizations are not decayed: pulling them to zero does
    not make the function simpler. Nor are the embeddings: each step meets only a few rows, while
    decay would shrink all of them, rare tokens to nothing.

    Args:
        model: a built model; its layers' names tell which weights are decayed.
        learning_rate: float > 0, the largest, reached after the warm-up.
        total_steps: int > warmup_steps, after which final_learning_rate holds.
        warmup_steps: int >= 0.
        final_learning_rate: float; a tenth of learning_rate if None.
        weight_decay: float >= 0, share of a weight taken off at each step, times the rate.
        clip_norm: float > 0, the largest norm of all gradients together; None for no limit.
        beta_2: float in (0, 1), memory of the squared gradients; steps of few tokens need more.

    Returns:
        A `keras.optimizers.AdamW` with beta_1 = 0.9.

    Raises:
        ValueError: if total_steps is not more than warmup_steps.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> adamw(model, total_steps=1000).weight_decay
        0.1

    Source: Loshchilov, Hutter 2019, "Decoupled Weight Decay Regularization"; beta_2, clipping and
    schedule from Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B.
    """
    if not total_steps > warmup_steps >= 0:
        raise ValueError(
            "total_steps must be more than warmup_steps, which must be at least 0. "
            f"Received: total_steps={total_steps}, warmup_steps={warmup_steps}."
        )
    if final_learning_rate is None:
        final_learning_rate = learning_rate / 10
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate / max(warmup_steps, 1),
        decay_steps=total_steps - warmup_steps,
        alpha=final_learning_rate / learning_rate,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    optimizer = AdamW(
        schedule,
        weight_decay=weight_decay,
        beta_2=beta_2,
        global_clipnorm=clip_norm,
    )
    optimizer.exclude_from_weight_decay(
        var_list=[v for v in model.trainable_variables if v.name in NO_DECAY]
    )
    return optimizer
