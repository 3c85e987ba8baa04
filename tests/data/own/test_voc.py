"""Pascal VOC: boxes that count pixels from 1, difficult objects, lists of splits, faults told by file and object."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.apis.checks import check_files
from repnext_mm.data.own import Findings, check_coco, find_boxes
from repnext_mm.data.own.new_config import new_config
from tests.data.own.small_sets import noise

SIZES = {'000005': (101, 77), '000012': (64, 97), '000017': (53, 48)}
OBJECTS = {  # name, xmin, ymin, xmax, ymax as they are written, difficult
    '000005': [('dog', 1, 1, 101, 77, 0), ('chair', 12, 20, 40, 61, 0), ('dog', 5, 6, 20, 21, 1)],
    '000012': [('chair', 3.5, 7, 50, 90.25, 0)],
    '000017': [],
}
PIXELS = {  # class, then [x, y, width, height]
    '000005': [(1, 0, 0, 101, 77), (0, 11, 19, 29, 42), (1, 4, 5, 16, 16)],
    '000012': [(0, 2.5, 6, 47.5, 84.25)],
    '000017': [],
}
LAYOUTS = {
    'voc': ('VOC2007/JPEGImages', 'VOC2007/Annotations', True),
    'roboflow': ('{split}', '{split}', False),
    'split, kind': ('{split}/images', '{split}/annotations', False),
    'kind, split': ('images/{split}', 'annotations/{split}', False),
}


def xml(name, size, objects):
    things = ''.join(
        f'<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{difficult}</difficult>'
        f'<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>'
        '<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>'
        for label, left, top, right, bottom, difficult in objects
    )
    return (
        f'<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename><source><image>flickr</image></source>'
        f'<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size><segmented>0</segmented>'
        f'{things}</annotation>'
    )


def write_voc(root, layout='voc', *, objects=OBJECTS, size=None):
    images, annotations, listed = LAYOUTS[layout]
    for seed, split in enumerate(('train', 'val')):
        image_folder, xml_folder = (root / folder.format(split=split) for folder in (images, annotations))
        for folder in (image_folder, xml_folder):
            folder.mkdir(parents=True, exist_ok=True)
        names = {name: f'{split}_{name}' if listed else name for name in SIZES}
        for number, (name, pixels) in enumerate(SIZES.items()):
            noise(10 * seed + number, *pixels).save(image_folder / f'{names[name]}.jpg')
            (xml_folder / f'{names[name]}.xml').write_text(xml(name, size or pixels, objects[name]))
        if listed:
            lists = root / 'VOC2007/ImageSets/Main'
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f'{split}.txt').write_text('\n'.join(names.values()))
            (lists / f'dog_{split}.txt').write_text('\n'.join(f'{name}  1' for name in names.values()))
            (root / 'VOC2007/SegmentationClass').mkdir(exist_ok=True)
            noise(0, 101, 77).save(root / f'VOC2007/SegmentationClass/{names["000005"]}.png')
    return root


def pixel_boxes(part):
    names = {record['id']: Path(record['file_name']).stem[-6:] for record in part.content['images']}
    found = {name: [] for name in names.values()}
    for record in part.content['annotations']:
        found[names[record['image_id']]].append((record['category_id'] - 1, *record['bbox']))
    return found


def assert_boxes(found, expected=PIXELS):
    assert found.keys() == expected.keys()
    for name, boxes in found.items():
        wanted = np.reshape(expected[name], (-1, 5))
        np.testing.assert_allclose(np.reshape(boxes, (-1, 5)), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_boxes_count_pixels_from_one(tmp_path, layout):
    findings = Findings()
    found = find_boxes(write_voc(tmp_path, layout), None, findings)
    assert not findings.errors and not findings.warnings, findings.report()
    assert 'in pixels counted from 1' in findings.report()
    for part in found.values():
        assert_boxes(pixel_boxes(part))
        assert [record['name'] for record in part.content['categories']] == ['chair', 'dog']
        assert [record['iscrowd'] for record in part.content['annotations']] == [0, 0, 1, 0]


def test_boxes_that_start_at_zero_are_edges(tmp_path):
    objects = OBJECTS | {'000017': [('dog', 0, 0, 53, 48, 0)]}
    findings = Findings()
    found = find_boxes(write_voc(tmp_path, objects=objects), None, findings)
    assert "not as pixels counted from 1: object 1 of 'VOC2007/Annotations/train_000017.xml'" in findings.report()
    expected = {
        name: [
            (('chair', 'dog').index(label), left, top, right - left, bottom - top)
            for label, left, top, right, bottom, _ in things
        ]
        for name, things in objects.items()
    }
    assert_boxes(pixel_boxes(found['val']), expected)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_written_config_builds_data_sets_with_those_boxes(tmp_path, layout):
    data = write_voc(tmp_path / 'voc', layout)
    before = {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
    done = new_config(task='det', data=data, arch='m0', out=tmp_path / 'made.py')
    assert not done.findings.errors, done.findings.report()
    assert before == {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
    assert 'training leaves out boxes marked iscrowd, and scoring does not ask for them' in done.findings.report()
    config = load_config(done.path)
    check_files(config, stages=('train', 'val', 'test'))
    init_default_scope('mmdet')
    dataset = DATASETS.build(config.val_dataloader.dataset)
    assert dataset.metainfo['classes'] == ('chair', 'dog')
    records = [dataset.get_data_info(place) for place in range(len(dataset))]
    for record in records:
        wanted = [
            (label, x, y, x + width, y + height)
            for label, x, y, width, height in PIXELS[Path(record['img_path']).stem[-6:]]
        ]
        boxes = [(instance['bbox_label'], *instance['bbox']) for instance in record['instances']]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 5)), np.reshape(wanted, (-1, 5)), rtol=0, atol=1e-6)
    assert [instance['ignore_flag'] for record in records for instance in record['instances']] == [0, 0, 1, 0]
    assert len(DATASETS.build(config.train_dataloader.dataset)) == 2  # without the image that has nothing in it


def test_classes_are_numbered_in_the_order_of_the_option(tmp_path):
    data = write_voc(tmp_path / 'voc')
    done = new_config(task='det', data=data, arch='m0', out=tmp_path / 'made.py', classes=['dog', 'chair'])
    assert load_config(done.path).metainfo.classes == ('dog', 'chair')
    assert [entry['name'] for entry in json.loads(done.annotations[1].read_text())['categories']] == ['dog', 'chair']


def test_sizes_that_are_not_written_are_read(tmp_path):
    found = find_boxes(write_voc(tmp_path, size=(0, 0)), None, Findings())
    assert [(record['width'], record['height']) for record in found['train'].content['images']] == list(SIZES.values())


def test_sizes_that_are_not_the_images(tmp_path):
    findings = Findings()
    check_coco(find_boxes(write_voc(tmp_path, size=(500, 375)), None, findings), None, findings)
    assert "differ from the file's: 'train_000005.jpg' of train is 101x77, not 500x375" in findings.report()


def test_trainval_and_test_serve_where_train_and_val_are_not(tmp_path):
    lists = write_voc(tmp_path) / 'VOC2007/ImageSets/Main'
    (lists / 'train.txt').rename(lists / 'trainval.txt')
    (lists / 'val.txt').rename(lists / 'test.txt')
    assert_boxes(pixel_boxes(find_boxes(tmp_path, None, Findings())['val']))
    (lists / 'test.txt').unlink()
    with pytest.raises(ValueError, match=r"has neither 'val.txt', 'test.txt' for 'val': add one"):
        find_boxes(tmp_path, None, Findings())


def test_two_years_are_not_one_data_set(tmp_path):
    write_voc(tmp_path)
    (tmp_path / 'VOC2012/ImageSets/Main').mkdir(parents=True)
    with pytest.raises(ValueError, match="several data sets \\('VOC2007', 'VOC2012'\\): give one"):
        find_boxes(tmp_path, None, Findings())


def test_splits_without_lists_or_names(tmp_path):
    data = write_voc(tmp_path, 'kind, split')
    (data / 'annotations/val').rename(data / 'annotations/other')
    with pytest.raises(ValueError, match="'annotations/train'\\) is named as the split 'val': name one 'train'"):
        find_boxes(data, None, Findings())


def replaced(old, new):
    def spoil(data):
        path = data / 'train/000005.xml'
        path.write_text(path.read_text().replace(old, new, 1))

    return spoil


BOMB = '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation>'
FAULTS = {
    'a document type': (replaced('<annotation>', BOMB), "(<!DOCTYPE ...>) is not read: remove that part: 'train/"),
    'a document type in utf-16': (
        lambda data: (data / 'train/000005.xml').write_bytes((BOMB + '&b;</annotation>').encode('utf-16')),
        '(<!DOCTYPE ...>) is not read',
    ),
    'not xml': (replaced('</size>', ''), "file is not XML: 'train/000005.xml' of train (mismatched tag"),
    'of another kind': (
        lambda data: (data / 'train/000005.xml').write_text('<svg/>'),
        "must be an <annotation> of Pascal VOC: 'train/000005.xml' of train is <svg>",
    ),
    'an unknown encoding': (
        lambda data: (data / 'train/000005.xml').write_bytes(b'<?xml version="1.0" encoding="klingon"?><annotation/>'),
        'file is not XML',
    ),
    'no name': (replaced('<name>dog</name>', ''), 'object 1 of \'train/000005.xml\' has the name ""'),
    'no box': (replaced('<ymin>1</ymin>', ''), '["1", null, "101", "77"]'),
    'text in a box': (replaced('<xmax>101', '<xmax>wide'), '["1", "1", "wide", "77"]'),
    'not finite': (replaced('<xmax>101', '<xmax>inf'), '["1", "1", "inf", "77"]'),
    'corners the wrong way': (replaced('<xmax>40', '<xmax>4'), "no area): object 2 of 'train/000005.xml' of train, ["),
    'outside': (replaced('<xmax>40', '<xmax>400'), 'box sticks out of its image'),
    'no image': (
        lambda data: (data / 'train/000005.jpg').unlink(),
        ".xml file without an image of its name: 'train/000005.xml' of train",
    ),
    'no xml': (
        lambda data: (data / 'train/000005.xml').unlink(),
        'image without an .xml file: write one without an object',
    ),
    'two images': (lambda data: noise().save(data / 'train/000005.png'), 'several images for one .xml file'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_faults_of_files(tmp_path, name):
    spoil, sentence = FAULTS[name]
    data = write_voc(tmp_path / 'voc', 'roboflow')
    spoil(data)
    done = new_config(task='det', data=data, arch='m0', out=tmp_path / 'made.py')
    assert sentence in done.findings.report()
    assert (done.path is None) == (name != 'outside')


@pytest.mark.parametrize(
    'path, sentence',
    [
        ('JPEGImages/train_000012.jpg', "missing image file: 'train_000012' of VOC2007/ImageSets/Main/train.txt"),
        ('Annotations/train_000012.xml', 'image without an .xml file: write one without an object where'),
    ],
    ids=['image', 'xml'],
)
def test_what_a_list_names_must_be_there(tmp_path, path, sentence):
    (write_voc(tmp_path) / 'VOC2007' / path).unlink()
    findings = Findings()
    find_boxes(tmp_path, None, findings)
    assert sentence in findings.report()
