"""tools/benchmark.py as a user runs it."""

from __future__ import annotations

import json
import re

import pytest

from tests.tools.running import ROOT, run_tool

TOOL = ROOT / 'tools/benchmark.py'
QUICK = (
    '--arch',
    'm0',
    '--shape',
    '1x3x64x64',
    '--rounds',
    '2',
    '--repeats',
    '1',
    '--warmup-s',
    '0',
    '--warmup-rounds',
    '1',
    '--threads',
    '1',
    '--device',
    'cpu',
)


def test_measure_resume_render(tmp_path):
    command = (
        TOOL,
        *QUICK,
        '--forms',
        'train',
        'keep_norms',
        'half',
        '--runtime',
        'eager',
        'torchscript',
        'cudagraph',
        '--output',
        'out/cpu',
    )
    shown = run_tool(*command, cwd=tmp_path)
    assert 'left out: cudagraph 1x3x64x64 float32 contiguous: CUDA graphs need --device cuda' in shown
    record = json.loads((tmp_path / 'out/cpu.json').read_text())
    assert [(run['job']['runtime'], run['status']) for run in record['runs']] == [
        ('eager', 'measured'),
        ('torchscript', 'measured'),
    ]
    assert record['environment']['threads'] == 1
    rows = record['runs'][0]['variants']
    assert [f'{row["model"]}/{row["form"]}' for row in rows] == [
        'm0/train',
        'm0/keep_norms',
        'm0/half',
    ]
    assert all(len(row['times_ms']) == 2 and row['error'] <= 1e-4 for row in rows)
    table = (tmp_path / 'out/cpu.md').read_text()
    assert '## latency, eager, 1x3x64x64, float32, contiguous' in table
    assert '## latency, torchscript, 1x3x64x64, float32, contiguous' in table
    assert {file.name for file in (tmp_path / 'out').iterdir()} == {
        'cpu.json',
        'cpu.md',
        'cpu.eager.png',
        'cpu.torchscript.png',
    }

    shown = run_tool(*command, cwd=tmp_path, expect=1)
    assert 'error: out/cpu.json exists: go on with it by --resume, or name another --output' in shown
    run_tool(*command, '--resume', cwd=tmp_path)
    assert json.loads((tmp_path / 'out/cpu.json').read_text())['runs'] == record['runs']  # nothing was left to do

    (tmp_path / 'out/cpu.md').unlink()
    run_tool(TOOL, '--render', 'out/cpu.json', cwd=tmp_path)
    assert (tmp_path / 'out/cpu.md').read_text() == table


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ((*QUICK, '--runtime', 'tensorrt'), "error: unknown runtime 'tensorrt': choose from eager"),
        (('--render', 'none.json'), 'error: no benchmark record at none.json'),
    ],
    ids=['runtime', 'record'],
)
def test_errors_are_one_sentence(tmp_path, options, message):
    shown = run_tool(TOOL, *options, cwd=tmp_path, expect=1)
    assert message in shown
    assert 'Traceback' not in shown
    assert list(tmp_path.iterdir()) == []


def test_training_steps(tmp_path):
    shown = run_tool(TOOL, '--train', *QUICK, '--shape', '2x3x64x64', '--output', 'train', cwd=tmp_path)
    assert '| M0 | 2x3x64x64 | float32 | contiguous | train form ' in re.sub(' +', ' ', shown)
    (result,) = json.loads((tmp_path / 'train.json').read_text())['results']
    assert result['steps']['train form']['time']['n'] == 2
    assert 'Memory: storages saved for backward' in (tmp_path / 'train.md').read_text()


def test_whole_models_of_two_configs(tmp_path):
    """A summary comes first; weights and files belong to one config."""
    models = [ROOT / f'configs/{name}_repnext_m0_digits.py' for name in ('semantic_fpn', 'rtmdet')]
    options = (*QUICK[4:], '--output', 'models')
    shown = run_tool(TOOL, '--config', *models, *options, cwd=tmp_path)
    summary = re.sub(' +', ' ', shown).partition('random weights')[0]
    for config in models:
        assert f'| {config.stem} | ' in summary
    results = json.loads((tmp_path / 'models.json').read_text())['results']
    assert [result['config'] for result in results] == [config.stem for config in models]
    shown = run_tool(TOOL, '--config', *models, '--checkpoint', 'w.pth', *options, cwd=tmp_path, expect=1)
    assert 'error: --config names 2 configs: with --checkpoint or --files, name one' in shown


def test_whole_steps_of_a_config(tmp_path):
    scenes = [
        f'{loader}_dataloader.dataset.scenes.{part}=2' for loader in ('train', 'val') for part in ('train', 'val')
    ]
    shown = run_tool(
        *(TOOL, '--train', ROOT / 'configs/semantic_fpn_repnext_m0_digits.py', '--backbones', 'branches', 'merged'),
        *(*QUICK[4:], '--memory-format', 'channels_last', '--cpu-time', '--output', 'step'),
        *('--cfg-options', 'data_root=scenes', 'train_dataloader.batch_size=2', *scenes),
        cwd=tmp_path,
    )
    assert 'semantic_fpn_repnext_m0_digits, batch 2x3x160x160, cpu, 1 threads, initial weights, CPU time, ' in shown
    assert '| merged | eager | channels_last | float32 ' in re.sub(' +', ' ', shown)
    (result,) = json.loads((tmp_path / 'step.json').read_text())['results']
    assert [way['backbone'] for way in result['ways']] == ['branches', 'merged']
    assert 'Data: ' in (tmp_path / 'step.md').read_text()


@pytest.mark.slow
def test_the_plan_for_a_gpu_runs_on_a_cpu(tmp_path):
    shown = run_tool(TOOL, '--gpu-records', 'records', '--device', 'cpu', '--threads', '1', cwd=tmp_path)
    assert shown.count(': measured') == 8
    assert len(list((tmp_path / 'records').glob('*.json'))) == 8
