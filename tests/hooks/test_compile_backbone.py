"""A backbone trains compiled as it trains otherwise, is compiled once, and only where there is a compiler."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from repnext_mm.apis.launch import check_compile, set_compile
from repnext_mm.errors import UserError
from repnext_mm.hooks import CompileBackboneHook
from repnext_mm.hooks.compile_backbone import check_compiler
from repnext_mm.reparam import fuse
from tests.hooks.tiny_run import make_runner, state_of


@pytest.fixture
def graphs(monkeypatch):
    """Counts what is compiled; a backend that needs no compiler stands for the usual one."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    monkeypatch.setattr('repnext_mm.hooks.compile_backbone.check_compiler', lambda device_type: None)
    return counter


class Watch(Hook):
    """Notes whether the backbone is compiled when it is trained and validated, and how many graphs there are."""

    def __init__(self, counter):
        self.counter, self.seen, self.graphs = counter, [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(('train', runner.model.backbone._compiled_call_impl is not None))
        self.graphs.append(self.counter.frame_count)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(('val', runner.model.backbone._compiled_call_impl is not None))


def test_a_training(tmp_path, graphs):
    plain = make_runner(tmp_path / 'plain', scores=[1, 2, 3], hooks=[EMAHook()])
    plain.train()
    watch = Watch(graphs)
    runner = make_runner(tmp_path / 'compiled', scores=[1, 2, 3], hooks=[EMAHook(), CompileBackboneHook(), watch])
    keys = list(runner.model.state_dict())
    runner.train()
    assert set(watch.seen) == {('train', True), ('val', False)}
    assert watch.graphs[0] > 0
    assert len(set(watch.graphs)) == 1, 'validation, or a new epoch, compiled again'
    one, other = (state_of(tmp_path / name / 'epoch_3.pth') for name in ('plain', 'compiled'))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)
    assert list(runner.model.state_dict()) == keys
    assert runner.model.backbone._compiled_call_impl is None
    assert fuse(runner.model.backbone.eval())[1]
    logged = (tmp_path / 'compiled').glob('*/*.log')
    assert any('CompileBackboneHook: the first 2 steps took' in path.read_text() for path in logged)


@pytest.mark.slow
def test_image_sizes_compile_twice_at_most(tmp_path, graphs):
    runner = make_runner(tmp_path, length=1)
    hook = CompileBackboneHook()
    hook.before_train(runner)
    backbone = runner.model.backbone.train()
    counts = []
    for size in (32, 64, 96, 128, 160):
        sum(level.sum() for level in backbone(torch.randn(2, 3, size, size + 32))).backward()
        counts.append(graphs.frame_count)
    assert counts[-1] == counts[1]
    hook.after_train(runner)


def test_validation_without_training_is_left_alone(tmp_path, graphs):
    runner = make_runner(tmp_path, scores=[1], hooks=[CompileBackboneHook()])
    runner.val()
    assert runner.model.backbone._compiled_call_impl is None


def test_a_model_without_backbone(tmp_path, graphs):
    runner = make_runner(tmp_path)
    runner.model = nn.Linear(2, 2)
    with pytest.raises(UserError, match='Linear has no backbone: remove CompileBackboneHook'):
        CompileBackboneHook().before_train(runner)


def test_without_a_compiler(monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    config = Config(dict(default_hooks=dict(timer=dict(type='IterTimerHook'))))
    check_compile(config)
    set_compile(config)
    set_compile(config)
    assert list(config.default_hooks) == ['timer', 'compile']
    with pytest.raises(UserError, match='compiling needs a compiler, and there is no .* here: install one'):
        check_compile(config)
    monkeypatch.setenv('CXX', 'my-c++')
    with pytest.raises(UserError, match='there is no my-c[+][+] here'):
        check_compiler('cpu')


def test_without_pythons_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, 'which', lambda name: name)
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
    with pytest.raises(UserError, match="needs Python's header files, and there is no '.*Python.h'"):
        check_compiler('cpu')


def test_without_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='needs triton, which is not installed'):
        check_compiler('cuda')
