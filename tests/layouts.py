"""A handful of digit scenes laid out on disk exactly as COCO 2017, ADE20K and ImageNet are, and the authors' files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from repnext_mm import RepNeXt
from repnext_mm.data.scene import Scene, compose_scene

COCO_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def write_coco(root: Path, *, train: int = 4, val: int = 2, size: int = 128) -> Path:
    """COCO 2017: twelve-digit JPEG names, 80 categories under their gappy ids, polygons, and one crowd per image."""
    from mmdet.datasets import CocoDataset

    categories = [
        {'id': number, 'name': name, 'supercategory': 'thing'}
        for number, name in zip(COCO_IDS, CocoDataset.METAINFO['classes'], strict=True)
    ]
    (root / 'annotations').mkdir(parents=True)
    for split, count in (('train', train), ('val', val)):
        folder = root / f'{split}2017'
        folder.mkdir()
        images, annotations = [], []
        for index in range(count):
            scene, name = compose_scene(split=split, index=index, size=size), f'{index + 139:012d}.jpg'
            cv2.imwrite(str(folder / name), scene.image[..., ::-1])
            images.append({'id': index + 139, 'file_name': name, 'height': size, 'width': size, 'license': 1})
            for fields in _instances(scene):
                annotations.append({'id': len(annotations) + 1, 'image_id': index + 139, **fields})
        content = {'info': {}, 'licenses': [], 'images': images, 'annotations': annotations, 'categories': categories}
        (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(content))
    return root


def write_ade20k(root: Path, *, train: int = 4, val: int = 2, size: int = 128) -> Path:
    """ADE20K: JPEG images, PNG maps where 0 is 'other' and 1 to 150 are the classes."""
    for split, folder, count in (('train', 'training', train), ('val', 'validation', val)):
        images, maps = root / 'images' / folder, root / 'annotations' / folder
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for index in range(count):
            scene, name = compose_scene(split=split, index=index, size=size), f'ADE_{split}_{index + 1:08d}'
            cv2.imwrite(str(images / f'{name}.jpg'), scene.image[..., ::-1])
            cv2.imwrite(str(maps / f'{name}.png'), scene.semantic())
    return root


def write_imagenet(root: Path, *, train: int = 8, val: int = 4, size: int = 128) -> Path:
    """ImageNet: a folder for each of 1000 classes, as everybody has them; most are empty here."""
    for split, count in (('train', train), ('val', val)):
        for label in range(1000):
            (root / split / f'n{label:08d}').mkdir(parents=True)
        for index in range(count):
            scene = compose_scene(split=split, index=index, size=size + 16 * index)
            folder = root / split / f'n{37 * index:08d}'
            cv2.imwrite(str(folder / f'{folder.name}_{index}.JPEG'), scene.image[: size + index, :, ::-1])
    return root


def write_authors_checkpoint(path: Path, *, arch: str = 'm4') -> Path:
    """A classification file as the authors publish them: `model` holds the training form and two heads."""
    backbone = RepNeXt(arch=arch)
    width = backbone.out_channels[-1]
    weights = dict(backbone.state_dict())
    for head in ('head', 'head_dist'):
        weights |= {
            f'head.{head}.norm.weight': torch.ones(width),
            f'head.{head}.norm.bias': torch.zeros(width),
            f'head.{head}.norm.running_mean': torch.zeros(width),
            f'head.{head}.norm.running_var': torch.ones(width),
            f'head.{head}.norm.num_batches_tracked': torch.tensor(1),
            f'head.{head}.linear.weight': 0.02 * torch.randn(1000, width),
            f'head.{head}.linear.bias': torch.zeros(1000),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'model': weights}, path)
    return path


def _instances(scene: Scene) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for number, label in enumerate(scene.labels, start=1):
        mask = (scene.instances == number).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        polygons = [contour.ravel().astype(float).tolist() for contour in contours if len(contour) > 2]
        fields = {
            'category_id': COCO_IDS[label],
            'bbox': coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist(),
            'area': float(mask.sum()),
            'segmentation': polygons,
            'iscrowd': 0,
        }
        if polygons:
            found.append(fields)
    crowd = np.asfortranarray(scene.instances == len(scene.labels), dtype=np.uint8)
    counts, run = [], 0  # column by column, zeros first: COCO's uncompressed run lengths
    value = 0
    for pixel in crowd.ravel(order='F'):
        if pixel != value:
            counts, run, value = [*counts, run], 0, pixel
        run += 1
    size = list(crowd.shape)
    found[-1] |= {'segmentation': {'counts': [*counts, run], 'size': size}, 'iscrowd': 1}
    return found
