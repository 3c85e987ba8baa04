"""A hook that makes `load_from`, `--resume` and testing all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.hooks.resume_state import check_resumable
from repnext_mm.models.base import deployed_like, fit_to_model

_FOR_MASKS = 'roi_head.mask_head'


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Refuse a checkpoint that does not fit the model, before a single tensor is loaded.

    mmengine loads what fits and logs the rest, and it looks only for ``state_dict``: a file with another layout
    loads nothing. This hook finds the weights, maps keys that other writers named otherwise, drops nothing, and
    raises when a key is missing, unexpected, or of another shape (in a test-time augmentation of boxes, which drops the
    head for masks, that head's tensors are left out); or when a training is to go on from a file that
    does not say where it stood, such as those of mmdet 2 and mmseg 0, or says it in a way that cannot be.

    Args:
        reset: prefixes of keys that may be missing or of another shape and keep their initial values, such as
            ``['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits']`` to
            fine-tune a detector on other classes.
        prefix: the entry of the file (``'model_ema.'``) or the start of the keys to take; by itself, what fits is
            found.
        ema: take the averaged weights of the file.
        testing: the model is only tested: it becomes the deploy form where the file holds fused weights.
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook, which copies what it finds under `state_dict`

    def __init__(
        self, reset: Sequence[str] = (), prefix: str | None = None, ema: bool = False, testing: bool = False
    ) -> None:
        if not isinstance(reset, list | tuple) or not all(isinstance(start, str) for start in reset):
            raise UserError(f"reset={reset!r} must be a list of prefixes, such as ['decode_head.conv_seg']")
        if prefix is not None and not isinstance(prefix, str):
            raise UserError(f"prefix={prefix!r} must be the start of keys, or an entry, such as 'model_ema.'")
        self.reset = tuple(reset)
        self.prefix = prefix
        self.ema = ema
        self.testing = testing

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check, and put the mapped weights where mmengine looks for them."""
        model: nn.Module = runner.model
        reset = self.reset
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            if isinstance(model, BaseTTAModel) and not hasattr(getattr(model.module, 'roi_head', None), 'mask_head'):
                reset = (*reset, _FOR_MASKS)  # left out on purpose, see BoxTTAModel
            model = model.module  # type: ignore[assignment]
        source = 'the checkpoint' if runner._load_from is None else str(runner._load_from)
        if runner._resume and not runner._has_loaded:
            check_resumable(checkpoint, runner, model, source=source)
        if self.testing and deployed_like(model, checkpoint, prefix=self.prefix, ema=self.ema):
            print_log(f'{source} is fused: {type(model).__name__} is tested in deploy form', logger='current')
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.before_run(runner)  # its copy was made of the train form
        state, report = fit_to_model(model, checkpoint, source=source, reset=reset, prefix=self.prefix, ema=self.ema)
        checkpoint['state_dict'] = state
        print_log(f'{type(model).__name__}: {report} from {source}', logger='current')
