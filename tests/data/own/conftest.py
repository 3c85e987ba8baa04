"""Scenes with boxes and maps, and folders of classes: each test gets a copy to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from repnext_mm.data import SceneSet, ensure_scenes


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')
    ensure_scenes(folder / 'scenes', SceneSet(train=4, val=2, size=128))
    for split in ('train', 'val'):
        for number, name in enumerate(('cat', 'dog')):
            (folder / 'pets' / split / name).mkdir(parents=True)
            for index in range(2):
                image = np.full((40, 48, 3), 50 * number + index, np.uint8)
                cv2.imwrite(str(folder / 'pets' / split / name / f'{index}.jpg'), image)
    return folder


@pytest.fixture
def scenes(made, tmp_path):
    return Path(shutil.copytree(made / 'scenes', tmp_path / 'scenes'))


@pytest.fixture
def pets(made, tmp_path):
    return Path(shutil.copytree(made / 'pets', tmp_path / 'pets'))
