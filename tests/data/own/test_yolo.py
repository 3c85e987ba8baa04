"""YOLO labels: read as they are meant, to a millionth of a pixel, and faults told by file and row."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from repnext_mm.apis import load_config
from repnext_mm.apis.checks import check_files
from repnext_mm.data.own import Findings, find_boxes
from repnext_mm.data.own.new_config import new_config
from tests.data.own.small_sets import noise

SIZES = {'street_0001': (101, 77), 'street_0002': (64, 97), 'empty_road': (53, 48), 'unlabeled': (80, 60)}
BOXES = {  # class, then left, top, right, bottom in pixels
    'street_0001': [(0, 3.25, 4.5, 40.75, 60.0), (1, 50.0, 7.125, 101.0, 77.0)],
    'street_0002': [(1, 0.0, 0.0, 64.0, 97.0)],
    'empty_road': [],
}
POLYGON = [10.5, 5.25, 60.0, 8.0, 72.75, 40.0, 20.0, 55.5]
LAYOUTS = {
    'ultralytics': (
        'images/{split}',
        'labels/{split}',
        'path: ../datasets/street\ntrain: images/train\nval: images/val\n',
    ),
    'roboflow': ('{split}/images', '{split}/labels', 'train: ../train/images\nval: ../val/images\n'),
    'beside': ('data/{split}', 'data/{split}', ''),
    'stale paths': ('images/{split}', 'labels/{split}', 'train: /home/me/train.txt\nval: /home/me/val.txt\n'),
}
NAMES = {'list': "names: ['car', 'person']\nnc: 2\n", 'dict': 'names:\n  0: car\n  1: person\n'}


def box_row(number, left, top, right, bottom, width, height):
    values = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return ' '.join(map(str, (number, *values)))


def polygon_row(number, polygon, width, height):
    return ' '.join(map(str, (number, *(value / (width, height)[axis % 2] for axis, value in enumerate(polygon)))))


def write_yolo(root, layout='ultralytics', names='list', *, polygons=False):
    images, labels, text = LAYOUTS[layout]
    for seed, split in enumerate(('train', 'val')):
        image_folder, label_folder = (root / folder.format(split=split) for folder in (images, labels))
        for folder in (image_folder, label_folder):
            folder.mkdir(parents=True, exist_ok=True)
        for number, (name, size) in enumerate(SIZES.items()):
            noise(10 * seed + number, *size).save(image_folder / f'{name}.jpg')
            if name in BOXES:
                rows = [box_row(*box, *size) for box in BOXES[name]]
                if polygons:
                    rows = [polygon_row(box[0], POLYGON, *SIZES['street_0001']) for box in BOXES[name]]
                (label_folder / f'{name}.txt').write_text('\n'.join(rows) + '\n' * bool(rows))
    (root / 'data.yaml').write_text(text + NAMES[names])
    return root


def files_of(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def pixel_boxes(part):
    names = {record['id']: Path(record['file_name']).stem for record in part.content['images']}
    found = {name: [] for name in names.values()}
    for record in part.content['annotations']:
        x, y, width, height = record['bbox']
        found[names[record['image_id']]].append((record['category_id'] - 1, x, y, x + width, y + height))
    return found


def assert_boxes(found, expected=BOXES):
    assert found.keys() == SIZES.keys()
    for name, boxes in found.items():
        wanted = np.reshape(expected.get(name, []), (-1, 5))
        np.testing.assert_allclose(np.reshape(boxes, (-1, 5)), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('names', NAMES)
def test_boxes_are_those_of_the_labels(tmp_path, layout, names):
    findings = Findings()
    found = find_boxes(write_yolo(tmp_path, layout, names), None, findings)
    assert not findings.errors, findings.report()
    assert bool(findings.warnings) == (layout == 'stale paths'), findings.report()
    for split in ('train', 'val'):
        assert_boxes(pixel_boxes(found[split]))
        assert [record['name'] for record in found[split].content['categories']] == ['car', 'person']
        sizes = {
            Path(record['file_name']).stem: (record['width'], record['height'])
            for record in found[split].content['images']
        }
        assert sizes == SIZES


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_written_config_builds_data_sets_with_those_boxes(tmp_path, layout):
    data = write_yolo(tmp_path / 'street', layout)
    before = files_of(data)
    done = new_config(task='det', data=data, arch='m0', out=tmp_path / 'configs/street.py')
    assert not done.findings.errors, done.findings.report()
    assert files_of(data) == before
    assert [path.relative_to(tmp_path).as_posix() for path in done.annotations] == [
        f'configs/street_annotations/instances_{split}.json' for split in ('train', 'val')
    ]
    config = load_config(done.path)
    check_files(config, stages=('train', 'val', 'test'))
    assert config.model.type == 'FasterRCNN'
    assert config.val_evaluator.ann_file == done.annotations[1].as_posix()
    init_default_scope('mmdet')
    for stage in ('train', 'val'):
        dataset = DATASETS.build(config[f'{stage}_dataloader'].dataset)
        assert dataset.metainfo['classes'] == ('car', 'person')
        records = [dataset.get_data_info(place) for place in range(len(dataset))]
        found = {Path(record['img_path']).stem: record['instances'] for record in records}
        assert found.keys() == ({'street_0001', 'street_0002'} if stage == 'train' else SIZES.keys())
        for name, instances in found.items():
            boxes = [(instance['bbox_label'], *instance['bbox']) for instance in instances]
            wanted = np.reshape(BOXES.get(name, []), (-1, 5))
            np.testing.assert_allclose(np.reshape(boxes, (-1, 5)), wanted, rtol=0, atol=1e-6)
        assert dataset[0] is not None


def test_polygons_become_masks_and_the_boxes_around_them(tmp_path):
    data = write_yolo(tmp_path / 'street', polygons=True)
    (data / 'labels/train/street_0002.txt').unlink()
    (data / 'labels/val/street_0002.txt').unlink()
    done = new_config(task='det', data=data, arch='m0', out=tmp_path / 'street.py')
    assert 'boxes with masks' in done.findings.report()
    assert load_config(done.path).model.type == 'MaskRCNN'
    record = json.loads(done.annotations[0].read_text())['annotations'][0]
    np.testing.assert_allclose(record['segmentation'], [POLYGON], rtol=0, atol=1e-6)
    np.testing.assert_allclose(record['bbox'], [10.5, 5.25, 62.25, 50.25], rtol=0, atol=1e-6)
    points = np.reshape(POLYGON, (-1, 2))
    area = abs(np.sum(points[:, 0] * np.roll(points[:, 1], -1) - points[:, 1] * np.roll(points[:, 0], -1))) / 2
    assert record['area'] == pytest.approx(area, abs=1e-6)


def test_boxes_among_polygons_need_boxes_only(tmp_path):
    data = write_yolo(tmp_path / 'street', polygons=True)
    (data / 'labels/train/street_0002.txt').write_text('0 0.5 0.5 0.25 0.25\n')
    done = new_config(task='det', data=data, arch='m0', out=tmp_path / 'street.py')
    assert "--boxes-only to train on the boxes alone: row 1 of 'labels/train/street_0002.txt'" in done.findings.report()
    assert new_config(task='det', data=data, arch='m0', out=tmp_path / 'street.py', boxes_only=True).path


def test_images_that_exif_turns_have_the_turned_size(tmp_path):
    data = write_yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(3, 77, 101).save(data / 'images/train/street_0001.jpg', exif=exif)
    found = find_boxes(data, None, Findings())
    assert_boxes(pixel_boxes(found['train']))


def test_names_from_classes_txt_or_the_command_line(tmp_path):
    data = write_yolo(tmp_path)
    (data / 'data.yaml').unlink()
    with pytest.raises(ValueError, match='no data.yaml or classes.txt names their class numbers'):
        find_boxes(data, None, Findings())
    found = find_boxes(data, ['auto', 'human'], Findings())
    assert [record['name'] for record in found['val'].content['categories']] == ['auto', 'human']
    (data / 'labels/train/classes.txt').write_text('car\nperson\n')
    findings = Findings()
    found = find_boxes(data, None, findings)
    assert [record['name'] for record in found['val'].content['categories']] == ['car', 'person']
    assert not findings.errors, findings.report()


@pytest.mark.parametrize(
    'entry, start',
    [('[images/a, images/b]', './'), ('train.txt', './'), ('train.txt', 'data/'), ('train.txt', '/home/me/street/')],
    ids=['two folders', 'list of images', 'as CVAT writes it', 'of another machine'],
)
def test_what_data_yaml_lists_counts(tmp_path, entry, start):
    data = write_yolo(tmp_path)
    for kind in ('images', 'labels'):
        (data / kind / 'train').rename(data / kind / 'a')
        (data / kind / 'b').mkdir()
    (data / 'images/a/empty_road.jpg').rename(data / 'images/b/empty_road.jpg')
    names = ['a/street_0001', 'a/street_0002', 'b/empty_road', 'a/unlabeled']
    (data / 'labels/a/empty_road.txt').unlink()
    (data / 'train.txt').write_text(''.join(f'{start}images/{name}.jpg\n' for name in names))
    (data / 'data.yaml').write_text(f'train: {entry}\nval: images/val\n' + NAMES['list'])
    findings = Findings()
    assert_boxes(pixel_boxes(find_boxes(data, None, findings)['train']))
    assert not findings.errors, findings.report()


ROWS = {  # what is added to a label file, and what is said of its third row
    'seven of two classes': (
        '7 0.5 0.5 0.1 0.1',
        'class number must be from 0 to 1, as there are names: 7 in row 3 of',
    ),
    'half a class': ('0.5 0.5 0.5 0.1 0.1', 'class number must be'),
    'minus one': ('-1 0.5 0.5 0.1 0.1', 'class number must be'),
    'pixels': ('0 50 30 20 10', 'coordinates must be fractions of width and height, from 0 to 1: 50 in row 3'),
    'negative': ('0 -0.1 0.5 0.1 0.1', '-0.1 in row 3'),
    'nan': ('0 nan 0.5 0.1 0.1', 'nan in row 3'),
    'a confidence': (
        '0 0.5 0.5 0.1 0.1 0.9',
        "x y of three points or more: row 3 of 'labels/train/street_0001.txt' has 6",
    ),
    'half a point': ('0 0.1 0.1 0.2 0.1 0.2 0.2 0.1', 'has 8 values'),
    'four values': ('0 0.5 0.5 0.1', 'has 4 values'),
    'text': ('car 0.5 0.5 0.1 0.1', 'is "car 0.5 0.5 0.1 0.1"'),
    'an empty box': ('0 0.5 0.5 0 0.1', "no area): row 3 of 'labels/train/street_0001.txt' of train, [50.5"),
    'the same again': (box_row(*BOXES['street_0001'][0], 101, 77), 'warning: the same row twice in one label file'),
}


@pytest.mark.parametrize('name', ROWS)
def test_a_bad_row_is_told_with_its_place(tmp_path, name):
    row, sentence = ROWS[name]
    data = write_yolo(tmp_path / 'street')
    with (data / 'labels/train/street_0001.txt').open('a') as file:
        file.write(row + '\n')
    done = new_config(task='det', data=data, arch='m0', out=tmp_path / 'street.py')
    assert sentence in done.findings.report()
    assert bool(done.findings.errors) == (name != 'the same again')
    assert (done.path is None) == (name != 'the same again')
    assert (tmp_path / 'street_annotations').exists() == (name == 'the same again')


def test_many_faults_are_three_examples_and_a_count(tmp_path):
    data = write_yolo(tmp_path)
    (data / 'labels/val/street_0001.txt').write_text('9 0.5 0.5 0.1 0.1\n' * 8)
    findings = Findings()
    find_boxes(data, None, findings)
    assert "9 in row 3 of 'labels/val/street_0001.txt' and 5 more" in findings.report()


def spoil_yaml(text):
    return lambda data: (data / 'data.yaml').write_text(text)


def without_labels(data):
    for path in (data / 'labels/train').iterdir():
        path.unlink()


LETTERS = 'abcdefghijklmnopqrst'
BOMB = 'a: &a [x, x]\n' + ''.join(
    f'{new}: &{new} [{", ".join([f"*{old}"] * 9)}]\n' for old, new in itertools.pairwise(LETTERS)
)
BOMB += f'names: [*{LETTERS[-1]}]\n'
FAULTS = {
    'a label without image': (
        lambda data: (data / 'labels/train/gone.txt').write_text('0 0.5 0.5 0.1 0.1'),
        "label file without an image of its name: 'labels/train/gone.txt' of train",
    ),
    'no labels': (without_labels, "'labels/train/empty_road.txt' for 'images/train/empty_road.jpg' of train"),
    'not an image': (lambda data: (data / 'images/val/unlabeled.jpg').write_text('x'), "'images/val/unlabeled.jpg' of"),
    'not text': (lambda data: (data / 'labels/val/empty_road.txt').write_bytes(b'\xff\xfe0'), 'must be text in UTF-8'),
    'a number without a name': (spoil_yaml('names: {0: a, 2: b}'), 'must be numbered from 0 without gaps'),
    'yes is not text': (spoil_yaml('names: [yes, no]'), 'has the class name true: put names in quotes'),
    'another count': (spoil_yaml('nc: 3\nnames: [a, b]'), 'has 2 names and nc: 3'),
    'twice': (spoil_yaml('names: [a, a]'), "has 'a' twice"),
    'no name': (spoil_yaml('names: []'), 'no class name'),
    'a text': (spoil_yaml('names: a'), 'has "a" as names'),
    'not yaml': (spoil_yaml('names: [a'), 'is not YAML'),
    'key points': (spoil_yaml('kpt_shape: [17, 3]\nnames: [a]'), 'describes key points'),
    'aliases without end': (spoil_yaml(BOMB), 'has the class name a list'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_faults_of_files(tmp_path, name):
    spoil, sentence = FAULTS[name]
    spoil(write_yolo(tmp_path))
    findings = Findings()
    try:
        find_boxes(tmp_path, None, findings)
        said = findings.report()
    except ValueError as error:
        said = str(error)
    assert sentence in said
    assert len(said) < 800


def test_a_folder_in_the_way_and_a_config_among_the_data(tmp_path):
    data = write_yolo(tmp_path / 'street')
    (tmp_path / 'street_annotations').mkdir()
    with pytest.raises(FileExistsError, match='where converted annotations would be written, is there already'):
        new_config(task='det', data=data, arch='m0', out=tmp_path / 'street.py')
    with pytest.raises(ValueError, match='among the data: name a file elsewhere with --out'):
        new_config(task='det', data=data, arch='m0', out=data / 'street.py')
    assert not (data / 'street.py').exists()


def test_yaml_of_other_programs_is_not_read(tmp_path):
    data = write_yolo(tmp_path)
    (data / 'environment.yml').write_text('name: [not closed')
    (data / 'images/train/setup.yaml').write_text('names: [deeper]')
    findings = Findings()
    find_boxes(data, None, findings)
    assert 'the 2 class names of data.yaml' in findings.report()


def test_coco_beside_yolo_labels_counts(tmp_path):
    data = write_yolo(tmp_path)
    (data / 'annotations').mkdir()
    converted = find_boxes(data, None, Findings())
    for split, part in converted.items():
        (data / f'annotations/instances_{split}.json').write_text(json.dumps(part.content))
    found = find_boxes(data, None, Findings())
    assert found['train'].annotations == data / 'annotations/instances_train.json'
    assert found['train'].places is None
