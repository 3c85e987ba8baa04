"""Checks of a user's own data: each rule on data with one fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.apis.new_config import new_config
from repnext_mm.datasets import SceneSet, ensure_scenes
from repnext_mm.datasets.scene_files import CLASSES

SEG_CLASSES = ('background', *CLASSES)
TRAIN_JSON = 'annotations/instances_training.json'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')
    ensure_scenes(folder / 'scenes', SceneSet(train=4, val=2, size=128))
    for split in ('train', 'val'):
        for number, name in enumerate(('cat', 'dog')):
            (folder / 'pets' / split / name).mkdir(parents=True)
            for index in range(2):
                picture = np.full((40, 48, 3), 50 * number + index, np.uint8)
                cv2.imwrite(str(folder / 'pets' / split / name / f'{index}.jpg'), picture)
    return folder


@pytest.fixture
def scenes(made, tmp_path):
    return Path(shutil.copytree(made / 'scenes', tmp_path / 'scenes'))


@pytest.fixture
def pets(made, tmp_path):
    return Path(shutil.copytree(made / 'pets', tmp_path / 'pets'))


def write(task, data, *, out='config.py', **options):
    return new_config(task=task, data=data, out=data.parent / out, arch='m0', **options)


def rules(found):
    return '\n'.join(found)


def box(content, **fields):
    content['annotations'][1] |= fields


COCO_ERRORS = {
    'category needs id': lambda c: c['categories'].append(dict(c['categories'][0])),
    'same categories in the same order': lambda c: c['categories'].reverse(),
    'a picture needs id, file_name, height and width': lambda c: c['images'][0].pop('height'),
    'duplicate picture id': lambda c: c['images'].append(dict(c['images'][0])),
    'missing picture file': lambda c: c['images'][0].update(file_name='gone.jpg'),
    "width and height differ from the file's": lambda c: c['images'][0].update(width=100),
    'duplicate or absent annotation id': lambda c: box(c, id=1),
    'unknown category id': lambda c: box(c, category_id=77),
    'unknown picture id': lambda c: box(c, image_id=77),
    'bbox must be four numbers': lambda c: box(c, bbox=[1, 2, None, 4]),
    'area is missing': lambda c: c['annotations'][1].pop('area'),
    'empty box': lambda c: box(c, bbox=[10, 10, 0, 10]),
    'box outside its picture': lambda c: box(c, bbox=[128, 10, 20, 20]),
    'mask is missing, and other boxes have one': lambda c: box(c, segmentation=[]),
    'run-length mask of another size': lambda c: box(c, segmentation={'size': [64, 64], 'counts': '0'}),
    'empty mask': lambda c: box(c, segmentation=[[1, 1, 5, 5]]),
    'no box of any class': lambda c: c['annotations'].clear(),
}


@pytest.mark.parametrize('rule', COCO_ERRORS)
def test_a_fault_in_coco_annotations_stops(scenes, rule):
    content = json.loads((scenes / TRAIN_JSON).read_text())
    COCO_ERRORS[rule](content)
    (scenes / TRAIN_JSON).write_text(json.dumps(content))
    done = write('det', scenes)
    assert rule in rules(done.findings.errors)
    assert done.path is None
    assert not (scenes.parent / 'config.py').exists()


def test_what_only_warns_in_coco_annotations(scenes):
    content = json.loads((scenes / TRAIN_JSON).read_text())
    content['images'].append(content['images'][0] | {'id': 99})
    box(content, bbox=[100.0, 10.0, 40.0, 20.0])
    content['annotations'] = [entry for entry in content['annotations'] if entry['category_id'] != 4]
    (scenes / TRAIN_JSON).write_text(json.dumps(content))
    done = write('det', scenes, classes=CLASSES[:0:-1], checkpoint='https://example.org/m0.pth')
    assert not done.findings.errors, done.findings.report()
    for rule in (
        'class without boxes',
        'training leaves out pictures without boxes',
        'box sticks out of its picture',
        'mmdet numbers classes in the order of the categories',
        'not in --classes are left out',
    ):
        assert rule in rules(done.findings.warnings)
    report = done.findings.report()
    assert "warning: boxes of a category that is not in --classes are left out: 'digit 0'" in report
    assert report.splitlines()[-1].startswith('found 0 errors and ')
    assert load_config(done.path).metainfo.classes == CLASSES[1:]


def test_a_picture_that_exif_turns(scenes):
    from PIL import Image

    path = scenes / 'images/training/scene_000000.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.resize((128, 96)).save(path, exif=exif)
    assert cv2.imread(str(path)).shape == (128, 96, 3)  # as the pipelines load it
    content = json.loads((scenes / TRAIN_JSON).read_text())
    content['images'][0] |= {'width': 128, 'height': 96}
    (scenes / TRAIN_JSON).write_text(json.dumps(content))
    assert 'turned by EXIF' in write('det', scenes).findings.report()


def first_map(root):
    return root / 'annotations/training/scene_000000.png'


def put(path, value):
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[:4] = value
    cv2.imwrite(str(path), labels)


MAP_ERRORS = {
    'label values must be 0 to 10': lambda r: put(first_map(r), 40),
    'map and picture differ in size': lambda r: cv2.imwrite(str(first_map(r)), np.zeros((128, 64), np.uint8)),
    'map must have one channel': lambda r: cv2.imwrite(str(first_map(r)), np.zeros((128, 128, 3), np.uint8)),
    'map cannot be read': lambda r: first_map(r).write_bytes(b'no picture'),
    'picture without a map': lambda r: first_map(r).unlink(),
    "pictures of a split need one suffix, here '.jpg'": lambda r: cv2.imwrite(
        str(r / 'images/training/other.png'), np.zeros((64, 64, 3), np.uint8)
    ),
    'file is no picture': lambda r: (r / 'images/training/scene_000000.jpg').write_bytes(b'no picture'),
}


@pytest.mark.parametrize('rule', MAP_ERRORS)
def test_a_fault_in_label_maps_stops(scenes, rule):
    MAP_ERRORS[rule](scenes)
    done = write('seg', scenes, classes=SEG_CLASSES)
    assert rule in rules(done.findings.errors)
    assert done.path is None


def test_the_zero_label_trap(scenes):
    found = write('seg', scenes, classes=CLASSES).findings.report()
    assert 'label value 10, with 10 classes from 0' in found
    assert "is 0 the background, name it as the first of --classes; is 0 'unlabelled'" in found
    done = write('seg', scenes, classes=CLASSES, reduce_zero_label=True)
    assert not done.findings.errors, done.findings.report()
    config = load_config(done.path)
    init_default_scope('mmseg')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    labels = dataset.pipeline.transforms[1](dataset.pipeline.transforms[0](dataset.get_data_info(0)))['gt_seg_map']
    raw = cv2.imread(dataset.get_data_info(0)['seg_map_path'], cv2.IMREAD_UNCHANGED)
    assert set(np.unique(labels)) == {value - 1 if value else 255 for value in np.unique(raw)}


def test_what_else_maps_are_told_about(scenes):
    shutil.copy(first_map(scenes), first_map(scenes).with_name('alone.png'))
    found = write('seg', scenes, classes=('background', *CLASSES, 'eleven'), reduce_zero_label=True).findings
    assert 'map without a picture' in rules(found.warnings)
    assert "'eleven' (value 12) in train" in found.report()
    assert '--reduce-zero-label gives the first class the value 1' in rules(found.warnings)
    for path in (scenes / 'annotations').rglob('*.png'):
        cv2.imwrite(str(path), 255 * np.eye(128, dtype=np.uint8))
    found = write(
        'seg', scenes.rename(scenes.with_name('binary')), classes=('ground', 'line'), out='binary.py'
    ).findings
    assert '255 means ignored: write foreground as 1' in rules(found.errors)


FOLDER_ERRORS = {
    'class without a folder': lambda r: shutil.rmtree(r / 'val/cat'),
    "folder that is not among the training data's": lambda r: (r / 'val/bird').mkdir(),
    'picture cannot be read': lambda r: (r / 'train/cat/0.jpg').write_bytes(
        (r / 'train/cat/0.jpg').read_bytes()[:-300]
    ),
    'no picture in any class folder': lambda r: [path.unlink() for path in (r / 'val').rglob('*.jpg')],
    'lower --batch': lambda r: (r / 'train/dog/0.jpg').unlink(),
}


@pytest.mark.parametrize('rule', FOLDER_ERRORS)
def test_a_fault_in_class_folders_stops(pets, rule):
    FOLDER_ERRORS[rule](pets)
    done = write('cls', pets, batch=4)
    assert rule in rules(done.findings.errors)
    assert done.path is None


def test_what_only_warns_in_class_folders(pets):
    for path in (pets / 'val/dog').iterdir():
        path.unlink()
    done = write('cls', pets, classes=('dog', 'cat'), batch=4)
    assert 'class folder without pictures' in rules(done.findings.warnings)
    assert 'MMPretrain numbers classes in the order of sorted folders' in rules(done.findings.warnings)
    assert load_config(done.path).metainfo.classes == ('cat', 'dog')
    assert '--classes' in rules(write('cls', pets, classes=('cat',), out='again.py', batch=2).findings.errors)
