"""Images from anywhere: the right answer or one sentence, whole files or none."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from repnext_mm.apis import annotate_image
from repnext_mm.apis.image_file import MAX_PIXELS, fit_image
from repnext_mm.data.scene import compose_scene
from tests.configs import CONFIGS
from tests.tools.running import ROOT, run_tool

TASKS = ('mask_rcnn_repnext_m0_digits.py', 'semantic_fpn_repnext_m0_digits.py')
TINY = """
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))),
    neck=dict(in_channels=[8, 16, 32, 64]))
"""


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """(config, checkpoint) of an untrained detector and segmentor."""
    folder, found = tmp_path_factory.mktemp('networks'), []
    for name in TASKS:
        path = folder / name
        path.write_text(f'_base_ = [{str(CONFIGS / name)!r}]\n{TINY}')
        config = Config.fromfile(path)
        init_default_scope(config.default_scope)
        torch.manual_seed(0)
        torch.save({'state_dict': MODELS.build(config.model).state_dict(), 'meta': {}}, path.with_suffix('.pth'))
        found.append((path, str(path.with_suffix('.pth'))))
    return found


SCENE = compose_scene(split='val', index=0, size=96).image[:64]  # (64, 96, 3), RGB


def saved(format, mode='RGB', **options):
    buffer = io.BytesIO()
    image = Image.fromarray(SCENE)
    (image.convert(mode) if mode != 'RGB' else image).save(buffer, format, **options)
    return buffer.getvalue()


def png_16():
    return cv2.imencode('.png', SCENE[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved('JPEG', exif=exif)


def animated(format):
    buffer = io.BytesIO()
    frames = [Image.fromarray(SCENE), Image.fromarray(255 - SCENE)]
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def sized(width, height):
    buffer = io.BytesIO()
    Image.new('RGB', (width, height), (200, 30, 90)).save(buffer, 'PNG')
    return buffer.getvalue()


def bomb(width, height):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


GOOD = {  # file name: content, name and (height, width) of the annotated image
    'scene.jpg': (lambda: saved('JPEG'), 'scene.jpg', (64, 96)),
    'cmyk.jpg': (lambda: saved('JPEG', 'CMYK'), 'cmyk.jpg', (64, 96)),
    'gray.jpg': (lambda: saved('JPEG', 'L'), 'gray.jpg', (64, 96)),
    'progressive.jpg': (lambda: saved('JPEG', progressive=True), 'progressive.jpg', (64, 96)),
    'turned.jpg': (turned, 'turned.jpg', (96, 64)),
    '16bit.png': (png_16, '16bit.png', (64, 96)),
    'gray.png': (lambda: saved('PNG', 'L'), 'gray.png', (64, 96)),
    'palette.png': (lambda: saved('PNG', 'P'), 'palette.png', (64, 96)),
    'rgba.png': (lambda: saved('PNG', 'RGBA'), 'rgba.png', (64, 96)),
    'black_and_white.png': (lambda: saved('PNG', '1'), 'black_and_white.png', (64, 96)),
    'moving.gif': (lambda: animated('GIF'), None, (64, 96)),
    'moving.png': (lambda: animated('PNG'), 'moving.png', (64, 96)),
    'pages.tif': (lambda: animated('TIFF'), 'pages.tif', (64, 96)),
    'scene.webp': (lambda: saved('WEBP'), 'scene.webp', (64, 96)),
    'scene.bmp': (lambda: saved('BMP'), 'scene.bmp', (64, 96)),
    'icon.ico': (lambda: saved('ICO', sizes=[(96, 64)]), 'icon.png', (64, 96)),
    'no_suffix': (lambda: saved('JPEG'), 'no_suffix.png', (64, 96)),
    'wrong_suffix.jpg': (lambda: saved('PNG'), 'wrong_suffix.jpg', (64, 96)),
    'wrong_suffix.txt': (lambda: saved('PNG'), 'wrong_suffix.png', (64, 96)),
    'UPPER.JPG': (lambda: saved('JPEG'), 'UPPER.JPG', (64, 96)),
    'Bäckerei 图像 %d {x}.jpg': (lambda: saved('JPEG'), 'Bäckerei 图像 %d {x}.jpg', (64, 96)),
    'one_pixel.png': (lambda: sized(1, 1), 'one_pixel.png', (1, 1)),
    'line.png': (lambda: sized(40, 1), 'line.png', (1, 40)),
}
BAD = {  # content, what is said
    'truncated.jpg': (lambda: saved('JPEG')[:-700], 'cannot be read, it is corrupt'),
    'truncated.png': (lambda: saved('PNG')[:-700], 'cannot be read, it is corrupt'),
    'truncated_progressive.jpg': (lambda: saved('JPEG', progressive=True)[:1200], 'cannot be read, it is corrupt'),
    'header.jpg': (lambda: saved('JPEG')[:20], 'cannot be read'),
    'empty.jpg': (lambda: b'', 'cannot be read as an image: give a JPEG or PNG file'),
    'text.jpg': (lambda: b'not an image', 'cannot be read as an image: give a JPEG or PNG file'),
    'bomb.png': (lambda: bomb(60000, 60000), 'has far too many pixels: scale it down'),
    'hollow.png': (lambda: bomb(2000, 2000), 'cannot be read, it is corrupt'),
    'video.mp4': (lambda: b'\x00\x00\x00 ftypisom' + bytes(100), 'cannot be read as an image'),
}


@pytest.mark.parametrize('task', [0, 1], ids=['detection', 'segmentation'])
@pytest.mark.parametrize('name', ['16bit.png', 'turned.jpg', 'moving.gif', 'no_suffix', 'one_pixel.png'])
def test_right_answers(name, task, networks, tmp_path):
    _annotated(name, networks[task], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('task', [0, 1], ids=['detection', 'segmentation'])
@pytest.mark.parametrize('name', GOOD)
def test_more_right_answers(name, task, networks, tmp_path):
    _annotated(name, networks[task], tmp_path)


def _annotated(name, network, folder):
    make, expected, size = GOOD[name]
    (folder / name).write_bytes(make())
    if size[0] == 1 and 'semantic' in network[0].name:  # this pipeline pads nothing; and one pixel cannot be drawn on
        with pytest.raises(ValueError, match="does not pass the config's test pipeline|needs at least 32x32"):
            annotate_image(folder / name, *network, out_dir=folder / 'out', device='cpu')
        return
    written = annotate_image(folder / name, *network, out_dir=folder / 'out', device='cpu')
    assert written.parent == folder / 'out' / 'vis'
    assert expected is None or written.name == expected
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    with Image.open(written) as drawn:
        assert drawn.size == size[::-1]


@pytest.mark.parametrize('name', GOOD)
def test_what_the_network_sees(name, tmp_path):
    make, _, size = GOOD[name]
    (tmp_path / name).write_bytes(make())
    with fit_image(tmp_path / name) as path:
        seen = cv2.imread(str(path))
        assert seen.shape == (*size, 3)
        if size == (64, 96):
            plain = cv2.cvtColor(SCENE, cv2.COLOR_RGB2GRAY).astype(float)
            gray = cv2.cvtColor(seen, cv2.COLOR_BGR2GRAY)
            if name.startswith('black'):  # dithered
                gray, plain = cv2.blur(gray, (15, 15)), cv2.blur(plain, (15, 15))
            assert np.abs(gray - plain).mean() < 12
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('name', BAD)
def test_clear_errors(name, networks, tmp_path):
    make, words = BAD[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ValueError, match=words) as caught:
        annotate_image(tmp_path / name, *networks[0], out_dir=tmp_path / 'out', device='cpu')
    assert str(caught.value).isprintable()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['', 'absent.jpg', 'folder.jpg'])
def test_no_file(name, networks, tmp_path):
    (tmp_path / 'folder.jpg').mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match='give (the path of an image|one image) file'):
        annotate_image(tmp_path / name, *networks[0], out_dir=tmp_path / 'out', device='cpu')


@pytest.mark.parametrize('size', [(1, 4000), (4000, 1)], ids=str)
def test_too_narrow_for_the_pipeline(size, networks, tmp_path):
    (tmp_path / 'strip.png').write_bytes(sized(*size))
    with pytest.raises(ValueError, match=r"image '.*strip\.png' does not pass the config's test pipeline and model"):
        annotate_image(tmp_path / 'strip.png', *networks[0], out_dir=tmp_path / 'out', device='cpu')
    assert not list((tmp_path / 'out').rglob('*.png'))


def test_a_large_image_is_scaled_down(tmp_path):
    Image.new('L', (12000, 9000), 77).save(tmp_path / 'large.jpg')
    with fit_image(tmp_path / 'large.jpg') as path:
        seen = cv2.imread(str(path))
    height, width = seen.shape[:2]
    assert MAX_PIXELS * 0.99 < height * width <= MAX_PIXELS
    assert width / height == pytest.approx(4 / 3, rel=1e-3)
    assert path.name == 'large.jpg'
    assert not path.exists()
    assert abs(int(seen.max()) - 77) <= 1


@pytest.mark.slow
@pytest.mark.parametrize('task', [0, 1], ids=['detection', 'segmentation'])
def test_a_large_image_is_annotated(task, networks, tmp_path):
    Image.new('L', (12000, 9000), 77).save(tmp_path / 'large.jpg')
    output = run_tool(
        ROOT / 'tools/infer.py', 'large.jpg', *networks[task], '--device', 'cpu', '--out-dir', 'out', cwd=tmp_path
    )
    assert 'is scaled down to' in output
    with Image.open(tmp_path / 'out/vis/large.jpg') as drawn:
        assert MAX_PIXELS * 0.99 < drawn.width * drawn.height <= MAX_PIXELS


@pytest.mark.parametrize('count', [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutations(count, tmp_path):
    """A whole image or a ValueError; what cannot be decoded in full is never used."""
    originals = [saved(kind) for kind in ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')]
    originals += [saved('JPEG', progressive=True), saved('PNG', 'P'), animated('GIF')]
    refused = []
    for index in range(count):
        rng = random.Random(index)
        data = bytearray(rng.choice(originals))
        for _ in range(rng.choice((1, 2, 10))):
            data[rng.choice((rng.randrange(len(data)), rng.randrange(60)))] = rng.choice((0, 255, rng.randrange(256)))
        path = tmp_path / f'image{rng.choice((".jpg", ".png", ""))}'
        path.write_bytes(data if rng.random() < 0.7 else data[: rng.randrange(len(data))])
        try:
            with fit_image(path) as fit:
                seen = cv2.imread(str(fit))
                assert seen.ndim == 3
                assert seen.shape[0] * seen.shape[1] <= MAX_PIXELS
        except ValueError as error:
            refused.append(str(error))
        path.unlink()
        assert not list(tmp_path.iterdir())
    assert count / 10 < len(refused) < count
    assert all(words.isprintable() for words in refused)


def test_an_interrupted_write_leaves_the_old_image(networks, tmp_path, monkeypatch):
    path, place = tmp_path / 'scene.png', tmp_path / 'out' / 'vis'
    path.write_bytes(saved('PNG'))
    place.mkdir(parents=True)
    (place / 'scene.png').write_bytes(b'old')

    def interrupted(source, target, **_):
        assert Path(source).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        annotate_image(path, *networks[1], out_dir=tmp_path / 'out', device='cpu')
    assert (place / 'scene.png').read_bytes() == b'old'
    assert [found.name for found in place.iterdir()] == ['scene.png']
