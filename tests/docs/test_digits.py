"""The commands of docs/classification.md that need no data, with fewer images and epochs."""

from __future__ import annotations

import pytest

from tests.tools.running import ROOT, metrics, options, run_tool

FEW = {f'{loader}_dataloader__dataset__indices': 128 for loader in ('train', 'val', 'test')}
ONCE = {'train_cfg__max_epochs': 1, 'train_cfg__val_interval': 1, 'default_hooks__checkpoint__interval': 1}


@pytest.mark.slow
def test_a_student_learns_from_a_teacher(tmp_path):
    configs, tools = ROOT / 'configs', ROOT / 'tools'
    run_tool(tools / 'train.py', configs / 'resnet18_digits_cls.py', *options(**FEW, **ONCE), cwd=tmp_path)
    output = run_tool(
        tools / 'train.py',
        configs / 'repnext_m0_digits_distill.py',
        *options(**FEW, **ONCE, model__teacher_checkpoint='work_dirs/resnet18_digits_cls/epoch_1.pth'),
        cwd=tmp_path,
    )
    assert metrics(output, 'loss') > 0
    student = 'work_dirs/repnext_m0_digits_distill/epoch_1.pth'
    output = run_tool(tools / 'test.py', configs / 'repnext_m0_digits_cls.py', student, *options(**FEW), cwd=tmp_path)
    assert 'norms 53 -> 0' in output
    assert 0 <= metrics(output, 'accuracy/top1') <= 100
