"""The script of `repnext check env`, run by its file: where torch is broken, the package cannot be imported."""

import runpy
from pathlib import Path

root = Path(__file__).resolve().parent.parent  # a clone, or .mim inside an installed package
package = root.parent if root.name == '.mim' else root / 'repnext_mm'

if __name__ == '__main__':
    runpy.run_path(str(package / 'cli' / 'check_env.py'), run_name='__main__')
