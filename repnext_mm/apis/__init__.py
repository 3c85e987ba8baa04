"""The library calls behind tools/: each reads a config, checks it before any long work, and runs it."""

from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import load_config
from repnext_mm.apis.infer import annotate_frames, annotate_image, annotate_images
from repnext_mm.apis.test import prepare_test, run_test
from repnext_mm.apis.train import prepare_training, run_training

__all__ = [
    'annotate_frames',
    'annotate_image',
    'annotate_images',
    'build_model',
    'load_config',
    'prepare_test',
    'prepare_training',
    'run_test',
    'run_training',
]
