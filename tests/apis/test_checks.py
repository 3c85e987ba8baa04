"""Each thing that a config can get wrong is said in one sentence, before the work."""

from pathlib import Path

import pytest
from mmengine.config import Config

from repnext_mm.apis import checks, prepare_test, prepare_training

CONFIGS = Path(__file__).parents[2] / 'configs'
COCO = CONFIGS / 'mask_rcnn_repnext_m4_coco.py'
ADE = CONFIGS / 'semantic_fpn_repnext_m4_ade20k.py'


def model(**backbone):
    return dict(backbone=dict(type='RepNeXt', **backbone), neck=dict(type='FPN', in_channels=[64, 128, 256, 512]))


def test_a_good_model_passes():
    checks.check_model(model(arch='m4'))
    checks.check_model(dict(type='BoxTTAModel', module=model(arch='m3')))
    checks.check_model(dict(backbone=dict(type='ResNet'), neck=dict(type='FPN', in_channels=[1])))
    checks.check_model(dict(backbone=dict(type='RepNeXt', arch='m0'), neck=dict(type='GlobalAveragePooling')))


def test_neck_must_take_the_channels():
    words = r"in_channels=\[64, 128, 256, 512\] does not match .*\[40, 80, 160, 320\].*'m0'"
    with pytest.raises(ValueError, match=words):
        checks.check_model(model(arch='m0'))
    with pytest.raises(ValueError, match=r'set model\.neck\.in_channels=\[256, 512\]'):
        checks.check_model(model(arch='m4', out_indices=(2, 3)))


@pytest.mark.parametrize(
    ('backbone', 'words'),
    [
        (dict(arch='m9'), 'm9'),
        (dict(arch='m4', out_indices=(0, 4)), 'out_indices'),
        (dict(arch='m4', out_indices=()), 'out_indices'),
        (dict(arch='m4', pretrained='x'), 'pretrained'),
    ],
)
def test_backbone_arguments(backbone, words):
    with pytest.raises((TypeError, ValueError), match=words):
        checks.check_model(model(**backbone))


def test_missing_data_names_root_stage_and_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('pretrain').mkdir()
    Path('pretrain/repnext_m4_distill_300e.pth').touch()
    for config, root in ((COCO, 'data/coco/'), (ADE, 'data/ade/ADEChallengeData2016')):
        with pytest.raises(FileNotFoundError, match=rf"train data '{root}' does not exist.*--cfg-options data_root="):
            prepare_training(config)
        with pytest.raises(FileNotFoundError, match=rf"test data '{root}' does not exist"):
            prepare_test(config, 'pretrain/repnext_m4_distill_300e.pth')


def test_missing_annotations_inside_a_root(tmp_path):
    config = Config.fromfile(COCO)
    config.merge_from_dict({'val_dataloader.dataset.data_root': str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r'val data .*instances_val2017.json'):
        checks.check_files(config, stages=('val',))


def test_data_that_names_no_files_or_lies_elsewhere_is_left_alone():
    config = Config(dict(val_dataloader=dict(dataset=dict(type='DigitScenes', data_root='absent'))))
    checks.check_files(config, stages=('train', 'val', 'test'))
    remote = dict(data_root='s3://bucket/set', ann_file='labels.json')
    checks.check_files(Config(dict(val_dataloader=dict(dataset=remote))), stages=('val',))


def test_missing_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"init_cfg\.checkpoint 'pretrain/repnext_m4_.*init_cfg=None"):
        prepare_training(COCO)
    with pytest.raises(FileNotFoundError, match=r'put the file of https://github\.com/\S+ in \S+, or in pretrain/ of'):
        prepare_training(COCO)
    scratch = {'model.backbone.init_cfg': None}
    with pytest.raises(FileNotFoundError, match=r"--resume 'last\.pth' does not exist"):
        prepare_training(COCO, resume='last.pth', options=scratch)
    with pytest.raises(FileNotFoundError, match=r"load_from 'first\.pth' does not exist"):
        prepare_training(COCO, options={'load_from': 'first.pth', **scratch})
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'best\.pth' does not exist"):
        prepare_test(ADE, 'best.pth')
    with pytest.raises(FileNotFoundError, match=r"'repnext_m4_ade2k\.pth' does not exist .*'repnext_m4_ade20k\.pth'"):
        prepare_test(ADE, 'repnext_m4_ade2k.pth')


def test_incomplete_config(tmp_path):
    path = tmp_path / 'half.py'
    path.write_text("model = dict(type='Any')")
    with pytest.raises(ValueError, match='has no `train_dataloader`'):
        prepare_training(path)
    with pytest.raises(ValueError, match='has no `test_dataloader`'):
        prepare_test(path, 'best.pth')


def test_resume_before_the_first_checkpoint_keeps_the_weights_to_start_from(tmp_path):
    from tests.layouts import write_authors_checkpoint

    digits, start = CONFIGS / 'semantic_fpn_repnext_m0_digits.py', tmp_path / 'start.pth'
    write_authors_checkpoint(start, arch='m0')
    options = {'load_from': str(start)}
    fresh = prepare_training(digits, work_dir=str(tmp_path / 'run'), resume='auto', options=options)
    assert (fresh.resume, fresh.load_from) == (False, str(start))
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'iter_5.pth').touch()
    begun = prepare_training(digits, work_dir=str(tmp_path / 'run'), resume='auto', options=options)
    assert (begun.resume, begun.load_from) == (True, None)
