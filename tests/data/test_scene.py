"""One digit scene: the same from the same seed, within the promised sizes, from split sources."""

import numpy as np
import pytest

from repnext_mm.data.scene import COUNT_RANGE, MIN_VISIBLE, SIZE_RANGE, compose_scene
from repnext_mm.data.sources import load_sources

SCENES = 20


@pytest.fixture(scope='module')
def scenes():
    return [compose_scene(split='train', index=index) for index in range(SCENES)]


def test_a_scene_depends_on_nothing_but_split_index_and_seed(scenes):
    backwards = [compose_scene(split='train', index=index) for index in reversed(range(SCENES))][::-1]
    for one, other in zip(scenes, backwards, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.instances, other.instances)
        assert one.labels == other.labels


@pytest.mark.parametrize('change', [dict(split='val'), dict(index=1), dict(seed=1)], ids=['split', 'index', 'seed'])
def test_any_change_gives_another_scene(change):
    first = compose_scene(split='train', index=0, seed=0)
    assert not np.array_equal(first.image, compose_scene(**{'split': 'train', 'index': 0, 'seed': 0, **change}).image)


def test_counts_and_sizes_keep_to_the_ranges(scenes):
    longest = []
    for scene in scenes:
        assert (scene.image.shape, scene.image.dtype) == ((256, 256, 3), np.uint8)
        assert COUNT_RANGE[0] <= len(scene.labels) <= COUNT_RANGE[1]
        assert set(scene.labels) <= set(range(10))
        for number in range(1, len(scene.labels) + 1):
            rows, columns = np.nonzero(scene.instances == number)
            longest.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    assert max(longest) <= SIZE_RANGE[1]
    assert min(longest) >= SIZE_RANGE[0] * MIN_VISIBLE / 2  # a covered digit may lose an end
    assert max(longest) > 70
    assert min(longest) < 30


def test_semantic_map_follows_the_instances(scenes):
    for scene in scenes:
        semantic = scene.semantic()
        assert np.array_equal(semantic == 0, scene.instances == 0)
        for number, label in enumerate(scene.labels, start=1):
            assert (semantic[scene.instances == number] == label + 1).all()


def test_other_image_sizes():
    scene = compose_scene(split='val', index=3, size=160)
    assert scene.image.shape == (160, 160, 3)
    assert scene.instances.shape == (160, 160)


def test_no_digit_image_is_in_both_splits():
    train, val = load_sources('train'), load_sources('val')
    assert len(train.labels) + len(val.labels) == 1797
    assert not {image.tobytes() for image in train.digits} & {image.tobytes() for image in val.digits}
    assert np.bincount(val.labels).min() >= 30
    for left, right in zip(train.photos, val.photos, strict=True):
        assert left.shape[1] + right.shape[1] == 640
        assert min(left.shape[1], right.shape[1]) > 200


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="split='test' is unknown: choose one of"):
        load_sources('test')
