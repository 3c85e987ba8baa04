"""The code of docs/reparameterization.md and what its record adds, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from repnext_mm.reparam import Fusible, fuse, relative_error

DOCS = Path(__file__).parents[2] / 'docs'
DOCUMENTS = (DOCS / 'reparameterization.md', DOCS / 'records/reparameterization.md')
PROBES = [(1, 1), (5, 3), (11, 12), (17, 23)]  # pixels: smaller than the windows, odd, even


@pytest.fixture(scope='module')
def examples() -> dict[str, Any]:
    """Every name that the documents' Python blocks define, run one after the other."""
    names: dict[str, Any] = {'__name__': 'worked_examples'}
    for document in DOCUMENTS:
        for block in re.findall(r'^```python\n(.*?)^```', document.read_text(), re.MULTILINE | re.DOTALL):
            exec(compile(block, str(document), 'exec'), names)
    return names


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('name', ['FullChunk', 'InterleavedCopy'])
def test_examples_are_exact(examples, name, bias):
    block = examples[name](12, bias=bias).double().eval()
    before = {key: value.clone() for key, value in block.state_dict().items()}
    fused, report = fuse(block)
    assert isinstance(fused, nn.Conv2d)
    assert (fused.bias is not None) == bias
    assert report.modules == ('',)
    for height, width in PROBES:
        assert relative_error(fused, block, torch.randn(2, 12, height, width).double()) <= (1e-14,)
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


def test_nested_branches_are_exact(examples):
    block = examples['NestedChunk'](8).double().eval()
    fused, _ = fuse(block)
    assert isinstance(fused, nn.Conv2d)
    for height, width in PROBES:
        assert relative_error(fused, block, torch.randn(2, 8, height, width).double()) <= (1e-14,)


def test_outputs_are_interleaved(examples):
    """Channel 2i is channel i at the small scale, 2i + 1 at the medium one."""
    block = examples['InterleavedCopy'](3).double().eval()
    fused, _ = fuse(block)
    x = torch.randn(1, 3, 9, 8).double()
    torch.testing.assert_close(fused(x)[:, 0::2], block.small(x))
    torch.testing.assert_close(fused(x)[:, 1::2], block.medium(x))


def test_the_last_block_left_a_fused_network(examples):
    network, shown = examples['network'].double(), examples['fused']
    assert not any(isinstance(module, Fusible) for module in shown.modules())
    fused, report = fuse(network)
    assert relative_error(fused, network, torch.randn(1, 16, 13, 11).double()) <= (1e-13,)
    assert report.parameters_after == sum(parameter.numel() for parameter in shown.parameters())
