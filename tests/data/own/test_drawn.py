"""labelme, VIA and Label Studio, and COCO as CVAT and Roboflow write it: drawn shapes become COCO's annotations."""

from __future__ import annotations

import base64
import io
import json
import math

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from repnext_mm.apis import load_config
from repnext_mm.apis.checks import check_files
from repnext_mm.data.own import Findings, check_coco, find_boxes
from repnext_mm.data.own.new_config import new_config
from repnext_mm.errors import UserError
from tests.data.own.small_sets import noise

SPLITS = ('train', 'val')


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()


OVAL = np.zeros((12, 20), bool)
OVAL[2:9, 4:17] = True
LABELME = {
    'version': '5.5.0',
    'flags': {},
    'shapes': [
        {
            'label': 'dog',
            'points': [[10.5, 8.25], [50.0, 12.0], [40.0, 44.5], [12.0, 40.0]],
            'group_id': None,
            'description': '',
            'shape_type': 'polygon',
            'flags': {},
            'mask': None,
        },
        {
            'label': 'cat',
            'points': [[70.0, 50.0], [60.0, 20.0]],  # drawn from the lower right
            'group_id': None,
            'shape_type': 'rectangle',
            'flags': {},
        },
        {'label': 'cat', 'points': [[30.0, 30.0], [30.0, 40.0]], 'group_id': None, 'shape_type': 'circle', 'flags': {}},
        {
            'label': 'dog',
            'points': [[60.0, 2.0], [79.0, 13.0]],
            'group_id': None,
            'shape_type': 'mask',
            'flags': {},
            'mask': png(OVAL),
        },
        {'label': 'dog', 'points': [[2, 50], [8, 50], [8, 56]], 'group_id': 7, 'shape_type': 'polygon', 'flags': {}},
        {'label': 'dog', 'points': [[20, 50], [28, 50], [28, 56]], 'group_id': 7, 'shape_type': 'polygon', 'flags': {}},
        {'label': 'nose', 'points': [[20.0, 20.0]], 'group_id': None, 'shape_type': 'point', 'flags': {}},
    ],
    'imagePath': '0.jpg',
    'imageData': None,
    'imageHeight': 60,
    'imageWidth': 80,
}
VIA = {
    '0.jpg24631': {
        'filename': '0.jpg',
        'size': 24631,
        'regions': [
            {
                'shape_attributes': {
                    'name': 'polygon',
                    'all_points_x': [10.5, 50, 40, 12],
                    'all_points_y': [8.25, 12, 44.5, 40],
                },
                'region_attributes': {'type': 'dog', 'quality': {'good': True}},
            },
            {
                'shape_attributes': {'name': 'rect', 'x': 60, 'y': 20, 'width': 10, 'height': 30},
                'region_attributes': {'type': 'cat', 'quality': {}},
            },
            {
                'shape_attributes': {'name': 'circle', 'cx': 30, 'cy': 30, 'r': 10},
                'region_attributes': {'type': 'cat'},
            },
            {
                'shape_attributes': {'name': 'ellipse', 'cx': 40, 'cy': 30, 'rx': 20, 'ry': 5, 'theta': math.pi / 2},
                'region_attributes': {'type': 'dog'},
            },
            {'shape_attributes': {'name': 'point', 'cx': 4, 'cy': 4}, 'region_attributes': {'type': 'dog'}},
        ],
        'file_attributes': {'caption': ''},
    },
    '1.jpg512': {'filename': '1.jpg', 'size': 512, 'regions': [], 'file_attributes': {}},
}


def region(kind, value, label, **more):
    return {
        'id': f'{kind[:4]}{len(str(value))}',
        'type': kind,
        'value': {**value, **({kind: [label]} if label else {})},
        'original_width': 80,
        'original_height': 60,
        'image_rotation': 0,
        'from_name': 'label',
        'to_name': 'image',
        'origin': 'manual',
        **more,
    }


