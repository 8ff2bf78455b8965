"""The export that client tests ask; the same weights and tokenizer wherever it is made.

python -m tests.serving.small_export saved_models/small
"""

import sys

import keras_gpt2 as kg
from tests.conftest import TEXT, random_weights


def small_export(directory):
    """2 layers, 3 heads of width 5, 23 positions, 311 tokens -> the path of the version."""
    tokenizer = kg.BytePairTokenizer.train_from_iterator([TEXT * 3], 311)
    model = random_weights(kg.GPT2(311, 23, num_layers=2, num_heads=3, hidden_dim=15))
    return kg.serving.export(model, tokenizer, directory, max_new_tokens=7)


if __name__ == "__main__":
    print(small_export(sys.argv[1]))
