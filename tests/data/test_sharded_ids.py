import itertools

import numpy as np
import pytest

from keras_gpt2.data.sharded_ids import ShardedIds

IDS = np.arange(100, 123, dtype=np.uint16)


@pytest.fixture(params=[[], [1], [5, 6, 13], [7, 7, 22], [0, 23]])
def ids(request):
    return ShardedIds(np.split(IDS, request.param))


def test_slices_are_those_of_the_whole(ids):
    assert len(ids) == 23
    for start, stop in itertools.product([None, *range(-25, 26)], repeat=2):
        found = ids[start:stop]
        assert isinstance(found, np.ndarray) and found.dtype == np.uint16
        assert found.tolist() == IDS[start:stop].tolist(), (start, stop)


def test_as_an_array(ids):
    np.testing.assert_array_equal(ids, IDS)
    assert np.asarray(ids).dtype == np.uint16 and np.asarray(ids, np.int64).dtype == np.int64


def test_split(ids):
    for place in range(24):
        before, after = ids.split(place)
        assert (len(before), len(after)) == (place, 23 - place)
        for start, stop in itertools.combinations(range(24), 2):
            assert before[start:stop].tolist() == IDS[:place][start:stop].tolist()
            assert after[start:stop].tolist() == IDS[place:][start:stop].tolist()


def test_copies_across_borders_only():
    ids = ShardedIds(np.split(IDS.copy(), [5, 13]))
    assert np.shares_memory(ids[5:13], ids.shards[1])
    assert not any(np.shares_memory(ids[4:6], shard) for shard in ids.shards)
    assert np.shares_memory(ids.split(6)[1].shards[0], ids.shards[1])


def test_no_steps():
    with pytest.raises(ValueError, match="step=2"):
        ShardedIds([IDS])[::2]
