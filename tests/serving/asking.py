"""What every client must answer alike: behind a stand-in, behind the real server, on disk."""

import numpy as np
import pytest

PROMPTS = ["The king", "", "Ärger 漢", "a\0b", b"\xff\xfe broken"]


class AskingTests:
    """The module gives `client` and `on_disk`, a SavedModelClient of the same export."""

    def test_generate(self, client, on_disk):
        parameters = dict(
            max_new_tokens=[7, 5, 0, 7, 7],
            temperature=np.array([0, 1, 1, 2, 0.5], "float32"),
            top_k=[0, 3, 0, 0, 40],
            top_p=0.9,
            seed=np.int64(3),
        )
        texts = client.generate(PROMPTS, **parameters)
        assert texts == on_disk.generate(PROMPTS, **parameters)
        assert texts[2] == "" and all(texts[i] for i in (0, 1, 3, 4))
        assert client.generate(PROMPTS[0], 7, 0) == texts[:1]
        assert client.generate([]) == []

    @pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), float("-inf")])
    def test_a_row_that_breaks_a_rule(self, client, bad):
        words = rf"temperature must be a number >= 0. Received: temperature={bad:.0f}.*prompt 1\)"
        with pytest.raises(ValueError, match=words):
            client.generate(["a", "b"], max_new_tokens=5, temperature=[1, bad])

    def test_score(self, client, on_disk):
        texts = ["The king is dead", "", "long live the king! " * 5]
        scores, expected = client.score(texts), on_disk.score(texts)
        assert [s.num_tokens for s in scores] == [e.num_tokens for e in expected]
        for score, other in zip(scores, expected, strict=True):
            assert score.log_prob == pytest.approx(other.log_prob, rel=1e-5)
            assert score.perplexity == pytest.approx(other.perplexity, rel=1e-5)
        assert scores[0].log_prob < 0 == scores[1].num_tokens
        assert client.score("The king is dead") == client.score(texts[:1])
        assert client.score([]) == []

    def test_logits(self, client, on_disk):
        rows = [[5, 7, 300], [], [1, 2, 3, 4, 5]]
        logits = client.logits(rows)
        for row, mine, other in zip(rows, logits, on_disk.logits(rows), strict=True):
            assert mine.shape == (len(row), 311) and mine.dtype == np.float32
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
        assert client.logits([]) == []
        np.testing.assert_allclose(client.logits(rows[:1])[0], logits[0], rtol=1e-4, atol=1e-4)
        assert np.isnan(client.logits([[400]])[0]).all(), "the server writes NaN as it is"

    def test_tokenize_and_detokenize(self, client, on_disk):
        texts = ["The king's 漢字", "", "a\n\nb\0c <|endoftext|>", '"\\ \u2028']
        ids = client.tokenize(texts)
        assert ids == on_disk.tokenize(texts)
        assert [len(i) for i in ids] == [len(client.tokenize(t)[0]) for t in texts]
        assert client.detokenize(ids) == texts
        assert client.detokenize(client.tokenize(b"a\xffb")) == ["a\ufffdb"]
        assert client.tokenize("a\udcffb") == client.tokenize(b"a\xffb"), "as sys.argv has it"
        assert client.detokenize(client.tokenize("\ud800")) == ["\ufffd" * 3]
        assert client.tokenize([]) == client.detokenize([]) == []

    def test_any_signature_by_name(self, client, on_disk):
        outputs = client.predict("serving_default", {"prompt": ["The king", "A"]})
        expected = on_disk.predict("serving_default", {"prompt": ["The king", "A"]})
        assert list(outputs) == ["text"] and outputs["text"].tolist() == expected["text"].tolist()
        inputs = dict(
            prompt=["a", "b"],
            max_new_tokens=np.array([3, 99], "int32"),
            temperature=[1, 1],
            top_k=[0, 0],
            top_p=[1, 1],
            seed=[1, 1],
        )
        outputs = client.predict("generate", inputs)
        dtypes = dict(
            text="O", num_tokens="int32", log_prob="float32", finish_reason="O", truncated="bool"
        )
        assert {name: values.dtype for name, values in outputs.items()} == dtypes
        assert outputs["num_tokens"].tolist() == [3, 0]
        assert outputs["finish_reason"][0] == "length"
        assert outputs["finish_reason"][1].startswith("invalid: max_new_tokens must be")
        with pytest.raises((RuntimeError, ValueError), match="nothing"):
            client.predict("nothing", {"prompt": ["a"]})
        with pytest.raises((RuntimeError, ValueError), match="input"):
            client.predict("score", {})
        with pytest.raises((RuntimeError, ValueError, TypeError), match="expected type|int32"):
            client.predict("generate", {**inputs, "seed": [1.5, 2.5]})
