"""Write tests/data/mmcv_ops.npz from mmcv's compiled operators: `python -m tests.mmcv_ops.write_reference`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repnext_mm.mmcv_ops import status
from .cases import CASES

FILE = Path(__file__).parents[1] / 'data' / 'mmcv_ops.npz'
SEED = 0


def main() -> None:
    if status().kind != 'compiled':
        raise SystemExit(f'the reference comes from compiled operators, but here are: {status()}')
    import mmcv._ext as compiled

    results = {
        f'{case.name}/{key}': value.numpy()
        for case in CASES
        if case.stored
        for key, value in case.run(compiled, SEED).items()
    }
    np.savez_compressed(FILE, **results)


if __name__ == '__main__':
    main()
