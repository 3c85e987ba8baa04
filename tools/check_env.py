"""The script of `repnext check env`, run by its file: where torch is broken, the package cannot be imported."""

import runpy
from pathlib import Path

above = Path(__file__).resolve().parents[1:3]  # in a clone the package is beside tools/, in a wheel it is around them
folder = next(path for path in (above[0] / 'repnext_mm', above[1]) if (path / 'cli').is_dir())

if __name__ == '__main__':
    runpy.run_path(str(folder / 'cli' / 'check_env.py'), run_name='__main__')
