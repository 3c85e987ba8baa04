"""Imported by a config: each process writes, as the last thing that Python does, what it still holds of its job."""

import atexit
import gc
import json
import os
from pathlib import Path

from torch.nn.parallel import DistributedDataParallel


def _say() -> None:
    threads = [path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')]
    models = [type(each).__name__ for each in gc.get_objects() if isinstance(each, DistributedDataParallel)]
    held = {'gloo': [name for name in threads if 'gloo' in name], 'models': models}
    Path(f'last_words_{os.environ["RANK"]}.json').write_text(json.dumps(held))


atexit.register(_say)  # before the group is joined, so it is called after it was left
