"""The package's layers, and what importing it needs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import repnext_mm
from repnext_mm._moved import MOVED

PACKAGE = Path(repnext_mm.__file__).parent
FLOORS = (
    {'version', '_moved', '_files', 'errors'},
    {'reparam', 'mmcv_ops'},
    {'timing'},
    {'checkpoints'},
    {'models', 'timm_models'},
    {'hooks', 'training'},
    {'data', 'apis', 'export', '_registered'},
    {'lab'},
    {'cli', '__main__'},
)
"""Each imports what is on floors below its own; on one floor there is an order, too (see `test_no_circles`)."""
TORCH_ONLY = ('reparam', 'timing', 'checkpoints')
HEAVY = ('mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'timm', 'torchvision', 'sklearn')


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob('*.py'))


def module_name(path: Path) -> str:
    return '.'.join(('repnext_mm', *path.relative_to(PACKAGE).with_suffix('').parts)).removesuffix('.__init__')


def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Modules imported by ``path``, wherever the statement stands."""
    package = module_name(path) if path.name == '__init__.py' else module_name(path).rpartition('.')[0]
    everything = {module_name(other) for other in modules()}
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            outer = '.'.join(package.split('.')[: len(package.split('.')) - node.level + 1]) if node.level else ''
            base = '.'.join(filter(None, (outer, node.module)))
            names = {f'{base}.{alias.name}' for alias in node.names}
            found |= (names & everything) or {base}
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


def part(name: str) -> str:
    """The package or module directly below ours; empty for ours itself."""
    return name.split('.')[1] if '.' in name else ''


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.partition('.')[0] == 'repnext_mm'}


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path):
    here = part(module_name(path))
    names = imports(path)
    if here:
        floor = next(index for index, parts in enumerate(FLOORS) if here in parts)
        below = set().union(*FLOORS[: floor + 1])
        above = {name for name in ours(names) if part(name) and part(name) not in below}
        assert not above
        assert 'repnext_mm' not in names  # importing the root registers everything
    if here in TORCH_ONLY:
        assert not any(name.split('.')[0] == 'mmengine' for name in names)
    if here == 'mmcv_ops':  # mmcv imports it while it is being imported itself
        outer = {name.split('.')[0] for name in names} - set(sys.stdlib_module_names)
        assert {part(name) for name in ours(names)} <= {here}
        assert outer <= {'torch', 'torchvision', 'repnext_mm'}


@pytest.mark.parametrize('unit', ['module', 'part'])
def test_no_circles(unit):
    arrows: dict[str, set[str]] = {}
    for path in modules():
        names = ours(imports(path))
        source = module_name(path) if unit == 'module' else part(module_name(path))
        goals = {(name if unit == 'module' else part(name)) for name in names}
        arrows.setdefault(source, set()).update(goals - {source, 'repnext_mm', ''})
    if unit == 'part':
        arrows.pop('', None)
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


BLOCKED = """
import importlib.abc, importlib.machinery, sys
class Block(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        # mmengine itself imports OpenCV and matplotlib
        if name.split('.')[0] in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'torchvision', 'sklearn'):
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(spec.name, name=spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', BLOCKED + code], capture_output=True, text=True, check=False)


def test_a_backbone_needs_torch_and_mmengine_only():
    result = run("""
import torch, repnext_mm
from mmengine.registry import MODELS
for norm in ('BN', 'SyncBN'):
    model = MODELS.build(dict(type='RepNeXt', arch='m0', norm_cfg=dict(type=norm), act_cfg=dict(type='GELU')))
model = repnext_mm.RepNeXt('m0', deploy=True).eval()
assert len(model(torch.zeros(1, 3, 32, 32))) == 4
""")
    assert result.returncode == 0, result.stderr


def test_every_module_can_be_imported_without_the_others():
    names = '\n'.join(
        f'import {module_name(path)}'
        for path in modules()
        if path.name != 'timm_models.py' and 'mmcv_ops' not in path.parts  # for users of timm and of torchvision
    )
    result = run(names)
    assert result.returncode == 0, result.stderr


ABSENT = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] in {absent!r} else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""As where these are not installed."""


