"""Checks of a user's own data: each rule on data with one fault."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from repnext_mm.apis import load_config
from repnext_mm.data.own.new_config import new_config
from repnext_mm.data.scene_files import CLASSES
from tests.data.own.small_sets import noise, write_coco, write_maps

SEG_CLASSES = ('background', *CLASSES)
TRAIN_JSON = 'annotations/instances_training.json'


def write(task, data, *, out='config.py', **options):
    (data.parent / out).unlink(missing_ok=True)
    return new_config(task=task, data=data, out=data.parent / out, arch='m0', **options)


def rules(found):
    return '\n'.join(found)


def box(content, **fields):
    content['annotations'][1] |= fields


COCO_ERRORS = {
    'category needs id of its own': lambda c: c['categories'].append(dict(c['categories'][0])),
    'same categories in the same order': lambda c: c['categories'].reverse(),
    'height of images must be a whole number of pixels': lambda c: c['images'][0].pop('height'),
    'duplicate image id': lambda c: c['images'].append(dict(c['images'][0])),
    'missing image file': lambda c: c['images'][0].update(file_name='gone.jpg'),
    "width and height differ from the file's": lambda c: c['images'][0].update(width=100),
    'duplicate annotation id': lambda c: box(c, id=1),
    'unknown category id': lambda c: box(c, category_id=77),
    'unknown image id': lambda c: box(c, image_id=77),
    'bbox of annotations must be four numbers': lambda c: box(c, bbox=[1, 2, None, 4]),
    'area of annotations must be a number': lambda c: c['annotations'][1].pop('area'),
    'empty box': lambda c: box(c, bbox=[10, 10, 0, 10]),
    'box outside its image': lambda c: box(c, bbox=[128, 10, 20, 20]),
    'mask is missing, and other boxes have one': lambda c: box(c, segmentation=[]),
    'run-length mask of another size': lambda c: box(c, segmentation={'size': [64, 64], 'counts': [0, 4096]}),
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
        'training leaves out images without boxes',
        'box sticks out of its image',
        'mmdet numbers classes in the order of the categories',
        'not in --classes are left out',
    ):
        assert rule in rules(done.findings.warnings)
    report = done.findings.report()
    assert "warning: boxes of a category that is not in --classes are left out: 'digit 0'" in report
    assert report.splitlines()[-1].startswith('found 0 errors and ')
    assert load_config(done.path).metainfo.classes == CLASSES[1:]


def test_an_image_that_exif_turns(scenes):
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
    'hidden folder, which training reads too': lambda r: shutil.copytree(
        r / 'images/validation', r / 'images/training/.ipynb_checkpoints'
    ),
    'link that leads nowhere': lambda r: (r / 'images/training/9.jpg').symlink_to(r / 'gone.jpg'),
    'label values must be 0 to 10': lambda r: put(first_map(r), 40),
    'map and image differ in size': lambda r: cv2.imwrite(str(first_map(r)), np.zeros((128, 64), np.uint8)),
    'map must have one channel': lambda r: cv2.imwrite(str(first_map(r)), np.zeros((128, 128, 3), np.uint8)),
    'map cannot be read': lambda r: first_map(r).write_bytes(b'not an image'),
    'image without a map': lambda r: first_map(r).unlink(),
    "images of a split need one ending, here '.jpg'": lambda r: (r / 'images/training/scene_000000.jpg').rename(
        r / 'images/training/scene_000000.jpeg'
    ),
    'training cannot decode the image': lambda r: (r / 'images/training/scene_000000.jpg').write_bytes(b'not an image'),
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
    assert 'map without an image' in rules(found.warnings)
    assert "'eleven' (value 12) in train" in found.report()
    assert '--reduce-zero-label gives the first class the value 1' in rules(found.warnings)
    for path in (scenes / 'annotations').rglob('*.png'):
        cv2.imwrite(str(path), 255 * np.eye(128, dtype=np.uint8))
    found = write(
        'seg', scenes.rename(scenes.with_name('binary')), classes=('ground', 'line'), out='binary.py'
    ).findings
    assert '255 means ignored: write foreground as 1' in rules(found.errors)


FOLDER_ERRORS = {
    'hidden folder, which training takes for a class': lambda r: [(r / s / '.git').mkdir() for s in ('train', 'val')],
    'hidden folder, which training reads too': lambda r: shutil.copytree(
        r / 'val/cat', r / 'train/cat/.ipynb_checkpoints'
    ),
    'link that leads nowhere': lambda r: (r / 'train/cat/9.jpg').symlink_to(r / 'gone.jpg'),
    'class without a folder': lambda r: shutil.rmtree(r / 'val/cat'),
    "folder that is not among the training data's": lambda r: (r / 'val/bird').mkdir(),
    'training cannot decode the image': lambda r: (r / 'train/cat/0.jpg').write_bytes(
        (r / 'train/cat/0.jpg').read_bytes()[:-300]
    ),
    'no image in any class folder': lambda r: [path.unlink() for path in (r / 'val').rglob('*.jpg')],
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
    assert 'class folder without images' in rules(done.findings.warnings)
    assert 'MMPretrain numbers classes by their sorted folders' in rules(done.findings.warnings)
    assert load_config(done.path).metainfo.classes == ('cat', 'dog')
    assert '--classes' in rules(write('cls', pets, classes=('cat',), out='again.py', batch=2).findings.errors)


def coco(tmp_path, change, **options):
    write_coco(tmp_path / 'data', change)
    return write('det', tmp_path / 'data', **options)


def mark(key, value, step=1):
    return lambda content: [box.update({key: value}) for box in content['annotations'][::step]]


@pytest.mark.parametrize('key', ['iscrowd', 'ignore'])
def test_boxes_that_training_leaves_out_are_counted(tmp_path, key):
    done = coco(tmp_path, mark(key, 1))
    assert 'no box is left to learn' in rules(done.findings.errors)
    assert (
        '4 crowds' in done.findings.report() if key == 'iscrowd' else '4 ignored of 4 boxes' in done.findings.report()
    )
    done = coco(tmp_path, mark(key, 1, 4))
    assert not done.findings.errors, done.findings.report()
    assert f'training leaves out boxes marked {key}' in done.findings.report()
    assert '1 of 4 of train' in done.findings.report()


def test_an_ignored_box_is_scored(tmp_path):
    assert 'pycocotools goes by iscrowd alone: 1 of 4 of val' in coco(tmp_path, mark('ignore', 1, 4)).findings.report()


def polygon(box):
    x, y, w, h = box['bbox']
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def test_some_masks_are_an_error_with_a_way_out(tmp_path):
    def change(content):
        for box in content['annotations'][::2]:
            box['segmentation'] = [polygon(box)]

    done = coco(tmp_path, change)
    assert 'give --boxes-only to train on the boxes alone' in rules(done.findings.errors)
    done = coco(tmp_path, change, boxes_only=True)
    assert not done.findings.errors, done.findings.report()
    config = load_config(done.path)
    assert config.model.roi_head.mask_head is None
    assert config.val_evaluator.metric == ['bbox']


@pytest.mark.parametrize('nothing', [[], [[]], [[], []], None, {}], ids=str)
def test_an_empty_segmentation_is_not_a_mask(tmp_path, nothing):
    done = coco(tmp_path, mark('segmentation', nothing))
    assert not done.findings.errors, done.findings.report()
    assert 'boxes (no masks)' in done.findings.report()


def run_length(counts):
    return lambda content: [
        box.update(segmentation={'size': [64, 64], 'counts': counts}) for box in content['annotations']
    ]


MASKS = {
    'polygons': (lambda c: [box.update(segmentation=[polygon(box)]) for box in c['annotations']], None),
    'several': (
        lambda c: [box.update(segmentation=[polygon(box), [1, 1, 5, 1, 5, 5]]) for box in c['annotations']],
        None,
    ),
    'runs': (run_length([10, 4086]), None),
    'compressed': (run_length('U::f100000000000000000kQ3'), None),
    'too few runs': (run_length([10, 5]), 'does not fill its size'),
    'too many runs': (run_length([10, 5000]), 'does not fill its size'),
    'cut text': (run_length('U::f10000'), 'does not fill its size'),
    'no pixel': (run_length([4096]), 'empty mask (no pixel)'),
    'a line': (mark('segmentation', [[1, 1, 5, 5, 9, 9]]), 'empty mask (no polygon'),
    'two points': (mark('segmentation', [[1, 1, 5, 5]]), 'empty mask (no polygon'),
    'two points first': (mark('segmentation', [[1, 1, 5, 5], [1, 1, 5, 1, 5, 5]]), 'the first polygon has fewer'),
    'far outside': (mark('segmentation', [[1, 1, 1e9, 1, 5, 5]]), 'polygon lies far outside'),
    'flat list': (mark('segmentation', [1, 1, 5, 1, 5, 5]), 'segmentation of annotations must be a list of polygons'),
}


@pytest.mark.parametrize('name', MASKS)
def test_masks(tmp_path, name):
    change, rule = MASKS[name]
    done = coco(tmp_path, change)
    if rule is None:
        assert not done.findings.errors, done.findings.report()
        assert 'boxes with masks' in done.findings.report()
        assert 'score less than 1' not in done.findings.report()
    else:
        assert rule in rules(done.findings.errors)


def test_what_else_coco_annotations_are_told_about(tmp_path):
    def change(content):
        content['categories'].reverse()
        content['images'].append(content['images'][0] | {'id': 9})
        box = content['annotations'][0]
        content['annotations'] += [box | {'id': number} for number in range(100, 205)]

    report = coco(tmp_path, change).findings.report()
    assert 'categories are not in the order of their ids' in report
    assert 'several records name one file' in report
    assert 'more than 100 boxes in one image' in report
    shutil.rmtree(tmp_path / 'data/val')
    shutil.copytree(tmp_path / 'data/train', tmp_path / 'data/val')
    for path in (tmp_path / 'data/val').glob('*.png'):
        path.unlink()
        path.symlink_to(tmp_path / 'data/train' / path.name)
    (tmp_path / 'config.py').unlink(missing_ok=True)
    assert 'image is in both splits' in write('det', tmp_path / 'data').findings.report()


def test_an_image_that_exif_mirrors(tmp_path):
    write_coco(tmp_path / 'data')
    exif = Image.Exif()
    exif[0x0112] = 3
    noise().save(tmp_path / 'data/train/0.png', exif=exif)
    findings = write('det', tmp_path / 'data').findings
    assert not findings.errors
    assert "boxes must fit the turned image: '0.png' of train" in findings.report()


MAPS = {
    'three equal channels': (lambda v: np.dstack([v] * 3), 'its channels are equal: save one of them'),
    'values above 255': (lambda v: v.astype(np.uint16) + 300, 'uint16 from 300 to 301'),
    'all ignored': (lambda v: np.full_like(v, 255), 'no pixel of any class'),
}


@pytest.mark.parametrize('name', MAPS)
def test_maps_as_mmseg_reads_them(tmp_path, name):
    change, sentence = MAPS[name]
    for path in (write_maps(tmp_path / 'data') / 'masks').rglob('*.png'):
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    done = write('seg', tmp_path / 'data', classes=('ground', 'thing'))
    assert done.path is None
    assert sentence in done.findings.report()


def test_a_jpeg_is_not_a_map(tmp_path):
    write_maps(tmp_path / 'data', image='.png', label='.jpg')
    done = write('seg', tmp_path / 'data', classes=('ground', 'thing'))
    assert 'map must not be a JPEG' in rules(done.findings.errors)


def test_suffixes_that_classification_does_not_read_by_default_go_into_the_config(pets):
    for number in range(3):
        noise(number).save(pets / f'train/cat/new_{number}.webp')
    (pets / 'train/cat/notes.txt').touch()
    done = write('cls', pets, batch=4)
    assert not done.findings.errors, done.findings.report()
    assert 'train: 7 images (4 .jpg, 3 .webp)' in done.findings.report()
    assert "1 .txt of train ('cat/notes.txt')" in done.findings.report()
    init_default_scope('mmpretrain')
    assert len(DATASETS.build(load_config(done.path).train_dataloader.dataset)) == 7
