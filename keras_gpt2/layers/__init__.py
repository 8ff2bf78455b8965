"""GPT-2's parts as Keras layers, for any Keras model."""

from keras_gpt2.layers.dense import Dense
from keras_gpt2.layers.dot_product import dot_product_attention
from keras_gpt2.layers.embeddings import PositionEmbedding, TokenEmbedding
from keras_gpt2.layers.feed_forward import FeedForward
from keras_gpt2.layers.layer_normalization import LayerNormalization
from keras_gpt2.layers.residual_block import ResidualBlock
from keras_gpt2.layers.self_attention import CausalSelfAttention, OwnedCache, SelfAttention

__all__ = [
    "CausalSelfAttention",
    "Dense",
    "FeedForward",
    "LayerNormalization",
    "OwnedCache",
    "PositionEmbedding",
    "ResidualBlock",
    "SelfAttention",
    "TokenEmbedding",
    "dot_product_attention",
]
