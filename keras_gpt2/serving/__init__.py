"""A trained model behind TensorFlow Serving."""

from keras_gpt2.serving.client import Client, SavedModelClient
from keras_gpt2.serving.export import export

__all__ = ["Client", "SavedModelClient", "export"]
