"""Small networks to export, with norm statistics that hide nothing."""

from __future__ import annotations

from repnext_mm import RepNeXt
from tests.conftest import randomize
from tests.tools.running import ROOT

DIGITS = ROOT / 'configs/repnext_m0_digits_cls.py'
TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


def tiny(**options) -> RepNeXt:
    return randomize(RepNeXt(TINY, **options)).eval()
