"""Digit scenes on disk: both annotation styles agree, and the folder appears whole or not at all."""

import json
import multiprocessing

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from repnext_mm.data import scene_files
from repnext_mm.data.scene_files import GENERATOR_VERSION, SceneSet, annotation_path, ensure_scenes

TINY = SceneSet(train=4, val=3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes') / 'digit_scenes'
    assert ensure_scenes(folder, TINY) is True
    return folder


@pytest.mark.parametrize(('split', 'count'), [('train', 4), ('val', 3)])
def test_coco_masks_and_semantic_maps_agree(root, split, count, capsys):
    coco = COCO(annotation_path(root, split))
    assert len(coco.imgs) == count
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == [f'digit {n}' for n in range(10)]
    folder = scene_files.FOLDERS[split]
    for entry in coco.imgs.values():
        image = cv2.imread(str(root / 'images' / folder / entry['file_name']))
        assert image.shape == (entry['height'], entry['width'], 3)
        semantic = cv2.imread(
            str(root / 'annotations' / folder / entry['file_name'].replace('.jpg', '.png')), cv2.IMREAD_UNCHANGED
        )
        assert semantic.dtype == np.uint8
        assert semantic.shape == (256, 256)
        drawn = np.zeros_like(semantic)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=entry['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            assert not drawn[mask].any()
            drawn[mask] = annotation['category_id']
            rows, columns = np.nonzero(mask)
            assert annotation['bbox'] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (annotation['area'], annotation['iscrowd']) == (mask.sum(), 0)
        assert np.array_equal(drawn, semantic)


def test_json_tells_seed_and_generator(root):
    for split in ('train', 'val'):
        info = json.loads(annotation_path(root, split).read_text())['info']
        assert info['generator_version'] == GENERATOR_VERSION
        assert (info['seed'], info['size'], info['train'], info['val']) == (0, 256, 4, 3)


def test_the_same_seed_gives_the_same_files(root, tmp_path):
    ensure_scenes(tmp_path / 'again', TINY)
    first, second = ({p.relative_to(r): p.read_bytes() for p in r.rglob('*.*')} for r in (root, tmp_path / 'again'))
    assert first == second
    assert len(first) == 2 * (4 + 3) + 2


def test_a_second_call_does_nothing(root, monkeypatch):
    monkeypatch.setattr(scene_files, 'write_scenes', lambda *_: pytest.fail('scenes were made twice'))
    assert ensure_scenes(root, TINY) is False


@pytest.mark.parametrize('other', [SceneSet(train=4, val=3, seed=7), SceneSet(train=5, val=3)], ids=['seed', 'count'])
def test_other_scenes_are_refused(root, other):
    with pytest.raises(FileExistsError, match=r'holds other digit scenes \((seed|train) is .* instead of .*\): remove'):
        ensure_scenes(root, other)


def test_scenes_of_an_older_generator_are_refused(root, monkeypatch):
    monkeypatch.setattr(scene_files, 'GENERATOR_VERSION', GENERATOR_VERSION + 1)
    with pytest.raises(FileExistsError, match='generator_version is'):
        ensure_scenes(root, TINY)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(FileExistsError, match=r'does not hold digit scenes: remove .* or set another data_root'):
        ensure_scenes(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(draft, scenes):
        (draft / 'half').mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(scene_files, 'write_scenes', interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_scenes(tmp_path / 'digit_scenes', TINY)
    assert not list(tmp_path.iterdir())


def test_two_processes_may_ask_at_once(tmp_path):
    context = multiprocessing.get_context('spawn')
    with context.Pool(2) as pool:
        made = pool.starmap(ensure_scenes, [(tmp_path / 'digit_scenes', TINY)] * 2, chunksize=1)
    assert sum(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['digit_scenes']
    assert len(list((tmp_path / 'digit_scenes').rglob('*.jpg'))) == 7


@pytest.mark.parametrize('wrong', [dict(train=0), dict(size=64), dict(seed=-1), dict(val=2.5)], ids=str)
def test_impossible_sets_are_refused(wrong):
    with pytest.raises(ValueError, match='makes no digit scenes: give an integer of at least'):
        SceneSet(**wrong)
