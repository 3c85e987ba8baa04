"""The package's layers, and what importing it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import repnext_mm

PACKAGE = Path(repnext_mm.__file__).parent
LAYERS = ['reparam', 'nn', 'checkpoints', 'models']  # each may import those before it; all others may import all
HEAVY = ('mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'timm', 'torchvision', 'sklearn')


def imports(path: Path) -> set[str]:
    """Modules imported when ``path`` is imported: those inside functions do not count."""
    found = set()
    body = list(ast.parse(path.read_text()).body)
    while body:
        node = body.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = '.'.join(('repnext_mm', *path.relative_to(PACKAGE).parent.parts))
            found.add(f'{package}.{node.module or ""}'.rstrip('.') if node.level else str(node.module))
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With):
            body += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path):
    layer = path.relative_to(PACKAGE).parts[0]
    names = imports(path)
    if layer in LAYERS:
        allowed = LAYERS[: LAYERS.index(layer) + 1]
        inner = {name.split('.')[1] for name in names if name.startswith('repnext_mm.')}
        assert inner <= set(allowed)
    if layer in LAYERS[:3]:
        assert not any(name.split('.')[0] == 'mmengine' for name in names)
    if layer == 'hooks':
        inner = {name.split('.')[1] for name in names if name.startswith('repnext_mm.')}
        assert inner <= {'reparam', 'checkpoints', 'models', layer}
    if layer == 'mmcv_ops':  # mmcv imports it while it is being imported itself
        inner = {name.split('.')[1] for name in names if name.startswith('repnext_mm.')}
        outer = {name.split('.')[0] for name in names} - set(sys.stdlib_module_names)
        assert inner <= {layer} and outer <= {'torch', 'torchvision', 'repnext_mm'}


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
        'import ' + '.'.join(('repnext_mm', *path.relative_to(PACKAGE).with_suffix('').parts)).removesuffix('.__init__')
        for path in modules()
        if path.name != 'timm_models.py' and 'mmcv_ops' not in path.parts  # for users of timm and of torchvision
    )
    result = run(names)
    assert result.returncode == 0, result.stderr


def test_heavy_libraries_are_not_imported():
    code = f'import repnext_mm, sys; print([m for m in {HEAVY!r} if m in sys.modules])'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(result.stdout) == []
