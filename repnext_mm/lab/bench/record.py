"""The JSON record of a benchmark: written whole or not at all, after each job."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from repnext_mm._files import drafted
from repnext_mm.errors import MissingFileError, UserError

FORMAT = 1
SAME_MACHINE = ('device', 'cpu', 'cpu_cores', 'threads', 'torch', 'python')

Record = dict[str, Any]


def new_record(command: str, environment: dict[str, object], settings: dict[str, object]) -> Record:
    """An empty record: what was asked for and where; ``runs`` will hold one entry per job and repeat."""
    return {
        'format': FORMAT,
        'command': command,
        'environment': environment,
        'settings': settings,
        'skipped': [],
        'runs': [],
    }


def write_record(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a record so that the file is always complete: what was there stays until the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r'\[\n[\s\d.,eE+-]+\]', _on_one_line, json.dumps(record, indent=1, allow_nan=False))
    with drafted(path) as draft:
        draft.write_text(text + '\n')


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read a record.

    Raises:
        UserError: there is no such file, or it is not a record.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f'no benchmark record at {path}: give the JSON file that tools/benchmark.py wrote')
    try:
        record = json.loads(path.read_text())
    except ValueError as failure:
        raise UserError(f'{path} is not JSON ({failure}): give the file that tools/benchmark.py wrote') from failure
    if not isinstance(record, dict) or record.get('format') != FORMAT or 'runs' not in record:
        raise UserError(f'{path} is not an inference record of format {FORMAT}: give what tools/benchmark.py wrote')
    return record


def check_same_machine(record: Record, environment: dict[str, object]) -> None:
    """Refuse to add to a record what was measured elsewhere.

    Raises:
        UserError: hardware or software differ.
    """
    for key in SAME_MACHINE:
        before, now = record['environment'].get(key), environment.get(key)
        if before != now:
            raise UserError(
                f'cannot resume: the record was measured with {key} {before!r}, this is {now!r}; '
                'write to another --output'
            )


def without_nan(value: Any) -> Any:
    """Plain values for JSON, which has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _on_one_line(numbers: re.Match[str]) -> str:
    return json.dumps([round(number, 4) for number in json.loads(numbers[0])])
