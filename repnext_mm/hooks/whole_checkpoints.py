"""What stands between mmengine's checkpoint hook and the disk: whole saves, late removals, clear errors."""

from __future__ import annotations

import os
import os.path as osp
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner

from repnext_mm._files import draft_path, drafted
from repnext_mm.checkpoints import is_whole_file
from repnext_mm.errors import NotWrittenError


class CheckpointNotSavedError(NotWrittenError):
    """A checkpoint could not be written; the ones before it are untouched."""


@contextmanager
def saying_why(place: Path, *, last: str | None) -> Iterator[None]:
    """Turn the system's errors into a sentence with a way out.

    Args:
        place: what is written within.
        last: the checkpoint before it.

    Raises:
        CheckpointNotSavedError: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, NotWrittenError) else error
        reason = getattr(cause, 'strerror', None) or cause
        try:
            room = f'; {shutil.disk_usage(place.parent).free / 1e6:.0f} MB are free there'
        except OSError:  # there is no such folder
            room = ''
        whole = f" from '{osp.basename(last)}', which is whole" if last else ''
        raise CheckpointNotSavedError(
            f"{place.name} was not saved to '{place.parent}' ({reason}{room}): make room or give "
            f'write access, then go on with --resume{whole}'
        ) from error


class WholeSaves:
    """A runner whose checkpoints appear whole; all else is the runner's own.

    Args:
        runner: mmengine's ``Runner`` or ``FlexibleRunner``.
        last: gives the checkpoint before the one that is saved, for errors.
    """

    def __init__(self, runner: Any, *, last: Callable[[], str | None]) -> None:
        self._runner, self._last = runner, last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *arguments: Any, **options: Any) -> None:
        """What the hook calls; the runner checks the options."""
        place = Path(out_dir, filename)
        drafting = drafted(place, shared=True) if is_main_process() else nullcontext(draft_path(place))
        with saying_why(place, last=self._last()), drafting as draft:
            place.parent.mkdir(parents=True, exist_ok=True)  # a name may hold folders
            self._runner.save_checkpoint(out_dir, str(draft.relative_to(out_dir)), *arguments, **options)
            if not isinstance(self._runner, Runner):  # FlexibleRunner: every process may write a part
                barrier()


class LateRemoval:
    """A file backend that remembers what it is to remove, and tells ``note`` all names so far."""

    def __init__(self, backend: Any, *, note: Callable[[list[str]], None]) -> None:
        self._backend, self._note = backend, note
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Remember; also for ``rmtree``."""
        self.names.append(osp.basename(path))
        self._note(list(self.names))

    rmtree = remove


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is there to its last byte: its archive ends where it should, and all check sums agree.

    torch itself compares no check sums: what a power cut filled with zeros would load. A folder, which some strategies
    write, counts as whole; so does an archive that was saved without check sums, when nothing else is wrong with it.
    """
    return os.path.isdir(path) or is_whole_file(path)
