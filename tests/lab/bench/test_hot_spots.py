"""The floor is arithmetic and bytes over what the machine was seen to do; modules are told apart by their part."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from repnext_mm.lab.bench.hot_spots import PROFILED, _convolution_bytes, find_hot_spots, time_by_module
from repnext_mm.reparam import fuse
from tests.tools.running import ROOT, run_tool

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


def test_bytes_of_a_convolution():
    network = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.GELU())
    assert _convolution_bytes(network, torch.ones(1, 3, 4, 4)) == 4 * (3 * 16 + 8 * 16 + 24)


def test_a_network():
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, 64, 1)).eval()
    spots = find_hot_spots(network, torch.randn(1, 3, 32, 32), rounds=3)
    assert spots.gmacs == (27 * 64 + 64 * 64) * 32 * 32 / 1e9
    assert {'1x1 convolutions', 'stem', 'activation'} <= spots.by_kind_ms.keys()
    assert list(spots.by_kind_ms.values()) == sorted(spots.by_kind_ms.values(), reverse=True)
    assert spots.floor_ms >= spots.arithmetic_ms == pytest.approx(2e3 * spots.gmacs / spots.matrix_gflops)
    assert spots.bandwidth_gbs > 0.1
    assert not any(module._forward_hooks for module in network.modules())


def test_a_trace_for_the_browser(tmp_path):
    run_tool(
        ROOT / 'tools/profile_backbone.py',
        '--arch',
        'm0',
        '--forms',
        'default',
        '--shape',
        '1x3x32x32',
        '--rounds',
        '1',
        '--trace',
        'trace.json',
        cwd=tmp_path,
    )
    events = json.loads((tmp_path / 'trace.default.json').read_text())['traceEvents']
    assert 'aten::conv2d' in {event.get('name') for event in events}
    shown = run_tool(
        ROOT / 'tools/profile_backbone.py', '--by', 'module', '--trace', 'trace.json', cwd=tmp_path, expect=1
    )
    assert 'error: --trace: PyTorch writes it' in shown


@pytest.mark.parametrize(
    'runtime',
    [
        'onnxruntime',
        'openvino',
        pytest.param('compile', marks=pytest.mark.slow),
    ],
)
def test_another_runtime_tells_where_its_time_goes(runtime):
    if runtime != 'compile':
        pytest.importorskip(runtime)
        pytest.importorskip('onnxscript')
    network, _ = fuse(MODELS.build({'type': 'RepNeXt', 'arch': TINY}).eval(), form='keep_norms', copy=True)
    spots = find_hot_spots(network, torch.randn(1, 3, 64, 64), rounds=2, runtime=runtime, threads=1)
    assert spots.by_kind_ms.keys() >= {'1x1 convolutions', 'depthwise convolutions', 'stem'}
    assert all(spent > 0 for spent in spots.by_kind_ms.values())


def test_a_runtime_without_a_profile():
    with pytest.raises(ValueError, match=f"'torchscript' is not profiled: choose one of {', '.join(PROFILED)}"):
        find_hot_spots(nn.Conv2d(3, 8, 1), torch.ones(1, 3, 4, 4), runtime='torchscript')


def test_by_module():
    network, _ = fuse(MODELS.build({'type': 'RepNeXt', 'arch': TINY}).eval(), form='keep_norms', copy=True)
    spent = time_by_module(network, torch.randn(1, 3, 64, 64), rounds=2)
    assert list(spent)[:4] == ['stem', 'stage 1: token_mixer', 'stage 1: norm', 'stage 1: channel_mixer']
    assert 'stage 2: downsample' in spent
    assert list(spent)[-1] == 'shortcuts and the rest'
    assert all(value > 0 for value in spent.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.slow
def test_the_tool(tmp_path):
    tool = ROOT / 'tools/profile_backbone.py', '--arch', 'm0', '--shape', '1x3x64x64', '--rounds', '2'
    output = run_tool(*tool, '--forms', 'default', 'dense', cwd=tmp_path)
    assert '| depthwise convolutions |' in output
    assert '**arithmetic at the matrix rate**' in output
    assert '| stage 4: token_mixer |' in run_tool(*tool, '--forms', 'default', '--by', 'module', cwd=tmp_path)
    steps = run_tool(*tool[:3], '--shape', '2x3x64x64', '--rounds', '2', '--train', '--norm-eval', cwd=tmp_path)
    assert '|  | online | branches | merged once |' in steps
    assert "unknown arch 'm9'" in run_tool(*tool[:2], 'm9', cwd=tmp_path, expect=1)
    refused = run_tool(*tool, '--by', 'module', '--runtime', 'compile', cwd=tmp_path, expect=1)
    assert '--by module: compile knows no modules' in refused
