"""Tiny data sets of noise in the three layouts, to be spoiled by tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ('train', 'val')


def noise(seed=0, width=64, height=64):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8))


def coco_content(count=2, *, masks=False):
    """Two boxes in each image, of two classes."""
    content = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]}
    for index in range(count):
        content['images'].append({'id': index + 1, 'file_name': f'{index}.png', 'width': 64, 'height': 64})
        for k in range(2):
            x, y, w, h = 5 + 25 * k, 10, 18, 20
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': index + 1,
                    'category_id': k + 1,
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'iscrowd': 0,
                    'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]] if masks else [],
                }
            )
    return content


def write_coco(root, change=None, *, count=2, masks=False):
    """`change` edits the content of both splits."""
    for number, split in enumerate(SPLITS):
        (root / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            if not (root / split / f'{index}.png').exists():
                noise(10 * number + index).save(root / split / f'{index}.png')
        content = coco_content(count, masks=masks)
        if change is not None:
            change(content)
        (root / split / '_annotations.coco.json').write_text(json.dumps(content))
    return root


def write_maps(root, layout='{kind}/{split}', *, image='.jpg', label='.png', kinds=('images', 'masks'), count=2):
    for split in SPLITS:
        folders = [Path(root, layout.format(kind=kind, split=split)) for kind in kinds]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            noise(index).save(folders[0] / f'{index}{image}')
            values = np.zeros((64, 64), np.uint8)
            values[20:40, 20:40] = 1
            Image.fromarray(values).save(folders[-1] / f'{index}{label}')
    return Path(root)


def write_folders(root, *, classes=('cat', 'dog'), suffix='.jpg', count=2):
    for split in SPLITS:
        for name in classes:
            folder = Path(root, split, name)
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                noise(index, 40, 40).save(folder / f'{index}{suffix}')
    return Path(root)