def run_without(*absent: str, code: str) -> None:
    quiet = ['-W', 'error', '-W', 'ignore:Failed to initialize NumPy', '-W', 'ignore::DeprecationWarning']
    command = [sys.executable, *quiet, '-c', ABSENT.format(absent=absent) + code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_torch_alone_is_enough_for_the_algebra_the_networks_and_checkpoints(tmp_path):
    run_without(
        *('mmengine', 'mmcv', 'numpy', 'torchvision', 'safetensors', 'timm', 'matplotlib', 'cv2', 'PIL'),
        code=f"""
import torch
from torch import nn
import repnext_mm, repnext_mm.timing
from repnext_mm import *
from repnext_mm.reparam import *
assert 'FuseBackboneHook' not in repnext_mm.__all__

layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
fused, report = fuse_checked(layers)
assert isinstance(report, FusionReport) and report.norms_after == 0
assert max(relative_error(fused, layers.eval(), torch.randn(1, 3, 9, 7))) < 1e-5
assert isinstance(kernel_of(fused[0]), Kernel)

model = RepNeXt({{'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}})
model.init_weights()
model.train()(torch.zeros(2, 3, 64, 64))[3].sum().backward()
fused, report = fuse_checked(model)
assert report.norms_after == 0 and len(report.errors) == 4
assert fuse(RepNeXtU('tiny').eval())[1].norms_after == 0

path = {str(tmp_path / 'weights.pth')!r}
torch.save({{'state_dict': model.state_dict()}}, path)
assert read_checkpoint(path)['state_dict'].keys() == model.state_dict().keys()
""",
    )


def test_mmengine_lite_without_opencv_registers_the_networks_and_says_what_is_missing():
    run_without(
        *('cv2', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm'),
        code="""
import torch
import repnext_mm
from mmengine.registry import MODELS
from repnext_mm import *

model = MODELS.build(dict(type='RepNeXt', arch='m0', out_indices=(3,))).eval()
fused, report = fuse_checked(model)
assert report.norms_after == 0 and fused(torch.zeros(1, 3, 64, 64))[0].shape == (1, 320, 2, 2)
assert MODELS.get('RepNeXtClsHead') and MODELS.get('RepNeXtU')
for name in ('FuseBackboneHook', 'export_model'):
    try:
        getattr(repnext_mm, name)
    except repnext_mm.errors.MissingPackageError as error:
        assert isinstance(error, ImportError)
        assert str(error) == f"{name} needs mmengine's Runner and hooks: pip install opencv-python-headless"
    else:
        raise AssertionError(f'{name} cannot be there')
""",
    )


def test_timm_users_need_no_mmengine():
    pytest.importorskip('timm')
    run_without(
        *('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'),
        code="""
import timm, torch
import repnext_mm.timm_models
model = timm.create_model('repnext_m0', num_classes=7)
fused, report = repnext_mm.fuse_checked(model)
assert report.norms_after == 0 and fused(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
""",
    )


def test_the_names_at_the_root_are_those_of_the_modules():
    assert set(repnext_mm.__all__) <= set(dir(repnext_mm))
    assert repnext_mm.fuse is importlib.import_module('repnext_mm.reparam').fuse
    assert repnext_mm.export_model is importlib.import_module('repnext_mm.export').export_model
    with pytest.raises(AttributeError, match="'repnext_mm' has no attribute 'fast'"):
        _ = repnext_mm.fast


@pytest.mark.parametrize(
    ('former', 'now'),
    [
        ('read', 'kernel.kernel_of'),
        ('exact', 'kernel.as_float64'),
        ('folds', 'kernel.is_affine'),
        ('read_norm', 'kernel.affine_of'),
        ('within', 'verify.all_within'),
        ('replaced', 'surgery.replaced'),
        ('count_norms', 'fuse.count_norms'),
    ],
)
def test_former_names_of_the_algebra_warn(former, now):
    reparam, (module, name) = importlib.import_module('repnext_mm.reparam'), now.split('.')
    with pytest.warns(DeprecationWarning, match=rf'reparam\.{former} is repnext_mm\.reparam\.{now} now'):
        found = getattr(reparam, former)
    assert found is getattr(importlib.import_module(f'repnext_mm.reparam.{module}'), name)


@pytest.mark.parametrize(
    ('former', 'now'),
    [
        ('model_state', 'read.state_dict_of'),
        ('weights_in', 'read.weights_in'),
        ('recognise', 'read.recognize'),
        ('fit', 'load.fit'),
    ],
)
def test_former_names_of_checkpoints_warn(former, now):
    checkpoints, (module, name) = importlib.import_module('repnext_mm.checkpoints'), now.split('.')
    with pytest.warns(DeprecationWarning, match=rf'checkpoints\.{former} is repnext_mm\.checkpoints\.{now} now'):
        found = getattr(checkpoints, former)
    assert found is getattr(importlib.import_module(f'repnext_mm.checkpoints.{module}'), name)


def test_modules_below_former_paths_are_found_too():
    lines = []
    for statement, now in {
        'repnext_mm.nn.block import MetaNeXtBlock': 'models.repnext',
        'repnext_mm.nn.conv_norm import ConvNorm': 'models.repnext',
        'repnext_mm.benchmark.branchwise import branch_by_branch': 'models.branchwise',
        'repnext_mm.hooks.whole_files import is_whole as is_whole_file': 'checkpoints',
    }.items():
        name = statement.split()[-1]
        lines += [f'from {statement}', f'from repnext_mm.{now} import {name} as there', f'assert {name} is there']
    command = [sys.executable, '-W', 'ignore', '-c', '\n'.join(lines)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_heavy_libraries_are_not_imported():
    code = f'import repnext_mm, sys; print([m for m in {HEAVY!r} if m in sys.modules])'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(result.stdout) == []


FORMER = """
import importlib, json, os, sys, traceback, warnings
import repnext_mm

def look(former, homes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        module = importlib.import_module('repnext_mm.' + former)
    (said,) = [str(w.message) for w in caught if str(w.message).startswith(f'repnext_mm.{former} has moved')]
    for home in homes:
        there = importlib.import_module('repnext_mm.' + home)
        assert 'repnext_mm.' + home in said
        for name in getattr(there, '__all__', []):
            assert getattr(module, name) is getattr(there, name), name
    try:
        module.not_there
    except AttributeError:
        return
    raise AssertionError('there is an attribute not_there')

failed = {}
for former, homes in json.loads(sys.argv[1]).items():
    end, start = os.pipe()
    if not os.fork():  # a process for each, in which no other former path was imported
        try:
            look(former, homes)
        except BaseException:
            os.write(start, traceback.format_exc().encode()[-4000:])
        os._exit(0)
    os.close(start)
    with open(end) as pipe:
        failed[former] = pipe.read()
    os.wait()
print(json.dumps(failed))
"""


@pytest.fixture(scope='module')
def failures_of_former_paths():
    command = [sys.executable, '-W', 'ignore', '-c', FORMER, json.dumps(MOVED)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='starts processes by fork')
@pytest.mark.parametrize('former', sorted(MOVED))
def test_former_paths_give_the_names_of_their_new_places(former, failures_of_former_paths):
    assert failures_of_former_paths[former] == ''
