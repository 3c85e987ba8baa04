"""The former place of :mod:`repnext_mm.data.own`; this alias stays for one release."""

from repnext_mm.data.own import *  # noqa: F403
from repnext_mm.data.own import __all__ as __all__
