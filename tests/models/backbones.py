"""What holds for both networks, on a randomized one in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.conftest import randomize, worst_error


def check_recomputing_gives_the_same_step(build: Callable[..., nn.Module], *, size: int) -> None:
    plain, saving = randomize(build()).double().train(), build(with_cp=True).double().train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, size, size).double()
    for model in (plain, saving):
        sum(f.pow(2).mean() for f in model(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name


@contextmanager
def norms_that_run(*modules: str) -> Iterator[None]:
    """Let no norm be folded on the fly: each runs, and so do the branches before it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(f'repnext_mm.models.{module}.is_affine', lambda norm: False)
        yield


def check_norm_eval_trains_as_norms_that_run(build: Callable[..., nn.Module], modules: Sequence[str]) -> None:
    """Folding on the fly gives the gradients of running the norms.

    Args:
        modules: where the network looks whether a norm is affine.
    """
    model = randomize(build(norm_eval=True)).double().train()
    x = torch.randn(2, 3, 40, 56).double()
    sum(f.pow(2).mean() for f in model(x)).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(torch.isfinite(g).all() for g in grads.values())
    model.zero_grad()
    with norms_that_run(*modules):
        sum(f.pow(2).mean() for f in model(x)).backward()
    scale = max(p.grad.abs().max() for p in model.parameters())
    for name, p in model.named_parameters():
        assert (p.grad - grads[name]).abs().max() < 1e-12 * scale, name


def check_merging_under_autocast_rounds_once(module: nn.Module) -> None:
    """Merged in float32 and cast once, the error is that of the cast, not that of a sum of casts."""
    x = torch.randn(2, 6, 9, 7)
    with torch.autocast('cpu', torch.bfloat16):
        half = module(x)
        kernel = module.kernel()
    assert half.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in kernel} == {torch.float32}
    assert worst_error(half.float(), module.branches(x)) < 4 * torch.finfo(torch.bfloat16).eps
