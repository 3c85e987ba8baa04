"""A folder for a hub: timm, mmengine and RepNeXt load what it holds, and its card says what is known and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.registry import MODELS, init_default_scope

from repnext_mm import RepNeXt
from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import classes_in_checkpoint, load_config
from repnext_mm.apis.publish import publish
from repnext_mm.checkpoints import read_checkpoint, write_checkpoint
from repnext_mm.models.heads import Classifier
from repnext_mm.reparam import fuse
from tests.checkpoints import files
from tests.configs import CONFIGS
from tests.conftest import randomize, worst_error

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def front(folder: Path) -> dict:
    _, text, _ = (folder / 'README.md').read_text().split('---\n', 2)
    return yaml.safe_load(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_path_of(machine: Path, folder: Path) -> bool:
    return not any(str(machine) in path.read_text() for path in folder.iterdir() if path.suffix != '.safetensors')


def test_a_classifier_is_one_of_timm_and_a_backbone(tmp_path, golden_state):
    timm = pytest.importorskip('timm')
    import repnext_mm.timm_models  # noqa: F401 - registers

    source = files.authors_training(tmp_path / 'own.pth', files.typed(golden_state))
    written = publish(source, tmp_path / 'out', license='mit')
    assert (
        [path.name for path in written] == names(tmp_path / 'out') == ['README.md', 'config.json', 'model.safetensors']
    )
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert all(torch.equal(value, golden_state[key].to(value.dtype)) for key, value in model.state_dict().items())
    backbone = RepNeXt('m0', weights=str(tmp_path / 'out/model.safetensors'))
    assert torch.equal(backbone.stem.stem[0].conv.weight, model.stem.stem[0].conv.weight)
    assert front(tmp_path / 'out') == {
        'license': 'mit',
        'library_name': 'timm',
        'pipeline_tag': 'image-classification',
        'tags': ['repnext', 'repnext_mm', 'timm'],
    }
    assert no_path_of(tmp_path, tmp_path / 'out')
    card = (tmp_path / 'out/README.md').read_text()
    assert "timm.create_model('hf-hub:OWNER/NAME', pretrained=True)" in card
    assert 'made from `own.pth`' in card
    assert 'reported' not in card


def test_the_authors_file_by_name(tmp_path, monkeypatch, golden_state):
    monkeypatch.chdir(tmp_path)
    Path('pretrain').mkdir()
    files.timm_saver(Path('pretrain/repnext_m0_sz224_4xbs512_ep300.pth.tar'), files.typed(golden_state))
    publish('repnext_m0_sz224_4xbs512_ep300', 'out')
    assert front(Path('out'))['license'] == 'apache-2.0'
    assert 'reported by them: top-1 73.8.' in Path('out/README.md').read_text()
    assert json.loads(Path('out/config.json').read_text())['pretrained_cfg']['crop_pct'] == 0.9


def test_a_classifier_with_its_config(tmp_path):
    pytest.importorskip('mmpretrain')
    path = CONFIGS / 'repnext_m0_digits_cls.py'
    model = randomize(build_model(load_config(path)))
    meta = {'dataset_meta': {'classes': list('abcdefghij')}}
    source = write_checkpoint(tmp_path / 'run.pth', model.state_dict(), meta=meta)
    publish(source, tmp_path / 'out', config=path)
    assert names(tmp_path / 'out') == ['README.md', 'config.json', 'model.safetensors', path.name]
    weights = tmp_path / 'out/model.safetensors'
    assert 'head.head.linear.weight' in read_checkpoint(weights)['state_dict']
    assert classes_in_checkpoint(read_checkpoint(weights))['classes'] == list('abcdefghij')
    again = build_model(load_config(tmp_path / 'out' / path.name), weights)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    config = json.loads((tmp_path / 'out/config.json').read_text())
    assert (config['architecture'], config['num_classes']) == ('repnext_m0', 10)
    assert config['label_names'] == list('abcdefghij')
    pixels = load_config(path).model.data_preprocessor
    assert config['pretrained_cfg']['mean'] == pytest.approx([value / 255 for value in pixels.mean])


@pytest.mark.parametrize('form', ['default', 'keep_norms'])
def test_a_fused_classifier_is_for_the_deploy_form(form, tmp_path):
    model = randomize(Classifier('m0', num_classes=7)).eval()
    fused, _ = fuse(model, form=form)
    publish(write_checkpoint(tmp_path / 'fused.pth', fused.state_dict()), tmp_path / 'out')
    assert names(tmp_path / 'out') == ['README.md', 'model.safetensors']  # timm builds the train form
    assert "weights='hf-hub:OWNER/NAME', deploy=True)" in (tmp_path / 'out/README.md').read_text()
    deploy = RepNeXt('m0', weights=str(tmp_path / 'out/model.safetensors'), deploy=True).eval()
    image = IMAGE.repeat(2, 1, 1, 1)
    assert worst_error(deploy(image)[3], model.stages(model.stem(image))) < 1e-4


def test_a_detector_needs_its_config(tmp_path):
    pytest.importorskip('mmcv.ops')
    pytest.importorskip('mmdet')
    path = CONFIGS / 'mask_rcnn_repnext_m0_digits.py'
    config = load_config(path)
    init_default_scope('mmdet')
    model = randomize(MODELS.build(config.model))
    source = write_checkpoint(tmp_path / 'run.pth', model.state_dict())
    with pytest.raises(ValueError, match=r'run\.pth is not a RepNeXt .*task detector.*--config'):
        publish(source, tmp_path / 'out')
    with pytest.raises(ValueError, match='does not fit'):
        publish(source, tmp_path / 'out', config=CONFIGS / 'semantic_fpn_repnext_m0_digits.py')
    assert not (tmp_path / 'out').exists()
    publish(source, tmp_path / 'out', config=path)
    assert names(tmp_path / 'out') == ['README.md', path.name, 'model.safetensors']
    assert front(tmp_path / 'out')['pipeline_tag'] == 'object-detection'
    again = build_model(load_config(tmp_path / 'out' / path.name), tmp_path / 'out/model.safetensors')
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert no_path_of(tmp_path, tmp_path / 'out')


def test_what_is_there_is_not_replaced(tmp_path, golden_state):
    source = files.authors_published(tmp_path / 'm0.pth', files.typed(golden_state))
    (tmp_path / 'out').mkdir()
    publish(source, tmp_path / 'out')  # an empty folder may be filled
    with pytest.raises(FileExistsError, match='out is there already'):
        publish(source, tmp_path / 'out')
    torn = {key: value for key, value in files.typed(golden_state).items() if 'stages.1.blocks.0.norm' not in key}
    with pytest.raises(ValueError, match='does not fit this RepNeXt m0: 4 missing'):
        publish(files.authors_published(tmp_path / 'torn.pth', torn), tmp_path / 'other')
    assert not (tmp_path / 'other').exists()
