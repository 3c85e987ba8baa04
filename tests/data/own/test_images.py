"""Images as training sees them: what the check accepts, `LoadImageFromFile` decodes, at the size that it says."""

from __future__ import annotations

import inspect
import io

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from repnext_mm.data.own.images import GIANT, SUFFIXES, see
from tests.data.own.small_sets import noise

TALL = noise(0, 48, 64)


def encoded(image, kind, **options):
    raw = io.BytesIO()
    image.save(raw, kind, **options)
    return raw.getvalue()


def by_opencv(values, suffix):
    return cv2.imencode(suffix, values)[1].tobytes()


def turned(orientation, kind='JPEG'):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(TALL, kind, exif=exif)


def sixteen(most):
    return np.linspace(0, most, 64 * 48).reshape(64, 48).astype(np.uint16)


FILES = {
    'jpeg': encoded(TALL, 'JPEG'),
    'progressive jpeg': encoded(TALL, 'JPEG', progressive=True),
    'cmyk jpeg': encoded(TALL.convert('CMYK'), 'JPEG'),
    'gray jpeg': encoded(TALL.convert('L'), 'JPEG'),
    'png': encoded(TALL, 'PNG'),
    'palette': encoded(TALL.convert('P'), 'PNG'),
    'one bit': encoded(TALL.convert('1'), 'PNG'),
    'alpha': encoded(TALL.convert('RGBA'), 'PNG'),
    'gray with alpha': encoded(TALL.convert('LA'), 'PNG'),
    'webp': encoded(TALL, 'WEBP'),
    'gif': encoded(TALL.convert('P'), 'GIF'),
    'bmp': encoded(TALL, 'BMP'),
    'ppm': encoded(TALL, 'PPM'),
    'tiff': encoded(TALL, 'TIFF'),
    'tiff of jpeg': encoded(TALL, 'TIFF', compression='jpeg'),
    'tga': encoded(TALL, 'TGA'),
    'ico': encoded(TALL, 'ICO'),
    'pcx': encoded(TALL, 'PCX'),
    'float tiff': encoded(Image.fromarray(sixteen(1000).astype(np.float32) / 1000), 'TIFF'),
    'float tiff in color': by_opencv(np.random.RandomState(0).rand(64, 48, 3).astype(np.float32), '.tiff'),
    'float tiff to 255': by_opencv(255 * np.random.RandomState(0).rand(64, 48, 3).astype(np.float32), '.tiff'),
    'int32 tiff': encoded(Image.fromarray(sixteen(4000).astype(np.int32)), 'TIFF'),
    '12 bits in 16': by_opencv(sixteen(4095), '.png'),
    '12 bits in 16, color': by_opencv(np.dstack([sixteen(4095)] * 3), '.png'),
    '16 bits': by_opencv(sixteen(65535), '.png'),
    '16 bits in tiff': by_opencv(sixteen(65535), '.tiff'),
    'trailing bytes': encoded(TALL, 'JPEG') + b'junk' * 100,
    'empty': b'',
    'text': b'not an image',
    'pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n',
    **{f'orientation {number}': turned(number) for number in range(1, 9)},
    'orientation 6, png': turned(6, 'PNG'),
    'orientation 6, webp': turned(6, 'WEBP'),
    **{
        f'{kind} cut at {part}': encoded(noise(0, 480, 640), kind)[: int(part * len(encoded(noise(0, 480, 640), kind)))]
        for kind in ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF')
        for part in (0.01, 0.5, 0.99)
    },
}


@pytest.mark.parametrize('name', FILES)
def test_the_check_sees_what_training_sees(tmp_path, name):
    path = tmp_path / 'image.png'  # whatever it is: decoders do not go by names
    path.write_bytes(FILES[name])
    seen = see(path)
    try:
        image = LoadImageFromFile().transform({'img_path': str(path)})['img']
    except (AssertionError, cv2.error):
        assert seen.error
        assert seen.size is None
    else:
        assert seen.size == (image.shape[1], image.shape[0])
    if 'cut' in name:
        assert seen.error


@pytest.mark.parametrize(
    'name, error, detail',
    [
        ('tga', 'training cannot decode the image', 'TGA of mode RGB'),
        ('float tiff', 'training cannot decode the image', 'TIFF of mode F'),
        ('empty', 'training cannot decode the image', 'an empty file'),
        ('text', 'training cannot decode the image', 'not an image'),
        ('pointer', 'git lfs pull', ''),
        ('12 bits in 16', 'sees nearly black', 'uint16 up to 4095 become 8 bits up to 15'),
        ('12 bits in 16, color', 'sees nearly black', 'uint16 up to 4095'),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, error, detail):
    path = tmp_path / 'image.png'
    path.write_bytes(FILES[name])
    seen = see(path)
    assert error in seen.error
    assert detail in seen.detail


@pytest.mark.parametrize('name', ['16 bits', '16 bits in tiff'])
def test_lost_bits_are_a_warning(tmp_path, name):
    (tmp_path / 'image.tif').write_bytes(FILES[name])
    seen = see(tmp_path / 'image.tif')
    assert seen.error is None
    assert 'keeps 8 bits' in seen.warning


@pytest.mark.parametrize(
    ('name', 'said', 'detail'),
    [
        ('float tiff to 255', 'sees nearly black or white', 'float32 up to 25'),
        ('float tiff in color', 'keeps 8 bits', 'float32 up to'),
    ],
)
def test_floats_in_color_are_told_whether_opencv_decodes_them_or_not(tmp_path, name, said, detail):
    (tmp_path / 'image.tif').write_bytes(FILES[name])
    seen = see(tmp_path / 'image.tif')
    if cv2.imread(str(tmp_path / 'image.tif')) is None:  # from 4.13 on
        said = 'training cannot decode the image'
    assert said in (seen.error or seen.warning)
    assert detail in seen.detail


@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_turn_of_exif_is_noticed_where_the_size_does_not_show_it(tmp_path, orientation):
    path = tmp_path / 'image.jpg'
    path.write_bytes(turned(orientation))
    assert see(path).turned == (orientation != 1)


def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / 'slide.png'
    Image.new('1', (20_000, 10_000)).save(path)
    assert see(path).error == GIANT


def test_files_that_cannot_be_opened(tmp_path):
    assert see(tmp_path).error == 'file cannot be opened'
    assert see(tmp_path / 'gone.png').detail == 'No such file or directory'


def test_the_suffixes_include_those_that_classification_reads_by_default():
    custom = pytest.importorskip('mmpretrain.datasets.custom')
    from repnext_mm.data.own.class_folders import DEFAULT_SUFFIXES

    default = inspect.signature(custom.CustomDataset).parameters['extensions'].default
    assert tuple(default) == DEFAULT_SUFFIXES
    assert set(DEFAULT_SUFFIXES) <= set(SUFFIXES)
