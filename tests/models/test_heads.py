"""The classifier's two heads are one linear layer, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repnext_mm.models.heads import NormLinear, TwoHeadLinear
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize


@pytest.mark.parametrize('kind', [NormLinear, TwoHeadLinear])
def test_fused(kind):
    head = randomize(kind(12, 7)).double().eval()
    fused, report = fuse(head)
    assert type(fused) is nn.Linear
    assert report.norms_after == count_norms(fused) == 0
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert max(relative_error(fused, head, torch.randn(5, 12).double())) < 1e-14


def test_mean_of_both():
    head = randomize(TwoHeadLinear(12, 7)).double()
    x = torch.randn(5, 12).double()
    first, second = head.eval().both(x)
    assert not torch.equal(first, second)
    torch.testing.assert_close(head(x), first / 2 + second / 2)


def test_keeps_dtype():
    fused, _ = fuse(TwoHeadLinear(12, 7).bfloat16().eval())
    assert fused.weight.dtype == fused.bias.dtype == torch.bfloat16


def test_batch_statistics_are_not_baked_in():
    head = TwoHeadLinear(12, 7)
    with pytest.raises(ValueError, match=r'head\.norm is in training mode'):
        fuse(head)
    head.eval().head_dist.norm.train()
    assert head.merged() is None
    assert head.fused('default') is head
