"""A wheel in an environment of its own, used from a foreign folder with no clone near."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_packaging import ROOT, SHIPPED
from tests.tools.running import metrics

pytestmark = pytest.mark.slow

SEGMENTER = 'semantic_fpn_repnext_m0_digits.py'
DETECTOR = 'mask_rcnn_repnext_m0_digits.py'
DATA = 'data/few'
FEW = [
    f'{loader}_dataloader.dataset.scenes.{split}={count}'
    for loader in ('train', 'val', 'test')
    for split, count in (('train', 4), ('val', 2))
]
TWICE = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2')
# what a new data_root changes without our tools, which find it themselves
ROOTS = [f'{loader}_dataloader.dataset.data_root={DATA}' for loader in ('train', 'val', 'test')]
SCORED = f'val_evaluator.ann_file={DATA}/annotations/instances_validation.json'


class Fresh:
    """An environment that has our wheel, and by their folders alone the packages that these tests run on."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.python = folder / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        venv.create(folder, with_pip=False)
        # before the other packages can be seen: pip would find our editable install among them
        pip(folder, '--python', self.python, 'install', '--no-deps', '--no-index', wheel)
        self.site = Path(self.say('import sysconfig; print(sysconfig.get_path("purelib"))', cwd=folder))
        names = [name for name in ('torch', 'mmengine', 'mmseg', 'mim') if find_spec(name)]
        lane = {str(Path(find_spec(name).origin).parents[1]) for name in names}
        (self.site / 'lane.pth').write_text('\n'.join(sorted(lane)) + '\n')  # a line adds a folder, not its .pth files
        self.package = self.site / 'repnext_mm'
        self.mim = self.package / '.mim'

    def say(self, code: str, *, cwd: Path) -> str:
        return self.run('-c', code, cwd=cwd).strip()

    def run(self, *words: object, cwd: Path) -> str:
        """Run ``python WORDS`` and return stdout; nothing of this checkout is on its path."""
        hidden = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')
        env = {key: value for key, value in os.environ.items() if key not in hidden}
        done = subprocess.run(
            [str(self.python), *map(str, words)],
            cwd=cwd,
            env={**env, 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


def pip(folder: Path, *words: object) -> None:
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK='1')
    command = [sys.executable, '-m', 'pip', *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='module')
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    folder = tmp_path_factory.mktemp('fresh')
    clone = folder / 'clone'
    clone.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, clone)
    pip(clone, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder / 'out', '.')
    (wheel,) = (folder / 'out').glob('*.whl')
    shutil.rmtree(clone)
    return Fresh(folder / 'environment', wheel)


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('elsewhere')


def test_what_is_imported_is_the_wheel(fresh, elsewhere):
    code = 'import repnext_mm, mmseg, sys; print(repnext_mm.__file__, *sys.path, sep="\\n")'
    file, *path = fresh.say(code, cwd=elsewhere).splitlines()
    assert Path(file) == fresh.package / '__init__.py'
    assert str(ROOT) not in path
    assert (fresh.mim / 'configs' / SEGMENTER).is_file()
    assert (fresh.mim / 'tools/train.py').is_file()
    assert (fresh.mim / 'model-index.yml').is_file()
    version = fresh.say('from importlib.metadata import distribution as d; print(d("repnext_mm")._path)', cwd=elsewhere)
    assert Path(version).parent == fresh.site


def test_the_command_is_installed_with_it(fresh, elsewhere):
    command = fresh.python.parent / 'repnext'
    assert 'usage: repnext VERB' in fresh.run(command, '--help', cwd=elsewhere)
    assert 'wrote design' in fresh.run(command, 'visualize', 'design', '--out', 'design', cwd=elsewhere)
    script, verb = (
        fresh.run(*words, '--help', cwd=elsewhere) for words in ((fresh.mim / 'tools/test.py',), (command, 'test'))
    )
    assert script.split()[2:] == verb.split()[3:]


def test_it_trains_tests_and_draws_with_its_own_tools(fresh, elsewhere):
    config = fresh.mim / 'configs' / SEGMENTER
    output = fresh.run(
        fresh.mim / 'tools/train.py',
        config,
        '--work-dir',
        'run',
        '--cfg-options',
        f'data_root={DATA}',
        *FEW,
        *TWICE,
        cwd=elsewhere,
    )
    assert 'Iter(val)' in output
    checkpoint = elsewhere / 'run/iter_2.pth'
    options = ('--cfg-options', f'data_root={DATA}', *FEW)
    output = fresh.run(fresh.mim / 'tools/test.py', config, checkpoint, *options, cwd=elsewhere)
    assert 'norms 53 -> 0' in output
    assert metrics(output, 'mIoU') >= 0
    image = next((elsewhere / DATA / 'images/validation').iterdir())
    output = fresh.run(fresh.mim / 'tools/infer.py', image, config, checkpoint, *options, cwd=elsewhere)
    assert (elsewhere / 'work_dirs/infer/vis' / image.name).is_file()
    assert 'norms 53 -> 0' in output


@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_it_trains_with_the_stock_tools(package, fresh, elsewhere):
    tool = Path(find_spec(package).origin).parent / '.mim/tools/train.py'
    config, changes = (SEGMENTER, TWICE) if package == 'mmseg' else (DETECTOR, (SCORED,))
    output = fresh.run(
        tool,
        fresh.mim / 'configs' / config,
        '--work-dir',
        package,
        '--cfg-options',
        *ROOTS,
        *FEW,
        *changes,
        cwd=elsewhere,
    )
    assert list((elsewhere / package).glob('*_[12].pth'))
    assert 'Saving checkpoint at' in output


def test_mim_trains_with_it(fresh, elsewhere):
    pytest.importorskip('mim', reason='MIM is not installed: pip install onedl-mim, or openmim')
    installed = {entry.metadata['Name'].lower() for entry in metadata.distributions()}
    (package,) = installed & {'mmsegmentation', 'onedl-mmsegmentation'}
    output = fresh.run(
        '-m',
        'mim',
        'train',
        package,
        fresh.mim / 'configs' / SEGMENTER,
        '--gpus',
        '0',
        '--launcher',
        'none',
        '--work-dir',
        'mim',
        '--cfg-options',
        *ROOTS,
        *FEW,
        *TWICE,
        cwd=elsewhere,
    )
    assert 'Training finished successfully' in output
    assert (elsewhere / 'mim/iter_2.pth').is_file()
