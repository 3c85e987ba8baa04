"""The JSON record of a benchmark: written whole or not at all, after each child process."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

FORMAT = 1
SAME_MACHINE = ('device', 'cpu', 'cpu_cores', 'threads', 'torch', 'python')

Record = dict[str, Any]


def new_record(command: str, environment: dict[str, object], settings: dict[str, object]) -> Record:
    """An empty record: what was asked for and where; ``runs`` will hold one entry per child process."""
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
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', text=True)
    try:
        with os.fdopen(handle, 'w') as file:
            file.write(_compact(record))
        os.chmod(draft, 0o644)  # mkstemp makes it private
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read a record.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no benchmark record at {path}: give the JSON file that tools/benchmark.py wrote')
    try:
        record = json.loads(path.read_text())
    except ValueError as failure:
        raise ValueError(f'{path} is no JSON ({failure}): give the file that tools/benchmark.py wrote') from failure
    if not isinstance(record, dict) or record.get('format') != FORMAT or 'runs' not in record:
        raise ValueError(f'{path} is no inference record of format {FORMAT}: give what tools/benchmark.py wrote')
    return record


def check_same_machine(record: Record, environment: dict[str, object]) -> None:
    """Refuse to add to a record what was measured elsewhere.

    Raises:
        ValueError: hardware or software differ.
    """
    for key in SAME_MACHINE:
        before, now = record['environment'].get(key), environment.get(key)
        if before != now:
            raise ValueError(
                f'cannot resume: the record was measured with {key} {before!r}, this is {now!r}; '
                'write to another --output'
            )


def _compact(record: Record) -> str:
    """Indented JSON with each list of numbers on one line."""
    lists: dict[str, str] = {}

    def shorten(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shorten(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            if value and all(isinstance(inner, int | float) for inner in value):
                mark = f'@numbers{len(lists)}@'
                lists[f'"{mark}"'] = json.dumps([round(inner, 4) for inner in value])
                return mark
            return [shorten(inner) for inner in value]
        return value

    lines = json.dumps(shorten(record), indent=1, allow_nan=False).splitlines()
    for index, line in enumerate(lines):
        start = line.find('"@numbers')
        if start >= 0:
            mark = line[start:].rstrip(',')
            lines[index] = line.replace(mark, lists[mark])
    return '\n'.join(lines) + '\n'
