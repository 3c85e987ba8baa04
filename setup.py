"""The one build step that pyproject.toml cannot say: configs and tools travel in `repnext_mm/.mim`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithMim(build_py):
    """Put configs, tools and the model index where MIM looks for them; an editable install leaves them in the clone."""

    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        mim = Path(self.build_lib) / 'repnext_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # an earlier build may have left files that are gone since
        mim.mkdir(parents=True)
        for folder in ('configs', 'tools'):
            if (ROOT / folder).is_dir():
                skip = shutil.ignore_patterns('__pycache__', 'setup_env.py')  # the latter works in a clone only
                shutil.copytree(ROOT / folder, mim / folder, ignore=skip)
        if (ROOT / 'model-index.yml').is_file():
            shutil.copy(ROOT / 'model-index.yml', mim)


setup(cmdclass={'build_py': BuildWithMim})