LABEL_STUDIO = [
    {
        'id': 41,
        'annotations': [
            {
                'id': 12,
                'completed_by': 1,
                'was_cancelled': False,
                'ground_truth': False,
                'result': [
                    region('polygonlabels', {'points': [[12.5, 10], [62.5, 20], [50, 75]], 'closed': True}, 'dog'),
                    region('rectanglelabels', {'x': 75, 'y': 50, 'width': 12.5, 'height': 25, 'rotation': 0}, 'cat'),
                    region('ellipselabels', {'x': 50, 'y': 50, 'radiusX': 12.5, 'radiusY': 10, 'rotation': 0}, 'cat'),
                    {
                        'id': 'c',
                        'type': 'choices',
                        'value': {'choices': ['day']},
                        'from_name': 'when',
                        'to_name': 'image',
                    },
                ],
            }
        ],
        'file_upload': '3f0c1a2b-0.jpg',
        'drafts': [],
        'predictions': [],
        'data': {'image': '/data/upload/1/3f0c1a2b-0.jpg'},
        'meta': {},
        'project': 1,
    },
    {
        'id': 42,
        'annotations': [{'id': 13, 'was_cancelled': False, 'result': []}],
        'data': {'image': '/data/local-files/?d=pets/1.jpg'},
    },
    {'id': 43, 'annotations': [{'id': 14, 'was_cancelled': True, 'result': []}], 'data': {'image': 's3://pets/2.jpg'}},
]


def images(root, count=2):
    for number, split in enumerate(SPLITS):
        (root / split).mkdir(parents=True)
        for index in range(count):
            noise(10 * number + index, 80, 60).save(root / split / f'{index}.jpg')
    return root


def write_labelme(root, content=LABELME):
    for split in SPLITS:
        (root / split / '0.json').write_text(json.dumps(content, indent=2))
        (root / split / '1.json').write_text(json.dumps({**LABELME, 'shapes': [], 'imagePath': '..\\x\\1.jpg'}))


def write_via(root, content=VIA, *, project=False):
    if project:
        content = {'_via_settings': {'ui': {}}, '_via_img_metadata': content, '_via_attributes': {}}
    for split in SPLITS:
        (root / split / 'via_region_data.json').write_text(json.dumps(content))


def write_via_1(root):
    content = json.loads(json.dumps(VIA))
    for entry in content.values():
        entry['regions'] = {str(number): region for number, region in enumerate(entry['regions'])}
    write_via(root, content)


def write_label_studio(root, content=LABEL_STUDIO):
    for split in SPLITS:
        (root / f'project-1-{split}.json').write_text(json.dumps(content))


WRITERS = {
    'labelme': write_labelme,
    'VIA': write_via,
    'VIA project': lambda root: write_via(root, project=True),
    'VIA 1': write_via_1,
    'Label Studio': write_label_studio,
}
EXPECTED = {  # class, [x, y, width, height], pixels of the mask (None: no mask)
    'labelme': [
        ('dog', (10.5, 8.25, 39.5, 36.25), 1101.75),
        ('cat', (60, 20, 10, 30), None),
        ('cat', (20, 20, 20, 20), math.pi * 100),
        ('dog', (64, 4, 13, 7), 91),
        ('dog', (2, 50, 26, 6), 42),
    ],
    'VIA': [
        ('dog', (10.5, 8.25, 39.5, 36.25), 1101.75),
        ('cat', (60, 20, 10, 30), None),
        ('cat', (20, 20, 20, 20), math.pi * 100),
        ('dog', (35, 10, 10, 40), math.pi * 100),
    ],
    'Label Studio': [
        ('dog', (10, 6, 40, 39), 690),
        ('cat', (60, 30, 10, 15), None),
        ('cat', (30, 24, 20, 12), math.pi * 60),
    ],
}


