"""A hook that makes `load_from`, `--resume` and testing all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from repnext_mm.checkpoints import WeightsError, check_fits, model_state


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Refuse a checkpoint that does not fit the model, before a single tensor is loaded.

    mmengine loads what fits and logs the rest, and it looks only for ``state_dict``: a file with another layout
    loads nothing. This hook finds the weights, maps keys that older versions named otherwise, drops nothing, and
    raises when a key is missing, unexpected, or of another shape; or when a training is to go on from a file that
    does not say where it stood, such as those of mmdet 2 and mmseg 0.

    Args:
        reset: prefixes of keys that may be missing or of another shape and keep their initial values, such as
            ``['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits']`` to
            fine-tune a detector on other classes.
    """

    priority = 'VERY_LOW'  # after EMAHook has chosen between raw and averaged weights

    def __init__(self, reset: Sequence[str] = ()) -> None:
        if not isinstance(reset, list | tuple) or not all(isinstance(prefix, str) for prefix in reset):
            raise ValueError(f"reset={reset!r} must be a list of prefixes, such as ['decode_head.conv_seg']")
        self.reset = tuple(reset)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check, and put the mapped weights where mmengine looks for them."""
        model: nn.Module = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module  # type: ignore[assignment]
        source = 'the checkpoint' if runner._load_from is None else str(runner._load_from)
        if runner._resume and not runner._has_loaded:
            _check_resumable(checkpoint, source)
        state, report = check_fits(model_state(checkpoint), model.state_dict(), reset=self.reset, source=source)
        checkpoint['state_dict'] = state
        print_log(f'{type(model).__name__}: {report} from {source}', logger='current')


def _check_resumable(checkpoint: Mapping[str, Any], source: str) -> None:
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    lacking = [name for name, there in (('meta.epoch', meta), ('meta.iter', meta), ('message_hub', checkpoint))
               if name.rpartition('.')[2] not in there]  # fmt: skip
    if lacking:
        raise WeightsError(
            f'{source} holds no training of mmengine to go on from (--resume), {" and ".join(lacking)} are not there: '
            'start from its weights, with --cfg-options load_from=FILE'
        )
