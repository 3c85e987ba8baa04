"""Reading configs: what a user may get wrong is one sentence, and data_root reaches every path."""

from pathlib import Path

import pytest

from repnext_mm.apis.config import innermost_datasets, load_config, replace_type

CONFIGS = Path(__file__).parents[2] / 'configs'
COCO = CONFIGS / 'mask_rcnn_repnext_m4_coco.py'


def strings(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list | tuple):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


def test_missing_config_names_path_and_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config 'nowhere\.py' does not exist.*relative to"):
        load_config('nowhere.py')


@pytest.mark.parametrize(
    'text', ['model = dict(', "_base_ = ['absent.py']", "custom_imports = dict(imports=['no_such_package'])", '1 / 0']
)
def test_config_that_cannot_be_read(tmp_path, text):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config '.*broken\.py' cannot be read"):
        load_config(path)


def test_override_that_does_not_fit():
    with pytest.raises(ValueError, match=r'--cfg-options .*do not fit config'):
        load_config(COCO, options={'param_scheduler.9.end': 3})


@pytest.mark.parametrize('name', ['mask_rcnn_repnext_m4_coco.py', 'semantic_fpn_repnext_m4_ade20k.py'])
@pytest.mark.parametrize('root', ['elsewhere', '/data/sets/', 'data/coco/inner'])
def test_data_root_reaches_every_path(name, root):
    old = load_config(CONFIGS / name).data_root.rstrip('/')
    config = load_config(CONFIGS / name, options={'data_root': root})
    paths = strings(config._cfg_dict.to_dict())
    assert not [path for path in paths if path.startswith(old) and not path.startswith(root.rstrip('/'))]
    assert config.train_dataloader.dataset.data_root.rstrip('/') == root.rstrip('/')
    if 'coco' in name:
        assert config.test_evaluator.ann_file == f'{root.rstrip("/")}/annotations/instances_val2017.json'


def test_data_root_needs_one_to_replace(tmp_path):
    path = tmp_path / 'plain.py'
    path.write_text('model = dict()')
    with pytest.raises(ValueError, match=r"data_root='x' has nothing to replace.*no top-level data_root"):
        load_config(path, options={'data_root': 'x'})


def test_no_workers_means_none_persist_and_one_line_says_so(monkeypatch):
    said = []
    monkeypatch.setattr('repnext_mm.apis.config.log', said.append)
    config = load_config(COCO, options={'train_dataloader.num_workers': 0, 'test_dataloader.num_workers': 0})
    assert config.train_dataloader.persistent_workers is False
    assert config.val_dataloader.persistent_workers is True
    assert said == ['persistent_workers is set to False where num_workers is 0: there are no workers to keep']


def test_work_dir_defaults_to_the_name_below_the_current_folder(tmp_path):
    assert load_config(COCO).work_dir == 'work_dirs/mask_rcnn_repnext_m4_coco'
    assert load_config(COCO, work_dir='x').work_dir == 'x'
    path = tmp_path / 'own.py'
    path.write_text("work_dir = 'mine'")
    assert load_config(path).work_dir == 'mine'


def test_scope_without_its_package(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"default_scope='mmdet' needs the package mmdet.*tools/check_env.py"):
        load_config(COCO)


def test_innermost_datasets_and_replace_type():
    nested = dict(type='Repeat', dataset=dict(type='Concat', datasets=[dict(type='A'), dict(dataset=dict(type='B'))]))
    assert [part['type'] for part in innermost_datasets(nested)] == ['A', 'B']
    assert replace_type(nested, {'A': 'C', 'Repeat': 'R'}) == 2
    assert [part['type'] for part in innermost_datasets(nested)] == ['C', 'B']
