"""Digit scenes on disk: COCO-style instances and ADE-style semantic masks of the same images, made once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repnext_mm._files import make_once
from repnext_mm.data.scene import Scene, compose_scene
from repnext_mm.data.sources import Split
from repnext_mm.errors import NotWrittenError, UserError

GENERATOR_VERSION = 1  # raise it whenever the same seed would give other scenes
CLASSES = tuple(f'digit {digit}' for digit in range(10))
PALETTE = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
)
FOLDERS: dict[Split, str] = {'train': 'training', 'val': 'validation'}  # ADE20K's names


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """What a folder of digit scenes holds: equal values give equal scenes."""

    train: int = 3000
    val: int = 200
    seed: int = 0
    size: int = 256

    def __post_init__(self) -> None:
        for name, least in (('train', 1), ('val', 1), ('seed', 0), ('size', 128)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f'{name}={value!r} makes no digit scenes: give an integer of at least {least}')

    def info(self) -> dict[str, Any]:
        """What is written into the JSON files, and compared when the folder is used again."""
        return {'description': 'digit scenes', 'generator_version': GENERATOR_VERSION, **asdict(self)}


def annotation_path(root: str | Path, split: Split) -> Path:
    """Where the COCO-style JSON of a split lies."""
    return Path(root) / 'annotations' / f'instances_{FOLDERS[split]}.json'


def ensure_scenes(root: str | Path, scenes: SceneSet | None = None) -> bool:
    """Make the folder of scenes unless it is there; several processes may ask at once.

    Returns:
        True if this call made it, False if it was there.

    Raises:
        FileInTheWayError: the folder holds something else, or scenes of another seed, size or generator.
    """
    scenes = scenes or SceneSet()
    return make_once(
        root,
        kind='digit scenes',
        info=scenes.info(),
        read_info=lambda folder: read_json(annotation_path(folder, 'val'))['info'],
        write=lambda folder: write_scenes(folder, scenes),
    )


def write_scenes(root: Path, scenes: SceneSet) -> None:
    """Write the images and annotations of every scene below a folder."""
    import cv2

    counts: dict[Split, int] = {'train': scenes.train, 'val': scenes.val}
    for split, count in counts.items():
        folder = FOLDERS[split]
        images, maps = root / 'images' / folder, root / 'annotations' / folder
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        records: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            scene = compose_scene(split=split, index=index, seed=scenes.seed, size=scenes.size)
            name = f'scene_{index:06d}'
            bgr = np.ascontiguousarray(scene.image[..., ::-1])
            must(cv2.imwrite(str(images / f'{name}.jpg'), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]), images)
            must(cv2.imwrite(str(maps / f'{name}.png'), scene.semantic()), maps)
            records.append({'id': index + 1, 'file_name': f'{name}.jpg', 'height': scenes.size, 'width': scenes.size})
            for fields in _instances(scene):
                annotations.append({'id': len(annotations) + 1, 'image_id': index + 1, **fields})
        content = {
            'info': scenes.info(),
            'categories': [{'id': number, 'name': name} for number, name in enumerate(CLASSES, start=1)],
            'images': records,
            'annotations': annotations,
        }
        annotation_path(root, split).write_text(json.dumps(content))


def _instances(scene: Scene) -> Iterator[dict[str, Any]]:
    """COCO fields of each instance; run-length masks, because a polygon cannot hold the hole of a 0."""
    from pycocotools import mask as coco_mask

    for number, label in enumerate(scene.labels, start=1):
        run_lengths = coco_mask.encode(np.asfortranarray(scene.instances == number, dtype=np.uint8))
        yield {
            'category_id': label + 1,
            'bbox': [float(side) for side in coco_mask.toBbox(run_lengths)],
            'area': int(coco_mask.area(run_lengths)),
            'segmentation': {'size': [int(n) for n in run_lengths['size']], 'counts': run_lengths['counts'].decode()},
            'iscrowd': 0,
        }


def must(written: bool, folder: Path) -> None:
    """Raise an ``OSError`` unless an image was written (OpenCV only returns False)."""
    if not written:
        raise NotWrittenError(f'{folder} takes no image file: make room on the disk, or give write access')


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())
