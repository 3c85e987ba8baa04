"""What a file asks for beyond the list, found by the reader itself: step by step, without building anything."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from repnext_mm.checkpoints._reader.archive import ScriptGlobals, records_of
from repnext_mm.checkpoints._reader.budget import Budget
from repnext_mm.checkpoints._reader.errors import NotReadError
from repnext_mm.checkpoints._reader.files import format_of
from repnext_mm.checkpoints._reader.legacy import PICKLES
from repnext_mm.checkpoints._reader.tensors import known_globals
from repnext_mm.checkpoints._reader.unpickler import Recorder


def unsafe_globals(path: str | Path) -> list[str]:
    """Full names of the globals in a ``torch.save`` file that loading would refuse; nothing is executed.

    Returns:
        The names, sorted; empty for files that hold no pickle.

    Raises:
        ValueError, zipfile.BadZipFile, ...: the file is corrupt.
    """
    path = Path(path)
    with path.open('rb') as file:
        bare = file.read(1) == b'\x80'
    try:
        found = format_of(path)
    except NotReadError:
        if not bare:
            raise
        found = 'pickle'
    if found == 'safetensors':
        return []
    known = known_globals()
    if found == 'zip':
        with records_of(path) as (records, budget):
            content = BytesIO(records.read('data.pkl'))
            known = ScriptGlobals(known) if records.is_torchscript else known
    else:
        content, budget = BytesIO(path.read_bytes()), Budget(path.stat().st_size)
    names: set[str] = set()
    for _ in range(PICKLES if found == 'legacy' else 1):
        recorder = Recorder(content, budget=budget, known=known)
        try:
            recorder.load()
        except Exception:
            if not recorder.refused:
                raise
            return sorted(names | {*recorder.refused})  # what was asked for before the damage would have been run
        names |= {*recorder.refused}
    return sorted(names)