@pytest.mark.parametrize('tool', WRITERS)
def test_shapes_become_boxes_and_masks(tool, tmp_path):
    WRITERS[tool](images(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob('*.json')}
    findings = Findings()
    found = find_boxes(tmp_path, None, findings)
    assert not findings.errors, findings.report()
    assert f'is read as {tool.removesuffix(" 1").removesuffix(" project")}' in findings.counts[0]
    for split, part in found.items():
        assert [image['file_name'] for image in part.content['images']] == ['0.jpg', '1.jpg']
        assert (part.images / '0.jpg').parent.name == split
        assert {(image['width'], image['height']) for image in part.content['images']} == {(80, 60)}
        names = {category['id']: category['name'] for category in part.content['categories']}
        assert list(names.values()) == ['cat', 'dog']
        expected = EXPECTED[tool.removesuffix(' 1').removesuffix(' project')]
        assert len(part.content['annotations']) == len(part.places) == len(expected)
        for box, (name, sides, area) in zip(part.content['annotations'], expected, strict=True):
            assert names[box['category_id']] == name
            assert box['bbox'] == pytest.approx(sides, abs=0.1)
            assert box['area'] == pytest.approx(sides[2] * sides[3] if area is None else area, rel=0.005)
            assert ('segmentation' in box) == (area is not None)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*.json')} == before


def test_a_mask_of_labelme_lies_where_it_was_drawn(tmp_path):
    write_labelme(images(tmp_path))
    boxes = find_boxes(tmp_path, None, Findings())['train'].content['annotations']
    mask = coco_mask.decode(boxes[3]['segmentation'])
    assert mask.shape == (60, 80)
    assert mask[4:11, 64:77].all()
    assert mask.sum() == 91


def test_a_turned_rectangle_of_label_studio(tmp_path):
    turned = region('rectanglelabels', {'x': 50, 'y': 50, 'width': 25, 'height': 20, 'rotation': 90}, 'dog')
    task = {'id': 1, 'annotations': [{'result': [turned]}], 'data': {'image': '0.jpg'}}
    write_label_studio(images(tmp_path), [task])
    findings = Findings()
    (box,) = find_boxes(tmp_path, None, findings)['train'].content['annotations']
    assert box['bbox'] == pytest.approx((28, 30, 12, 20))  # to the left of its first corner, and down
    assert 'turned rectangle' in findings.report()


def test_shape_and_label_of_label_studio_in_two_items(tmp_path):
    box = {'x': 50, 'y': 50, 'width': 25, 'height': 20, 'rotation': 0}
    first, second = region('rectangle', box, None, id='a'), region('labels', box, 'dog', id='a')
    task = {'id': 1, 'annotations': [{'result': [first, second]}], 'data': {'image': '0.jpg'}}
    write_label_studio(images(tmp_path), [task])
    part = find_boxes(tmp_path, None, Findings())['train'].content
    assert [record['bbox'] for record in part['annotations']] == [[40, 30, 20, 12]]
    assert [record['name'] for record in part['categories']] == ['dog']


def test_one_class_of_via_without_attributes(tmp_path):
    """As in the balloons that Matterport's Mask R-CNN learns from."""
    content = json.loads(json.dumps(VIA))
    for entry in content.values():
        for item in entry['regions']:
            item['region_attributes'] = {}
    write_via(images(tmp_path), content)
    with pytest.raises(UserError, match='VIA without attributes: give the name of their one class with --classes'):
        find_boxes(tmp_path, None, Findings())
    part = find_boxes(tmp_path, ['balloon'], Findings())['train'].content
    assert [category['name'] for category in part['categories']] == ['balloon']
    assert len(part['annotations']) == 4


@pytest.mark.parametrize('tool', ['labelme', 'VIA', 'Label Studio'])
def test_a_config_is_written_and_mmdet_reads_it(tool, tmp_path):
    data = images(tmp_path / 'data')
    WRITERS[tool](data)
    done = new_config(task='det', data=data, out=tmp_path / 'own.py', arch='m0', boxes_only=True)
    assert not done.findings.errors, done.findings.report()
    assert [path.name for path in done.annotations] == ['instances_train.json', 'instances_val.json']
    assert done.annotations[0].parent == tmp_path / 'own_annotations'
    config = load_config(done.path)
    check_files(config, stages=('train', 'val', 'test'))
    init_default_scope('mmdet')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    assert dataset.metainfo['classes'] == ('cat', 'dog')
    assert len(dataset[0]['data_samples'].gt_instances.labels) == len(EXPECTED[tool])


def changed(content, change):
    content = json.loads(json.dumps(content))
    change(content)
    return content


def shape(number, **fields):
    return lambda content: content['shapes'][number].update(fields)


def via(number, **fields):
    return lambda content: content['0.jpg24631']['regions'][number]['shape_attributes'].update(fields)


def studio(number, **fields):
    return lambda content: content[0]['annotations'][0]['result'][number].update(fields)


BAD = {
    "a shape must have a label (text): shape 1 of 'train/0.json' is": ('labelme', shape(0, label=None)),
    "polygon must have a list of three points or more [x, y]: shape 1 of 'train/0.json'": (
        'labelme',
        shape(0, points=[[1, 2], [3, 4]]),
    ),
    'a rectangle must have a list of two points': ('labelme', shape(1, points=[['1', 2], [3, 4]])),
    'shape_type "cube" is unknown': ('labelme', shape(1, shape_type='cube')),
    "a mask must be a PNG in base64 under 'mask': shape 4": ('labelme', shape(3, mask='no')),
    "missing image file: 'gone.jpg' of 'train/0.json' of train": (
        'labelme',
        lambda all: all.update(imagePath='gone.jpg'),
    ),
    "width and height differ from the file's: 'train/0.json' of train says 81x60, 'train/0.jpg' is 80x60": (
        'labelme',
        lambda all: all.update(imageWidth=81),
    ),
    "must have the list 'shapes' and the text 'imagePath'": ('labelme', lambda all: all.update(shapes={})),
    "a region must name one class in 'type': region 1 of '0.jpg' of train/via_region_data.json has": (
        'VIA',
        lambda all: all['0.jpg24631']['regions'][0]['region_attributes'].update(type=''),
    ),
    'a rect must have the numbers x, y, width, height: region 2': ('VIA', via(1, width=None)),
    'must have all_points_x and all_points_y': ('VIA', via(0, all_points_x=[1, 2])),
    'a region must be a rect, polygon, circle or ellipse': ('VIA', via(1, name='blob')),
    "missing image file: 'gone.jpg' of train/via_region_data.json": (
        'VIA',
        lambda all: all['0.jpg24631'].update(filename='gone.jpg'),
    ),
    'a brush (RLE) is not read here: export from Label Studio as COCO, whose masks are: region': (
        'Label Studio',
        studio(1, type='brushlabels', value={'format': 'rle', 'rle': [0, 1], 'brushlabels': ['dog']}),
    ),
    'a region must have one label: region': (
        'Label Studio',
        studio(1, value={'x': 1, 'y': 1, 'width': 2, 'height': 2}),
    ),
    'with numbers in percent: region': ('Label Studio', studio(1, value={'x': 1, 'rectanglelabels': ['cat']})),
    'an image that was turned while annotating is not read': ('Label Studio', studio(1, image_rotation=90)),
    "missing image file: 'data/upload/1/gone.jpg' in task 41 of project-1-train.json": (
        'Label Studio',
        lambda all: all[0]['data'].update(image='/data/upload/1/gone.jpg'),
    ),
}
WITH_CONTENT = {
    'labelme': (write_labelme, LABELME),
    'VIA': (write_via, VIA),
    'Label Studio': (write_label_studio, LABEL_STUDIO),
}


@pytest.mark.parametrize('sentence', BAD)
def test_every_fault_names_file_and_place(sentence, tmp_path):
    tool, change = BAD[sentence]
    write, content = WITH_CONTENT[tool]
    write(images(tmp_path), changed(content, change))
    findings = Findings()
    find_boxes(tmp_path, None, findings)
    report = [line for line in findings.report().splitlines() if line.startswith('error: ')]
    assert any(sentence in line for line in report), findings.report()


def test_files_that_are_not_told_apart(tmp_path):
    write_labelme(images(tmp_path))
    for path in tmp_path.glob('*/*.json'):
        path.rename(tmp_path / f'{path.parent.name[0]}{path.name}')
    with pytest.raises(UserError, match="has 4 .json files of labelme .* none is named as the split 'train': name one"):
        find_boxes(tmp_path, None, Findings())


def test_attributes_of_via_that_could_all_be_the_class(tmp_path):
    content = json.loads(json.dumps(VIA).replace('"type"', '"breed"'))
    write_via(images(tmp_path), content)
    with pytest.raises(UserError, match=r"several attributes \('breed', 'quality'\): call the one that is the class"):
        find_boxes(tmp_path, None, Findings())


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ([{'id': 1, 'image': '0.jpg', 'rectanglelabels': []}], 'export it as JSON, not as JSON-MIN'),
        ([{'id': 1, 'data': {'image': '0.jpg'}, 'completions': []}], "without the list 'annotations'"),
    ],
    ids=['JSON-MIN', 'old'],
)
def test_other_exports_of_label_studio(content, said, tmp_path):
    write_label_studio(images(tmp_path), content)
    with pytest.raises(UserError, match=said):
        find_boxes(tmp_path, None, Findings())


