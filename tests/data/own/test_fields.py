"""Fields of COCO-style JSON: any value of any type is either fit for mmdet and pycocotools, or named with its place."""

from __future__ import annotations

import json
import re

import pytest

from repnext_mm.data.own import Findings, check_coco, find_coco
from repnext_mm.data.own.fields import FIELDS, read_coco
from tests.data.own.small_sets import coco_content, write_coco

VALUES = [
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    0.5,
    3.0,
    10**400,
    float('nan'),
    float('inf'),
    '',
    '1',
    'text',
    'nul\0',
    [],
    [[]],
    [1],
    [None],
    ['1', 2, 3, 4],
    [5, 10, 18, float('nan')],
    [5, 10, 18, 20],
    [1, 2, 3, 4, 5, 6],
    {},
    {'a': 1},
    [[1, 2]],
    [[1, 2, 3, 4]],
    [[1, 2, 3, 4, 5]],
    [[1, 1, 9, 1, 9, 9, 1]],
    [[1, 1, 9, 1, 9, None]],
    [[1, 1, 9, 1, 9, '9']],
    [[[1, 1], [9, 1], [9, 9]]],
    [[1, 1, 9, 1, 9, 9], [1]],
    [[1], [1, 1, 9, 1, 9, 9]],
    [{'size': [64, 64], 'counts': [0, 4096]}],
    {'size': [64, 64], 'counts': [0, 4096]},
    {'size': [64, 64], 'counts': [0, 4097]},
    {'size': [64, 64], 'counts': [0, 5]},
    {'size': [64, 64], 'counts': [-5, 4101]},
    {'size': [64, 64], 'counts': 'PPYo0'},
    {'size': [64, 64], 'counts': ''},
    {'size': [64, 64], 'counts': '0' * 4000},
    {'size': [64, 64], 'counts': 'é'},
    {'size': [64, 64], 'counts': None},
    {'size': 64, 'counts': [0, 4096]},
    {'counts': [0, 4096]},
    {'size': [32, 64], 'counts': [0, 2048]},
]
PLACES = [(section, field.key) for section, fields in FIELDS.items() for field in fields]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('fields'))


@pytest.fixture(autouse=True)
def _mmdet():
    pytest.importorskip('mmdet')


def check(root, **options):
    findings = Findings()
    facts = check_coco(find_coco(root), None, findings, **options)
    return facts, findings


@pytest.mark.parametrize('masks', [False, True], ids=['boxes', 'masks'])
@pytest.mark.parametrize('section, key', PLACES, ids=[f'{section}-{key}' for section, key in PLACES])
def test_a_value_of_any_type(root, section, key, masks):
    """The check itself asks mmdet and pycocotools where it sees no error: it must not raise for any value."""
    refused = 0
    for value in VALUES:
        write_coco(root, lambda content, value=value: content[section][0].update({key: value}), masks=masks)
        _, findings = check(root)
        report = findings.report()
        assert len(report) < 6000
        assert 'mmdet is not installed' not in report
        if findings.errors:
            refused += 1
            assert re.search(
                r'(images|annotations|categories)\[\d\]|category|image file|differ from the file', report
            ), report
    assert refused > len(VALUES) // 3


@pytest.mark.parametrize('section, key', PLACES, ids=[f'{section}-{key}' for section, key in PLACES])
def test_an_absent_field(root, section, key):
    write_coco(root, lambda content: content[section][0].pop(key, None))
    _, findings = check(root)
    if key in ('ignore', 'segmentation'):
        assert not findings.errors, findings.report()
    else:
        assert f'{section}[0].{key} of val is absent' in findings.report()


def test_a_fault_is_reported_once_with_its_place(root):
    write_coco(root, lambda content: content['images'][0].update(file_name=None))
    _, findings = check(root)
    assert list(findings.errors) == ['file_name of images must be text, the path below the folder of images']
    write_coco(root, lambda content: content['annotations'][3].update(bbox=[1, 2, None, 4]))
    assert 'annotations[3].bbox of train is [1, 2, null, 4]' in check(root)[1].report()


@pytest.mark.parametrize('to_other', [str, float, lambda number: f'x{number}', lambda number: number - 1], ids='1.x0')
def test_ids_of_another_kind_throughout_are_accepted(root, to_other):
    def change(content):
        for image in content['images']:
            image['id'] = to_other(image['id'])
        for category in content['categories']:
            category['id'] = to_other(category['id'])
        for box in content['annotations']:
            box |= {'image_id': to_other(box['image_id']), 'category_id': to_other(box['category_id'])}

    write_coco(root, change)
    _, findings = check(root)
    assert not findings.errors, findings.report()
    assert 'score less than 1' not in findings.report()


def test_ids_of_two_kinds_are_refused(root):
    def change(content):
        content['images'][1]['id'] = 'two'
        for box in content['annotations'][2:]:
            box['image_id'] = 'two'

    write_coco(root, change)
    assert 'ids of images must be all numbers or all text' in check(root)[1].report()


def test_the_annotation_id_0_is_a_miss_to_pycocotools(root):
    write_coco(root, lambda content: content['annotations'][0].update(id=0))
    _, findings = check(root)
    assert 'counts a match with the annotation id 0 as a miss' in findings.report()
    assert 'score less than 1 as bbox AP' in findings.report()
    assert not findings.errors


FILES = {
    'empty': (b'', 'is not JSON'),
    'list': (b'[]', 'is a list (of results, or of another format)'),
    'number': (b'17', 'is 17: COCO-style'),
    'null': (b'null', 'is null: COCO-style'),
    'labelme': (b'{"shapes": [], "imagePath": "x.jpg"}', 'is a file of labelme'),
    'captions': (b'{"info": {}, "licenses": [], "images": [], "annotations": []}', 'is a file of captions'),
    'no images': (b'{"annotations": [], "categories": []}', "has no 'images'"),
    'null list': (b'{"images": null, "annotations": [], "categories": []}', "has null as 'images'"),
    'no objects': (b'{"images": [1, {}, "x"], "annotations": [], "categories": []}', 'images[2] is "x"'),
    'truncated': (json.dumps(coco_content()).encode()[:-9], 'is not JSON'),
    'byte order mark': (b'\xef\xbb\xbf' + json.dumps(coco_content()).encode(), 'byte order mark'),
    'utf-16': (json.dumps(coco_content()).encode('utf-16'), 'byte order mark'),
    'utf-16 without a mark': (json.dumps(coco_content()).encode('utf-16-le'), 'is not JSON'),
    'latin-1': (b'{"images": "\xe9"}', 'is not UTF-8 (at byte 12)'),
    'nested': (b'[' * 100_000, 'nested too deeply'),
    'same key': (b'{"images": [], "images": [], "annotations": [], "categories": []}', "counts: 'images'"),
    'long number': (b'{"images": ' + b'9' * 10_000 + b'}', 'is not JSON'),
    'web page': (b'<!DOCTYPE html><html>', '<!DOCTYPE html>'),
    'pickle': (b'\x80\x04}q\x00.', 'is not UTF-8'),
    'pointer': (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
}


@pytest.mark.parametrize('name', FILES)
def test_a_file_of_another_kind_is_one_sentence(tmp_path, name):
    content, sentence = FILES[name]
    path = tmp_path / 'train.json'
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_coco(path)
    assert sentence in str(caught.value)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 600
