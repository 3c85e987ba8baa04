"""A checkpoint hook that a kill at any moment leaves with a whole checkpoint to go on from."""

from __future__ import annotations

import hashlib
import io
import os.path as osp
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, broadcast_object_list, is_main_process, master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from repnext_mm._files import draft_path, drafted, sweep_drafts
from repnext_mm.errors import NotWrittenError
from repnext_mm.hooks.resume import newest_whole

# Entries of the message hub; one that begins with the name of a loop would be logged.
_OUTDATED, _VALIDATED = 'outdated_best_ckpts', 'last_validation'
_PROBE = '.repnext-write-probe'


class CheckpointNotSavedError(NotWrittenError):
    """A checkpoint could not be written; the ones before it are untouched."""


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, with its arguments, for runs that may be killed.

    mmengine writes checkpoints and ``last_checkpoint`` in place, and removes the outdated checkpoint before the new
    one is there. Here each file appears whole or not at all, and what is outdated goes last: after the new one is on
    the disk and recorded. The disk holds one checkpoint more than ``max_keep_ckpts`` for that moment.

    ``resume`` without a path goes on from the newest whole checkpoint, also where mmengine's own hook left a torn
    one; and if a run was stopped between a checkpoint and the validation after it, which may find it the best, that
    validation is made first (with ``save_best``).

    What a checkpoint says about files is taken as names in the checkpoint folder: a hostile one removes nothing
    elsewhere. Checkpoints in object stores are written by mmengine's clients, as ever.

    Raises:
        CheckpointNotSavedError: the disk is full, or the folder takes no file; the latter before training starts.
        NoWholeCheckpointError: there was a checkpoint to resume from, and there is no whole one.
    """

    file_backend: Any  # set when training starts, by mmengine

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint that ``resume`` without a path goes on from."""
        folder = self._folder(runner)
        if runner._has_loaded or not runner._resume or runner._load_from is not None or '://' in folder:
            return
        path: list[str | None] = [None]
        if is_main_process():
            choice = newest_whole(work_dir=Path(runner.work_dir), folder=Path(folder), template=self.filename_tmpl)
            path = [choice.path]
            if choice.note:
                runner.logger.warning(f'Resuming: {choice.note}')
        broadcast_object_list(path)
        runner._load_from = path[0]

    def before_train(self, runner: Runner) -> None:
        """Check the output folder and finish what an interrupted run left open."""
        self._take_names_only(runner)
        super().before_train(runner)
        self._local = isinstance(self.file_backend, LocalBackend) and '://' not in str(self.out_dir)
        if not self._local:
            runner.logger.warning(
                f'{type(self.file_backend).__name__} writes checkpoints its own way: whether a kill can tear them is '
                'up to it'
            )
        elif is_main_process():
            self._tidy(runner)
        step = runner.epoch if self.by_epoch else runner.iter
        resumed = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        there = [step > 0 and self.file_backend.exists(resumed)]
        broadcast_object_list(there)
        self.last_ckpt = resumed if there[0] else None
        self._validate_if_due(runner)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Save the best one; outside of training there is nothing to save."""
        if hasattr(self, '_local'):
            runner.message_hub.update_info(_VALIDATED, _progress(runner.train_loop)[0])
            super().after_val_epoch(runner, metrics)

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(self._whole(runner))

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        """Save, record, and then remove what is outdated."""
        kept = [*getattr(self, 'keep_ckpt_ids', ())]
        if self.max_keep_ckpts > 0 and step not in kept:
            kept.append(step)
            # With the outdated one, which may survive a kill: before_train removes what is too many.
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self.last_ckpt = path
        if is_main_process():
            record = Path(runner.work_dir, 'last_checkpoint')
            with _saying_why(record, last=path), drafted(record) as draft:
                draft.write_text(path)
        if self.max_keep_ckpts > 0:
            while len(kept) > self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(kept.pop(0))
                if outdated != name:  # a template without a number has one name for all
                    self._remove(outdated)
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', kept)

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Save as mmengine does, and remove the previous best ones when all is saved."""
        hub, backend = runner.message_hub, self.file_backend
        # A checkpoint that is saved meanwhile names them: a successor removes what a kill leaves.
        self.file_backend = late = _LateRemoval(backend, note=lambda names: hub.update_info(_OUTDATED, names))
        try:
            super()._save_best_checkpoint(self._whole(runner), metrics)
        finally:
            self.file_backend = backend
        for name in late.names:
            if name not in _best_names(runner):
                self._remove(name)
        hub.update_info(_OUTDATED, [])

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        """Write the ``published_keys`` of a checkpoint to ``NAME-HASH.pth``, the hash being that of the file."""
        if not self._local:
            super()._publish_model(runner, ckpt_path)
            return
        from mmengine.runner.checkpoint import _load_checkpoint  # the loader that the run is given

        checkpoint, buffer = _load_checkpoint(ckpt_path), io.BytesIO()
        torch.save({key: value for key, value in checkpoint.items() if key in self.published_keys}, buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        published = Path(f'{osp.splitext(ckpt_path)[0]}-{digest[:8]}.pth')
        with _saying_why(published, last=ckpt_path), drafted(published) as draft:
            draft.write_bytes(buffer.getvalue())
        left_out = sorted(checkpoint.keys() - set(self.published_keys))
        runner.logger.info(f'{ckpt_path} is published to {published}, without {left_out}')

    def _whole(self, runner: Runner) -> Any:
        return _WholeSaves(runner, last=lambda: self.last_ckpt) if self._local else runner

    def _folder(self, runner: Runner) -> str:
        """Where checkpoints go, also before mmengine has worked it out."""
        if self.out_dir is None or self.out_dir == runner.work_dir or hasattr(self, '_local'):
            return str(self.out_dir or runner.work_dir)
        return osp.join(self.out_dir, osp.basename(runner.work_dir.rstrip(osp.sep)))

    def _take_names_only(self, runner: Runner) -> None:
        """What a checkpoint says about files becomes names in the checkpoint folder, also when that has moved."""
        hub = runner.message_hub
        ids = hub.runtime_info.get('keep_ckpt_ids')
        if ids is not None:
            numbered = self.filename_tmpl.format(0) != self.filename_tmpl.format(1)  # else they name one file
            hub.update_info('keep_ckpt_ids', [step for step in ids if isinstance(step, int)] if numbered else [])
        for key in [key for key in hub.runtime_info if key.startswith('best_ckpt')]:
            name = osp.basename(str(hub.get_info(key)))
            hub.update_info(key, osp.join(self._folder(runner), name) if name.startswith('best_') else None)

    def _tidy(self, runner: Runner) -> None:
        """Try the folder now, not after hours; and remove what killed runs left."""
        folder = Path(self.out_dir)
        with _saying_why(folder / 'a checkpoint', last=None):
            folder.mkdir(parents=True, exist_ok=True)
            with drafted(folder / _PROBE) as draft:
                draft.write_bytes(b'0')
            (folder / _PROBE).unlink()
            depth = self.filename_tmpl.count('/')
            left = [*sweep_drafts(folder, depth=depth), *sweep_drafts(Path(runner.work_dir))]
        if left:
            runner.logger.info(f'Removed what a killed run had begun to write: {", ".join(left)}')
        for name in map(str, runner.message_hub.runtime_info.get(_OUTDATED) or ()):
            if name.startswith('best_') and osp.basename(name) == name and name not in _best_names(runner):
                self._remove(name)

    def _remove(self, name: str) -> None:
        if is_main_process():
            path = self.file_backend.join_path(self.out_dir, name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # some strategies write a folder
                self.file_backend.rmtree(path)

    def _validate_if_due(self, runner: Runner) -> None:
        loop = runner.train_loop
        done, last = _progress(loop)
        if not self.save_best or not done or runner.val_loop is None:
            return
        loop._decide_current_val_interval()
        due = done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
        if due and runner.message_hub.runtime_info.get(_VALIDATED) != done:
            runner.logger.info('The run was stopped before the validation of this checkpoint was recorded: it follows')
            runner.val_loop.run()


@contextmanager
def _saying_why(place: Path, *, last: str | None) -> Iterator[None]:
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


class _WholeSaves:
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
        with _saying_why(place, last=self._last()), drafting as draft:
            place.parent.mkdir(parents=True, exist_ok=True)  # a name may hold folders
            self._runner.save_checkpoint(out_dir, str(draft.relative_to(out_dir)), *arguments, **options)
            if not isinstance(self._runner, Runner):  # FlexibleRunner: every process may write a part
                barrier()


class _LateRemoval:
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


def _best_names(runner: Runner) -> set[str]:
    info = runner.message_hub.runtime_info
    return {osp.basename(str(info[key])) for key in info if key.startswith('best_ckpt')}


def _progress(loop: Any) -> tuple[int, int]:
    """How many epochs, or iterations, a loop has done, and has to do."""
    if isinstance(loop, EpochBasedTrainLoop):
        return loop.epoch, loop.max_epochs
    if isinstance(loop, IterBasedTrainLoop):
        return loop.iter, loop.max_iters
    return 0, 0  # another loop validates when it likes
