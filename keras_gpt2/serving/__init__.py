"""A trained model behind TensorFlow Serving."""

from keras_gpt2.serving.client import Client
from keras_gpt2.serving.export import export
from keras_gpt2.serving.saved_model import SavedModelClient

__all__ = ["Client", "SavedModelClient", "export"]
