"""Names in annotations, folders and checkpoints lead nowhere, and become no program."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from repnext_mm.data.own.new_config import new_config
from repnext_mm.data.scene_files import CLASSES
from tests.reliability.hostile import files_below, model_of, run

HOSTILE_NAMES = [
    '"""\nimport os; os.mkdir("trace")\n"""',
    "'), x=__import__('os').mkdir('trace'), y=('",
    "\\', __import__('os').mkdir(\"trace\"), \\'",
    '{{$NOPE:\\\'+str(__import__("os").mkdir("trace"))+"\\\'}}',
    "{{'$NOPE:__import__('os').mkdir('trace')'}}",
    '{{ fileDirname }}',
    '{{ _base_.data_root }}',
    'a\\N{DIGIT ONE}\\x41\n# b',
]


def written(**options):
    """The config that was written, or the sentence that refuses to."""
    try:
        return new_config(**options).path, ''
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize('name', HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_names_in_annotations_become_no_program(name, here, folder):
    """tools/new_config.py writes class names of strangers' annotations into a config, which is a program."""
    data = Path(shutil.copytree(folder / 'scenes', here / 'scenes'))
    for path in (data / 'annotations').glob('instances_*.json'):
        content = json.loads(path.read_text())
        content['categories'][0]['name'] = name
        path.write_text(json.dumps(content))
    path, refusal = written(task='det', data=data, arch='m0', out='made.py')
    if path is None:
        assert len(refusal.splitlines()) == 1
        assert not (here / 'made.py').exists()
    else:
        assert Config.fromfile(str(path)).metainfo['classes'][0] == name
    assert not (here / 'trace').exists()


@pytest.mark.parametrize(
    'name', ['""" + str(__import__("os").mkdir("trace")) + """', 'a{{ fileDirname }}', 'a\nb', 'a\\N'], ids=range(4)
)
def test_names_of_folders_become_no_program(name, here):
    for split in ('train', 'val'):
        for label, gray in (('cat', 50), ('dog', 90)):
            (here / name / split / label).mkdir(parents=True)
            for index in range(2):
                cv2.imwrite('x.jpg', np.full((40, 48, 3), gray + index, np.uint8))
                shutil.copy('x.jpg', here / name / split / label / f'{index}.jpg')
    path, refusal = written(task='cls', data=here / name, arch='m0', batch=2)
    assert len(refusal.splitlines()) <= 1
    assert path is None or Config.fromfile(str(path)).data_root == (here / name).as_posix()
    assert not (here / 'trace').exists()


@pytest.mark.filterwarnings('ignore:Implicitly cleaning up')  # mmdet's folder for results
@pytest.mark.filterwarnings('ignore:Warning. The text is out of bounds')
@pytest.mark.parametrize(
    'task', ['cls', pytest.param('det', marks=pytest.mark.slow), pytest.param('seg', marks=pytest.mark.slow)]
)
def test_images_are_drawn_inside_the_named_folder(task, here, folder, monkeypatch):
    """File names of annotations may climb out of their folder; what is made from them must not."""
    root, outside = here / 'data', here / 'outside'
    outside.mkdir()
    root.mkdir()
    for index in range(2):
        shutil.copy(folder / 'image.jpg', outside / f'{index}.jpg')
    torch.save({'state_dict': model_of(folder / f'{task}.py').state_dict()}, 'good.pth')
    climbing = [f'../outside/{index}.jpg' for index in range(2)]
    if task == 'det':
        content = json.loads((folder / 'scenes/annotations/instances_validation.json').read_text())
        for image, name in zip(content['images'], climbing, strict=True):
            image['file_name'] = name
        (root / 'list.json').write_text(json.dumps(content))
        data = "type='CocoDataset', ann_file='list.json', data_prefix=dict(img='')"
    elif task == 'seg':
        (root / 'list.txt').write_text('\n'.join(name.removesuffix('.jpg') for name in climbing))
        for index in range(2):
            cv2.imwrite(str(outside / f'{index}.png'), np.ones((64, 64), np.uint8))
        data = "type='BaseSegDataset', ann_file='list.txt', data_prefix=dict(img_path='', seg_map_path='')"
    else:
        (root / 'list.txt').write_text('\n'.join(f'{name} {index}' for index, name in enumerate(climbing)))
        data = "type='CustomDataset', ann_file='list.txt', data_prefix=''"
    classes = CLASSES if task != 'seg' else ('background', *CLASSES)
    palette = [(index, 0, 0) for index in range(len(classes))]
    (here / 'climbing.py').write_text(
        f"_base_ = '{folder}/{task}.py'\n"
        f"test_dataloader = dict(dataset=dict(_delete_=True, {data}, data_root='{root}', test_mode=True,\n"
        f'    metainfo=dict(classes={classes}, palette={palette}),\n'
        '    pipeline={{_base_.test_dataloader.dataset.pipeline}}))\n'
        + (f"test_evaluator = dict(ann_file='{root}/list.json')\n" if task == 'det' else '')
    )
    before = files_below(here)
    words = ('--work-dir', 'work', '--show-dir', 'shown', '--out', 'work/out.pkl')
    said = run('test.py', 'climbing.py', 'good.pth', *words, monkeypatch=monkeypatch)
    gc.collect()
    assert said == ''
    made = files_below(here) - before
    assert {path.parts[0] for path in made} == {'work', 'shown'}
    assert len([path for path in made if path.parts[0] == 'shown' and path.suffix in ('.jpg', '.png')]) == 2