def test_a_broken_file_of_labelme_stops_no_other(tmp_path):
    write_labelme(images(tmp_path))
    path = tmp_path / 'train/0.json'
    path.write_text(path.read_text()[:-20])
    findings = Findings()
    found = find_boxes(tmp_path, None, findings)
    (said,) = findings.errors['file cannot be read']
    assert said.startswith(f"'{path}' is not JSON")
    assert len(found['train'].content['images']) == 1
    assert len(found['val'].content['images']) == 2


def test_an_image_that_nobody_labeled(tmp_path):
    write_labelme(images(tmp_path, count=3))
    findings = Findings()
    assert len(find_boxes(tmp_path, None, findings)['train'].content['images']) == 2
    assert "image without a .json file is left out: 'train/2.jpg' of train" in findings.report()


def coco(images, *, first=1, **fields):
    """As CVAT and Roboflow write it, but for their own keys."""
    annotation = {
        'id': 1,
        'image_id': images[0]['id'],
        'category_id': first,
        'segmentation': [[10, 10, 30, 10, 30, 40, 10, 40]],
        'area': 600.0,
        'bbox': [10, 10, 20, 30],
        'iscrowd': 0,
    }
    return {'images': images, 'annotations': [annotation], **fields}


def cvat(split):
    """CVAT 2's "COCO 1.0": one task for each split, `instances_default.json` renamed as our pages say."""
    picture = {
        'id': 1,
        'width': 80,
        'height': 60,
        'file_name': '0.jpg',
        'license': 0,
        'flickr_url': '',
        'coco_url': '',
        'date_captured': 0,
    }
    content = coco(
        [picture],
        licenses=[{'name': '', 'id': 0, 'url': ''}],
        info={'contributor': '', 'date_created': '', 'description': '', 'url': '', 'version': '', 'year': ''},
        categories=[{'id': 1, 'name': 'dog', 'supercategory': ''}],
    )
    content['annotations'][0]['attributes'] = {'occluded': False}
    return f'annotations/instances_{split}.json', content


