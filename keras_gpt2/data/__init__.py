"""From text files to the (inputs, targets) batches that `fit` takes."""

from keras_gpt2.data.datasets import text_datasets
from keras_gpt2.data.text_files import find_files
from keras_gpt2.data.unigram import unigram_perplexity
from keras_gpt2.data.windows import WindowDataset

__all__ = ["WindowDataset", "find_files", "text_datasets", "unigram_perplexity"]
