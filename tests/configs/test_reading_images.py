"""ImageNet's files are read as the authors' loader does: ``Image.open(path).convert('RGB')``, nothing turned."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image

from tests.configs import CONFIGS

pytest.importorskip('mmpretrain')

RECIPES = sorted(path.stem for path in CONFIGS.glob('*_imagenet.py'))
FILES = {
    'turned.jpg': 'RGB',
    'cmyk.jpg': 'CMYK',
    'gray.jpg': 'L',
    'clear.png': 'RGBA',
    'palette.png': 'P',
}
ORIENTATION, TURNED = 0x0112, 6


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    noise = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    image = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 3))
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    for name, mode in FILES.items():
        image.convert(mode).save(root / name, exif=exif)
    return root


def pipelines(name):
    init_default_scope('mmpretrain')
    config = Config.fromfile(CONFIGS / f'{name}.py')
    return {stage: config[f'{stage}_dataloader'].dataset.pipeline for stage in ('train', 'val', 'test')}


def test_opencv_would_turn(folder):
    assert cv2.imread(str(folder / 'turned.jpg')).shape == (130, 90, 3)
    with Image.open(folder / 'turned.jpg') as image:
        assert image.size == (130, 90)


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_reads_as_the_authors(folder, name):
    for stage, steps in pipelines(name).items():
        for file in FILES:
            expected = np.array(Image.open(folder / file).convert('RGB'))
            found = TRANSFORMS.build(dict(steps[0]))(dict(img_path=str(folder / file)))['img'][..., ::-1]
            assert np.array_equal(found, expected), (stage, file)


@pytest.mark.parametrize(
    ('name', 'edge', 'crop'),
    [
        ('repnext_m0_imagenet', 256, 224),
        ('repnext_m0_starnet_imagenet', 248, 224),
        ('repnext_u3_tiny_imagenet', 292, 256),
    ],
)
def test_what_is_tested_is_torchvisions_to_the_last_bit(folder, name, edge, crop):
    transforms = pytest.importorskip('torchvision.transforms')
    authors = transforms.Compose(
        [transforms.Resize(edge, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(crop)]
    )
    steps = Compose(pipelines(name)['test'])
    for file in FILES:
        expected = np.array(authors(Image.open(folder / file).convert('RGB')))
        found = steps(dict(img_path=str(folder / file)))['inputs'].numpy().transpose(1, 2, 0)[..., ::-1]
        assert np.array_equal(found, expected), file


@pytest.mark.parametrize('name', ['repnext_m0_imagenet', 'repnext_m0_starnet_imagenet', 'repnext_u3_tiny_imagenet'])
def test_augmentation_takes_what_pillow_read(folder, name):
    """A few draws of the whole training pipeline, whose steps are OpenCV's and Pillow's by turns."""
    steps = Compose(pipelines(name)['train'])
    for _ in range(4):
        for file in FILES:
            assert steps(dict(img_path=str(folder / file), gt_label=0))['inputs'].shape == (3, 224, 224)
