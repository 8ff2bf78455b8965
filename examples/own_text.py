"""Train on your own text, generate, export: the example of the README as a script.

    python examples/own_text.py book.txt

2 minutes on 2 cores for a text of 500 KB. Prints the validation perplexity of every epoch and two
continuations, and leaves saved_models/own_text/1 for TensorFlow Serving.
"""

import sys

import keras

import keras_gpt2 as kg


def main(path: str, epochs: int = 4) -> None:
    tokenizer = kg.BytePairTokenizer.train(path, vocabulary_size=2048)
    train, validation = kg.data.text_datasets(path, tokenizer, sequence_length=128, batch_size=16)
    model = kg.GPT2(
        tokenizer.vocabulary_size,
        sequence_length=128,
        num_layers=4,
        num_heads=4,
        hidden_dim=128,
        dropout=0.0,
    )
    model.compile(
        optimizer=kg.training.adamw(model, 2e-3, total_steps=epochs * len(train), warmup_steps=20),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[kg.training.Perplexity()],
        jit_compile=True,
    )
    model.fit(train, validation_data=validation, epochs=epochs, shuffle=False)
    prompts = ["The", "It is"]
    for prompt, text in zip(
        prompts, kg.generate(model, tokenizer, prompts, temperature=0.8), strict=True
    ):
        print(f"--- {prompt}{text}")
    print(kg.serving.export(model, tokenizer, "saved_models/own_text"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/own_text.py TEXT_FILE")
    main(sys.argv[1])