def roboflow(split):
    """Roboflow's "COCO": JSON beside the images, category 0 for all of the others, ids from 0."""
    picture = {
        'id': 0,
        'license': 1,
        'file_name': '0.jpg',
        'height': 60,
        'width': 80,
        'date_captured': '2024-05-02T09:11:24+00:00',
    }
    content = coco(
        [picture],
        info={
            'year': '2024',
            'version': '1',
            'description': 'Exported from roboflow.com',
            'contributor': '',
            'url': '',
        },
        licenses=[{'id': 1, 'url': 'https://creativecommons.org/licenses/by/4.0/', 'name': 'CC BY 4.0'}],
        categories=[
            {'id': 0, 'name': 'pets', 'supercategory': 'none'},
            {'id': 1, 'name': 'dog', 'supercategory': 'pets'},
        ],
    )
    return f'{split}/_annotations.coco.json', content


@pytest.mark.parametrize(('write', 'classes'), [(cvat, None), (roboflow, ['dog'])], ids=['CVAT', 'Roboflow'])
def test_coco_as_tools_write_it(write, classes, tmp_path):
    images(tmp_path)
    for split in SPLITS:
        name, content = write(split)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    findings = Findings()
    facts = check_coco(find_boxes(tmp_path, classes, findings), classes, findings)
    assert not findings.errors, findings.report()
    assert facts.classes == ('dog',)
    assert facts.masks


def test_maps_with_a_palette_are_read_as_class_numbers(tmp_path):
    """As labelme's and Pascal VOC's SegmentationClass: an indexed PNG with colors, 255 around objects."""
    for split in SPLITS:
        for folder in ('images', 'masks'):
            (tmp_path / folder / split).mkdir(parents=True)
        noise(1, 80, 60).save(tmp_path / f'images/{split}/0.jpg')
        values = np.zeros((60, 80), np.uint8)
        values[20:40, 30:50], values[10:20, 10:20], values[40, 30:50] = 1, 2, 255
        labels = Image.fromarray(values)
        labels.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[224, 224, 192] * 253])
        labels.save(tmp_path / f'masks/{split}/0.png')
    done = new_config(
        task='seg', data=tmp_path, classes=['background', 'cat', 'dog'], out=tmp_path.parent / f'{tmp_path.name}.py'
    )
    assert not done.findings.errors, done.findings.report()
    assert 'with the values 0, 1, 2, 255' in done.findings.report()
    config = load_config(done.path)
    init_default_scope('mmseg')
    steps = [
        step
        for step in config.train_dataloader.dataset.pipeline
        if step.type in ('LoadImageFromFile', 'LoadAnnotations')
    ]
    dataset = DATASETS.build(config.train_dataloader.dataset | dict(pipeline=steps))
    assert np.unique(dataset[0]['gt_seg_map']).tolist() == [0, 1, 2, 255]
