"""Tokenizers that show the package the face it asks for, and nothing more."""

import hashlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers


class ByteTokenizer:
    """Every byte of the UTF-8 text is its own id; 256 is the end of text."""

    def __init__(self, vocabulary_size=257, end_of_text_id=256, fingerprint="00"):
        self.vocabulary_size = vocabulary_size
        self.end_of_text_id = end_of_text_id
        self.fingerprint = fingerprint
        self.calls = 0

    def encode_batch(self, texts):
        self.calls += 1
        return [list(text.encode()) for text in texts]


class BytePairStandIn:
    """The `tokenizers` library as GPT-2 sets it up, trained on text with much whitespace."""

    end_of_text = "<|endoftext|>"

    def __init__(self, text, vocabulary_size=700):
        self.inner = tokenizers.Tokenizer(models.BPE())
        self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[self.end_of_text],
            show_progress=False,
        )
        self.inner.train_from_iterator([text], trainer)
        self.vocabulary_size = self.inner.get_vocab_size()
        self.end_of_text_id = self.inner.token_to_id(self.end_of_text)
        self.fingerprint = hashlib.sha256(self.inner.to_str().encode()).hexdigest()

    def encode_batch(self, texts):
        return [encoding.ids for encoding in self.inner.encode_batch_fast(texts)]
