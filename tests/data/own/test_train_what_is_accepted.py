"""Whatever the check accepts can be trained on and scored: one epoch with every odd kind at once, through the tools."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.own.small_sets import noise, write_coco, write_folders, write_maps
from tests.data.own.test_voc import write_voc
from tests.data.own.test_yolo import write_yolo
from tests.tools.running import ROOT, metrics, options, run_tool

WORKERS = options(train_dataloader__num_workers=0, val_dataloader__num_workers=0, test_dataloader__num_workers=0)
PERSISTENT = [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]


def odd_images(folder, names):
    """Decodable, each in its own way, under the names that are there."""
    images = [
        lambda path: noise(1).convert('CMYK').save(path, 'JPEG'),
        lambda path: noise(2).convert('P').save(path, 'PNG'),
        lambda path: noise(3).convert('1').save(path, 'PNG'),
        lambda path: path.write_bytes(cv2.imencode('.png', np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)[1]),
        lambda path: noise(4).convert('RGBA').save(path, 'PNG'),
        lambda path: noise(5).save(path, 'WEBP'),
    ]
    for name, write in zip(names, images, strict=True):
        write(folder / name)


def boxes(root):
    def change(content):
        for image in content['images']:
            image |= {'id': f'image {image["id"]}', 'width': 64.0}
        for number, box in enumerate(content['annotations']):
            box |= {'image_id': f'image {box["image_id"]}', 'id': number, 'iscrowd': number == 4}
            box |= {'segmentation': [[1, 1, 9, 1, 9, 9]] if number % 2 else [[]], 'ignore': int(number == 5)}

    write_coco(root, change, count=6)
    odd_images(root / 'train', [f'{number}.png' for number in range(6)])
    return ['--task', 'det', '--boxes-only']


def masks(root):
    kinds = [
        [[5, 10, 23, 10, 23, 30]],
        [[5, 10, 23, 10, 23, 30], [1, 1]],
        {'size': [64, 64], 'counts': [10, 4086]},
        {'size': [64, 64], 'counts': 'U::f100000000000000000kQ3'},
    ]

    def change(content):
        for number, box in enumerate(content['annotations']):
            box['segmentation'] = kinds[number % 4]

    write_coco(root, change, count=4, masks=True)
    return ['--task', 'det']


def yolo_polygons(root):
    data = write_yolo(root / 'data', polygons=True)
    (data / 'labels/train/street_0001.txt').write_text('0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.8\n' * 2)
    return ['--task', 'det']


def voc(root):
    write_voc(root / 'data')
    return ['--task', 'det']


def maps_beside(root):
    write_maps(root, layout='{split}', image='.jpg', label='_mask.png', count=6)
    odd_images(root / 'train', [f'{number}.jpg' for number in range(6)])
    for number, mode in enumerate(('P', '1', 'L')):
        values = Image.fromarray(np.eye(64, dtype=np.uint8))
        values = values.point(lambda value: 255 * value).convert('1') if mode == '1' else values
        if mode == 'P':
            values.putpalette([0, 0, 0, 255, 0, 0])
        values.save(root / f'train/{number}_mask.png')
    return ['--task', 'seg', '--classes', 'ground,thing']


def split_before_kind(root):
    write_maps(root / 'store', layout='{split}/{kind}', image='_sat.webp', label='_labelIds.tif')
    (root / 'data').mkdir()
    for split in ('train', 'val'):
        os.symlink(root / 'store' / split, root / 'data' / split)
    return ['--task', 'seg', '--classes', 'ground,thing']


def class_folders(root):
    write_folders(root / 'data', suffix='.webp')
    os.symlink(root / 'data/train/cat', root / 'data/train/linked')
    os.symlink(root / 'data/val/cat', root / 'data/val/linked')
    odd_images(root / 'data/train/dog', ['a.JPG', 'b.png', 'c.PNG', 'd.tif', 'e.gif', 'f.jpeg'])
    os.symlink(root / 'data/train/dog/b.png', root / 'data/train/dog/link.png')
    return ['--task', 'cls']


@pytest.mark.slow
@pytest.mark.parametrize(
    'make, metric',
    [
        (boxes, 'coco/bbox_mAP'),
        (masks, 'coco/segm_mAP'),
        (yolo_polygons, 'coco/segm_mAP'),
        (voc, 'coco/bbox_mAP'),
        (maps_beside, 'mIoU'),
        (split_before_kind, 'mIoU'),
        (class_folders, 'accuracy/top1'),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_training(tmp_path, make, metric):
    task = make(tmp_path / 'all')
    data = tmp_path / 'all/data' if (tmp_path / 'all/data').is_dir() else tmp_path / 'all'
    size = '32' if 'cls' in task else '64'
    said = run_tool(
        ROOT / 'tools/new_config.py',
        *task,
        '--data',
        data,
        '--arch',
        'm0',
        '--size',
        size,
        '--epochs',
        '1',
        '--batch',
        '2',
        '--out',
        'made.py',
        cwd=tmp_path,
    )
    assert 'found 0 errors' in said
    said = run_tool(ROOT / 'tools/train.py', 'made.py', *WORKERS, *PERSISTENT, cwd=tmp_path)
    assert metrics(said, metric) >= -1
    assert 'nan' not in said.split('Epoch(train)')[-1].split('\n')[0]
