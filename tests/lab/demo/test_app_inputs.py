"""What the page in the browser offers, and which images it takes."""

from __future__ import annotations

import os
import zlib

import cv2
import numpy as np
import pytest

from repnext_mm.data.scene import compose_scene
from repnext_mm.lab.demo.app_inputs import MAX_PIXELS, Pair, check_upload, chosen, given_pairs, pairs_under


def touch(path, *, age=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))


def test_runs_newest_first(tmp_path):
    touch(tmp_path / 'old/net.py')
    touch(tmp_path / 'old/epoch_1.pth', age=3)
    touch(tmp_path / 'new/2026/vis_data/config.py')  # no weights beside it
    touch(tmp_path / 'new/net.py')
    touch(tmp_path / 'new/epoch_1.pth', age=2)
    touch(tmp_path / 'new/epoch_2.safetensors', age=1)
    touch(tmp_path / 'lone/weights.pth')
    offer = pairs_under(tmp_path)
    assert {config: list(weights) for config, weights in offer.items()} == {
        'new/net.py': ['epoch_2.safetensors', 'epoch_1.pth'],
        'old/net.py': ['epoch_1.pth'],
    }
    assert list(offer) == ['new/net.py', 'old/net.py']
    assert offer['old/net.py']['epoch_1.pth'] == Pair(tmp_path / 'old/net.py', tmp_path / 'old/epoch_1.pth')


def test_fused_weights_go_with_their_own_config_only(tmp_path):
    for name in ('net.py', 'fused.py'):
        touch(tmp_path / name)
    for age, name in enumerate(('epoch_1.pth', 'fused-0123abcd.pth')):
        touch(tmp_path / name, age=age)
    offer = pairs_under(tmp_path)
    assert {config: list(weights) for config, weights in offer.items()} == {
        'net.py': ['epoch_1.pth'],
        'fused.py': ['fused-0123abcd.pth'],
    }


def test_pairs_of_the_command_line(tmp_path):
    files = [tmp_path / name for name in ('a.py', 'a.pth', 'b.py', 'b.pth')]
    for file in files:
        touch(file)
    a, b = map(str, files[:2]), map(str, files[2:])
    assert given_pairs(files) == {next(a): {next(a): Pair(*files[:2])}, next(b): {next(b): Pair(*files[2:])}}
    with pytest.raises(ValueError, match=r"'a\.py' stands alone: give files in pairs"):
        given_pairs(['a.py'])
    with pytest.raises(ValueError, match=r"checkpoint 'nowhere\.pth' does not exist"):
        given_pairs([files[0], 'nowhere.pth'])
    with pytest.raises(ValueError, match='no config lies beside a checkpoint under'):
        pairs_under(tmp_path / 'nowhere')


def test_only_what_is_offered_is_read(tmp_path):
    offer = {'net.py': {'a.pth': Pair(tmp_path / 'net.py', tmp_path / 'a.pth')}}
    assert chosen(offer, 'net.py', 'a.pth').checkpoint == tmp_path / 'a.pth'
    for config, checkpoint in (('net.py', '../a.pth'), ('other.py', 'a.pth'), (str(tmp_path / 'net.py'), 'a.pth')):
        with pytest.raises(ValueError, match='is no longer offered: reload the page'):
            chosen(offer, config, checkpoint)


def write_png(path, width, height):
    cv2.imwrite(str(path), np.zeros((height, width), np.uint8))
    return path


def test_images_that_are_taken(tmp_path):
    image = tmp_path / 'scene.jpg'
    cv2.imwrite(str(image), compose_scene(split='val', index=0).image[..., ::-1])
    assert check_upload(image) == image
    assert check_upload(str(write_png(tmp_path / 'a.png', MAX_PIXELS // 1000, 1000))) == tmp_path / 'a.png'


@pytest.mark.parametrize(
    ('width', 'height', 'words'),
    [
        (MAX_PIXELS // 1000, 1001, r"'a\.png' is 4000 x 1001, more than 4,000,000 pixels.*: scale it down"),
        (30, 601, r"'a\.png' is 30 x 601, but one side may be at most 20 times the other: crop it"),
    ],
)
def test_images_that_are_too_large(width, height, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        check_upload(write_png(tmp_path / 'a.png', width, height))


def test_a_bomb_is_not_decoded(tmp_path):
    """Its header promises 2.5 thousand million pixels."""
    content = bytearray(write_png(tmp_path / 'bomb.png', 8, 8).read_bytes())
    content[16:24] = (50_000).to_bytes(4, 'big') * 2
    checksum = zlib.crc32(content[12:29])
    content[29:33] = checksum.to_bytes(4, 'big')
    (tmp_path / 'bomb.png').write_bytes(content)
    with pytest.raises(ValueError, match=r"'bomb\.png' has far more than 4,000,000 pixels"):
        check_upload(tmp_path / 'bomb.png')


@pytest.mark.parametrize('content', [b'not an image', b'', b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'GIF89a'])
def test_no_images(content, tmp_path):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(ValueError, match=r"'a\.png' cannot be read as an image: give one of JPEG, PNG") as caught:
        check_upload(tmp_path / 'a.png')
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match='no image yet'):
        check_upload(None)
