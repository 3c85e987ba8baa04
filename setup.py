"""Packaging of repnext_mm: no mm* package is a hard requirement, configs and tools travel in `repnext_mm/.mim`."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'$", (ROOT / 'repnext_mm' / 'version.py').read_text(), re.MULTILINE)[1]
# Two sets of distributions with the same import names, never both in one environment. mmcv is in neither: it has to be
# compiled against, or chosen for, the torch that is already there (tools/setup_env.py, or `mim install`).
LANES = {
    'onedl': [
        'onedl-mmengine>=0.10.12',
        'onedl-mmdetection>=3.5.1',
        'onedl-mmsegmentation>=1.4.2',
        'onedl-mmpretrain>=1.3.6',
    ],
    'openmmlab': [
        'mmengine>=0.10.7',
        'mmdet>=3.3.0',
        'mmsegmentation>=1.2.2',
        'mmpretrain>=1.2.0',
        'numpy<2',
        'ftfy',
        'regex',
        'setuptools<81',
    ],
}


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


setup(
    name='repnext_mm',
    version=VERSION,
    description='RepNeXt for MMDetection, MMSegmentation and MMPretrain, with exact structural re-parameterization',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').is_file() else '',
    long_description_content_type='text/markdown',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['repnext_mm', 'repnext_mm.*']),
    package_data={'repnext_mm': ['py.typed']},
    install_requires=['torch>=2.1', 'numpy'],
    extras_require={
        **LANES,
        'digits': ['matplotlib', 'pillow', 'pycocotools', 'scikit-learn>=1.3'],
        'cam': ['grad-cam>=1.5'],
        'demo': ['gradio>=6'],
        'export': ['coremltools', 'onnx', 'onnxruntime', 'onnxscript', 'openvino'],
        'dev': ['hypothesis', 'mypy', 'pytest>=8', 'ruff', 'timm>=1.0'],
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
