"""Which errors of an image are its own: the others, our bugs, keep their traceback."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from repnext_mm.apis import annotate_images, infer
from repnext_mm.errors import NotWrittenError, UserError


@pytest.fixture
def annotate(monkeypatch, tmp_path):
    """``annotate_images`` on two images, with something else in the place of the network."""
    paths = [tmp_path / f'{name}.png' for name in 'ab']
    for path in paths:
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))

    def run(network):
        monkeypatch.setattr(infer, 'build_annotator', lambda *_, **__: network)
        return annotate_images(paths, 'config.py', 'weights.pth', out_dir=tmp_path / 'out')

    return run


def test_a_users_error_does_not_stop_the_other_images(annotate):
    def network(source, out, say):
        if source.given.name == 'a.png':
            raise UserError('too narrow')
        out.write_bytes(source.file.read_bytes())

    done = annotate(network)
    assert [path.name for path in done.written] == ['b.png']
    assert list(done.failed.values()) == ['too narrow']


@pytest.mark.parametrize('error', [TypeError, ValueError, KeyError, OSError, ZeroDivisionError])
def test_a_bug_is_not_a_failed_image(annotate, error):
    def network(source, out, say):
        raise error('of ours')

    with pytest.raises(error, match='of ours') as caught:
        annotate(network)
    assert not isinstance(caught.value, UserError)


def test_nothing_written_is_said(annotate):
    done = annotate(lambda source, out, say: None)
    assert all('no image can be written under the name' in reason for reason in done.failed.values())


def test_a_folder_that_takes_no_file_is_said(annotate, tmp_path):
    (tmp_path / 'out').write_text('a file in the way')
    done = annotate(lambda source, out, say: out.write_bytes(source.file.read_bytes()))
    assert len(done.failed) == 2
    assert all('was not written' in reason for reason in done.failed.values())
    assert issubclass(NotWrittenError, OSError)


def test_an_image_that_is_read_is_not_replaced(monkeypatch, tmp_path):
    (tmp_path / 'vis').mkdir()
    (tmp_path / 'link').symlink_to('.')
    paths = [tmp_path / 'vis' / f'{name}.png' for name in 'ab']
    for path in paths:
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    before = [path.read_bytes() for path in paths]
    monkeypatch.setattr(infer, 'build_annotator', lambda *_, **__: lambda source, out, say: out.write_bytes(b'drawn'))
    done = annotate_images(paths, 'config.py', 'weights.pth', out_dir=tmp_path / 'link')
    assert done.written == ()
    assert all('was given to be read and would be replaced' in reason for reason in done.failed.values())
    assert [path.read_bytes() for path in paths] == before
