"""The tools end at once, with one sentence and a non-zero exit code."""

import pytest
import torch

from repnext_mm import RepNeXt
from tests.reliability.jobs import write_config
from tests.tools.running import ROOT, run_tool

COCO = ROOT / 'configs' / 'mask_rcnn_repnext_m4_coco.py'


@pytest.mark.parametrize(
    ('command', 'sentence'),
    [
        (('train.py', 'absent.py'), "error: config 'absent.py' does not exist"),
        (('test.py', COCO, 'absent.pth'), "error: checkpoint 'absent.pth' does not exist"),
        (('infer.py', 'absent.jpg', COCO, 'absent.pth'), "error: image 'absent.jpg' does not exist"),
    ],
)
def test_one_sentence_and_no_traceback(command, sentence, tmp_path):
    output = run_tool(ROOT / 'tools' / command[0], *command[1:], cwd=tmp_path, expect=1)
    assert sentence in output
    assert 'Traceback' not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('tool', 'before', 'sentence'),
    [
        ('train.py', ['--resume'], 'holds no training of mmengine to go on from (--resume), it lacks meta.epoch'),
        ('test.py', [], 'does not fit this ImageClassifier'),
    ],
)
def test_weights_that_cannot_be_used_are_one_sentence_too(tool, before, sentence, tmp_path):
    config, weights = write_config(tmp_path, 'classification'), tmp_path / 'w.pth'
    torch.save({'state_dict': RepNeXt('m0').state_dict()}, weights)
    output = run_tool(ROOT / 'tools' / tool, config, *before, weights, cwd=tmp_path, expect=1)
    assert output.splitlines()[-1].startswith(f'error: {weights} {sentence}')
    assert 'Traceback' not in output


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_shell_scripts_say_how_they_are_used(script, tmp_path):
    assert 'usage: ' in run_tool(ROOT / 'tools' / script, 'one', cwd=tmp_path, expect=2)


def test_slurm_scripts_hand_everything_on(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$MASTER_PORT $*"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}:/usr/bin:/bin'
    output = run_tool(
        ROOT / 'tools/slurm_test.sh',
        *('part', 'job', 'config.py', 'weights.pth', '--tta', '--cfg-options', 'a=b c'),
        cwd=tmp_path,
        PATH=path,
        GPUS='4',
        PORT='1234',
        SRUN_ARGS='--time=1:00 --mem=8G',
        PYTHON='python3',
    )
    assert output.startswith('1234 --partition=part --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4')
    assert '--time=1:00 --mem=8G python3 -u ' in output
    assert output.endswith('tools/test.py config.py weights.pth --launcher slurm --tta --cfg-options a=b c\n')
