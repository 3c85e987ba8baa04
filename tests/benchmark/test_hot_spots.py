"""Operations are sorted into kinds, and the floor is arithmetic and bytes over what the machine was seen to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from repnext_mm.benchmark.hot_spots import _convolution_bytes, _kind, find_hot_spots
from tests.tools.running import ROOT


@pytest.mark.parametrize(('name', 'shapes', 'kind'), [
    ('mkldnn_convolution', [[1, 64, 7, 7], [128, 64, 1, 1]], '1x1 convolutions'),
    ('cudnn_convolution', [[1, 64, 7, 7], [64, 1, 7, 7]], 'depthwise convolutions'),
    ('mkldnn_convolution', [[1, 3, 7, 7], [64, 3, 3, 3]], 'stem'),
    ('gelu_', [[1, 3, 7, 7]], 'activation'),
    ('native_batch_norm', [[1, 3, 7, 7]], 'norms'),
    ('cat', [[]], 'copies and concatenations'),
    ('empty', [[]], 'views, allocation and dispatch'),
])  # fmt: skip
def test_kinds(name, shapes, kind):
    assert _kind(name, shapes) == kind


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


@pytest.mark.slow
def test_the_tool():
    command = [sys.executable, ROOT / 'tools/profile_backbone.py', '--arch', 'm0', '--shape', '1x3x64x64']
    command += ['--rounds', '2', '--forms', 'default', 'dense']
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '| depthwise convolutions |' in output
    assert '**arithmetic at the matrix rate**' in output
    failed = subprocess.run([*command[:3], 'm9'], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "unknown arch 'm9'" in failed.stderr
