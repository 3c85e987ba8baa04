"""tools/demo_reparam.py, as a newcomer runs it, and its checks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import pytest
from mmengine.config import Config

from repnext_mm.apis import load_config
from repnext_mm.lab.demo.folding import FormRow, ReparamReport, check_unchanged, data_options, format_forms
from repnext_mm.timing import Latency
from tests.tools.running import ROOT, run_tool

TIME = Latency(median_ms=2.0, p10_ms=1.5, p90_ms=2.5, n=5)


def row(model: str, form: str, accuracy: float, median_ms: float) -> FormRow:
    times = {batch: replace(TIME, median_ms=median_ms) for batch in (1, 64)}
    return FormRow(model=model, form=form, accuracy=accuracy, parameters=1234567, norms=3, times=times)


def report(*rows: FormRow, error: float = 1e-6) -> ReparamReport:
    return ReparamReport(
        data='digits',
        images=359,
        rows=rows,
        score_errors={rows[0].model: error},
        train_minutes={'A': 1.0},
        device='cpu',
        threads=1,
        table='table.json',
        plot='plot.png',
    )


@pytest.mark.slow
def test_both_networks_are_trained_folded_and_compared(tmp_path):
    output = run_tool(ROOT / 'tools/demo_reparam.py', '--quick', cwd=tmp_path)
    folder = tmp_path / 'work_dirs/demo_reparam_quick'
    found = json.loads((folder / 'table.json').read_text())
    forms = {(row['model'], row['form']): row for row in found['rows']}
    assert list(forms) == [
        ('RepVGG', 'train form'),
        ('RepVGG', 'fused'),
        ('RepNeXt-M0', 'branches'),
        ('RepNeXt-M0', 'train form'),
        ('RepNeXt-M0', 'fused'),
    ]
    for model in ('RepVGG', 'RepNeXt-M0'):
        before, after = forms[model, 'train form'], forms[model, 'fused']
        assert before['accuracy'] == after['accuracy']
        assert after['norms'] == 0 < before['norms']
        assert after['parameters'] < before['parameters']
        assert found['score_errors'][model] <= 1e-4
        assert f'| {model}' in output
    assert found['images'] == 128
    assert cv2.imread(str(folder / 'plot.png')).shape[1] > 1000
    # the training of `make demo-cls` is shared
    assert (tmp_path / 'work_dirs/demo_classification_quick/trained.json').is_file()


def test_a_change_of_accuracy_or_scores_is_an_error():
    check_unchanged(report(row('A', 'train form', 0.95, 4), row('A', 'fused', 0.95, 2)))
    for accuracy in (0.94, math.nan):
        with pytest.raises(RuntimeError, match='A: accuracy is 0.9500 train form but'):
            check_unchanged(report(row('A', 'train form', 0.95, 4), row('A', 'fused', accuracy, 2)))
    for error in (1e-3, math.nan):
        with pytest.raises(RuntimeError, match='A: fused scores differ by'):
            check_unchanged(report(row('A', 'train form', 0.95, 4), row('A', 'fused', 0.95, 2), error=error))


def test_table_is_aligned_markdown():
    lines = format_forms(report(row('A', 'train form', 0.95, 4), row('A', 'fused', 0.95, 2))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith('| model | form       | top-1 accuracy | parameters |')
    assert '2.00 (1.50 to 2.50) |     2.00 |' in lines[3]


def test_cifar_replaces_the_digits(tmp_path):
    (tmp_path / 'cifar-100-python').mkdir()
    for name in ('repvgg_digits_cls.py', 'repnext_m0_digits_cls.py'):
        config = load_config(ROOT / 'configs' / name, options=data_options('cifar100', str(tmp_path)))
        assert config.model.head.num_classes == config.model.data_preprocessor.num_classes == 100
        for loader, split in (('train', 'train'), ('val', 'test'), ('test', 'test')):
            dataset = config[f'{loader}_dataloader'].dataset
            assert (dataset.type, dataset.split, dataset.data_root) == ('CIFAR100', split, str(tmp_path))
            assert dataset.pipeline[-1].type == 'PackInputs'
            assert 'test_mode' not in dataset


def test_data_that_are_not_there():
    with pytest.raises(ValueError, match='cifar10 is not in nowhere: put its unpacked folder cifar-10-batches'):
        data_options('cifar10', 'nowhere')
    with pytest.raises(ValueError, match="data 'svhn' are unknown"):
        data_options('svhn', None)


def test_the_config_says_what_is_trained():
    config = Config.fromfile(str(ROOT / 'configs/repvgg_digits_cls.py'))
    assert config.model.backbone.type == 'RepVGG'
    assert config.model.head == {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 256, 'topk': (1,)}
