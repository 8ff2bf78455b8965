import keras
import numpy as np
import pytest

from keras_gpt2.data import WindowDataset

IDS = np.arange(1000, 1211, dtype=np.uint16)  # every id tells its place


def starts(dataset):
    return [int(row[0]) for inputs, _ in dataset for row in inputs]


def make(epoch=0, seed=0):
    dataset = WindowDataset(IDS, sequence_length=7, batch_size=5, shuffle=True, seed=seed)
    dataset.epoch = epoch
    return dataset


def test_targets_are_inputs_one_later():
    for dataset in [make(), WindowDataset(IDS, 7, 5)]:
        for inputs, targets in dataset:
            assert inputs.dtype == targets.dtype == np.int32
            assert inputs.shape[1] == 7
            np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(7))
            np.testing.assert_array_equal(targets, inputs + 1)


def test_fixed_windows_cover_the_text_in_order():
    dataset = WindowDataset(IDS, 7, 4)
    assert starts(dataset) == list(range(1000, 1000 + 7 * 30, 7))  # 30 * 7 + 1 = 211
    assert (dataset.num_windows, dataset.num_tokens, len(dataset)) == (30, 211, 8)
    assert [len(inputs) for inputs, _ in dataset] == [4] * 7 + [2]
    assert dataset.token_ids is IDS


def test_every_epoch_holds_each_of_its_windows_once():
    dataset = WindowDataset(IDS, sequence_length=7, batch_size=1, shuffle=True)
    offsets = set()
    for dataset.epoch in range(100):
        seen = sorted(starts(dataset))
        offset = seen[0] - 1000
        assert seen == [1000 + offset + 7 * k for k in range(29)]
        offsets.add(offset)
    assert offsets == set(range(7))


def test_a_short_training_batch_is_left_out():
    dataset = make()
    assert (dataset.num_windows, len(dataset)) == (29, 5)
    assert [len(inputs) for inputs, _ in dataset] == [5] * 5
    assert len(set(starts(dataset))) == 25


def test_order_depends_on_seed_and_epoch_alone():
    orders = {(s, e): tuple(starts(make(e, s))) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    dataset = make()
    np.random.seed(1)
    for dataset.epoch in [2, 0, 1, 2]:
        assert tuple(starts(dataset)) == orders[0, dataset.epoch]
    assert orders[0, 0] != tuple(sorted(orders[0, 0]))


@pytest.mark.parametrize("num_windows", [29, 300])  # in bytes and in more
def test_the_order_is_that_of_numpy_on_int64(num_windows):
    dataset = WindowDataset(np.arange((num_windows + 1) * 7), 7, 1, shuffle=True, seed=3)
    dataset.epoch = 2
    generator = np.random.default_rng((3, 2))
    offset, order = generator.integers(7), np.arange(num_windows)
    generator.shuffle(order)
    assert starts(dataset) == (offset + 7 * order).tolist()


class FirstInput(keras.metrics.Metric):
    """The first input id of the last batch."""

    def __init__(self):
        super().__init__(name="first")
        self.value = self.add_weight(name="value", initializer="zeros")

    def update_state(self, targets, predictions, sample_weight=None):
        self.value.assign(keras.ops.cast(targets[0, 0] - 1, "float32"))

    def result(self):
        return keras.ops.convert_to_tensor(self.value)


def fit(dataset, epochs, callbacks=(), shuffle=False, **kwargs):
    """Fits a model; returns, for each epoch, the first id of the batches that it trained on."""
    seen = []

    class Note(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append([])

        def on_train_batch_end(self, batch, logs=None):
            seen[-1].append(int(logs["first"]))

    model = keras.Sequential([keras.Input((7,), dtype="int32"), keras.layers.Embedding(2000, 1)])
    model.compile("sgd", "mse", metrics=[FirstInput()])
    callbacks = [Note(), *callbacks]
    model.fit(dataset, epochs=epochs, callbacks=callbacks, shuffle=shuffle, verbose=0, **kwargs)
    return seen


def expected(epoch):
    return [int(inputs[0, 0]) for inputs, _ in make(epoch)]


def test_fit_sees_epochs_0_1_2_and_goes_on():
    dataset = make()
    validation = WindowDataset(IDS, 7, 4)
    assert fit(dataset, 3, validation_data=validation) == [expected(e) for e in range(3)]
    assert dataset.epoch == 3
    assert fit(dataset, 1) == [expected(3)]
    dataset.epoch = 1
    assert fit(dataset, 1) == [expected(1)]


def test_fit_over_parts_of_an_epoch_moves_on_after_the_last():
    dataset = make()
    assert sum(fit(dataset, 5, steps_per_epoch=1), []) == expected(0)
    assert dataset.epoch == 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data")
def test_as_a_tf_dataset_it_gives_the_same_epochs():
    dataset = make()
    batches = dataset.as_tf_dataset()
    assert len(batches) == 5 and batches.element_spec[0].shape == (5, 7)
    for epoch in (0, 1, 2):
        assert [int(inputs[0, 0]) for inputs, _ in batches] == expected(epoch)
    dataset.epoch = 7
    assert [int(inputs[0, 0]) for inputs, _ in batches] == expected(7)
    next(iter(batches))  # a pass that broke off
    assert [int(inputs[0, 0]) for inputs, _ in batches] == expected(8)
    fixed = WindowDataset(IDS, 7, 4)
    for got, wanted in zip(fixed.as_tf_dataset(), fixed, strict=True):
        np.testing.assert_array_equal(got[1], wanted[1])


def test_a_callback_may_set_the_epoch():
    dataset = make()

    class Resume(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            dataset.epoch = epoch

    seen = fit(dataset, 9, initial_epoch=7, callbacks=[Resume()])
    assert seen == [expected(7), expected(8)]


def test_an_epoch_that_broke_off_is_begun_again():
    dataset = make()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 0

    fit(dataset, 1, callbacks=[Stop()])
    assert fit(dataset, 2) == [expected(0), expected(1)]


def test_default_shuffle_of_fit_changes_the_order_of_batches_alone():
    assert sorted(fit(make(), 1, shuffle=True)[0]) == sorted(expected(0))


def test_a_memory_mapped_file(tmp_path):
    np.save(tmp_path / "ids.npy", IDS)
    dataset = WindowDataset(np.load(tmp_path / "ids.npy", mmap_mode="r"), 7, 4)
    inputs, _ = dataset[0]
    assert type(inputs) is np.ndarray and starts(dataset) == starts(WindowDataset(IDS, 7, 4))


@pytest.mark.parametrize("index", [-1, 5])
def test_no_batch_of_that_index(index):
    with pytest.raises(IndexError, match=rf"\[0, 5\)\. Received: index={index}"):
        make()[index]


@pytest.mark.parametrize("shuffle, needed", [(True, 28), (False, 8)])
def test_too_few_tokens(shuffle, needed):
    dataset = WindowDataset(IDS[:needed], sequence_length=7, batch_size=3, shuffle=shuffle)
    assert len(dataset) == 1
    for dataset.epoch in range(20):
        assert len(starts(dataset)) == (3 if shuffle else 1)
    with pytest.raises(ValueError, match=f"= {needed} token ids: .* Received: {needed - 1} token"):
        WindowDataset(IDS[: needed - 1], 7, 3, shuffle=shuffle)


@pytest.mark.parametrize("name, value", [("sequence_length", 0), ("batch_size", 0), ("seed", -1)])
def test_arguments_out_of_range(name, value):
    arguments = {"sequence_length": 7, "batch_size": 3, "seed": 0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least .* {name}={value}"):
        WindowDataset(IDS, **arguments)
