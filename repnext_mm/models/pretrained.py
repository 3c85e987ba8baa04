"""Loading any kind of weight file into a backbone, or into a whole model around one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from repnext_mm.checkpoints import LoadReport, StateDict, fit, read_checkpoint, recognise, state_dict_of
from repnext_mm.reparam import fuse

if TYPE_CHECKING:
    from repnext_mm.models.repnext import RepNeXt

_FUSED = ('default', 'keep_norms')


def load_pretrained(
    backbone: RepNeXt,
    checkpoint: str,
    *,
    prefix: str | None = None,
    ema: bool = False,
    map_location: str = 'cpu',
    trust_pickle: bool = False,
) -> LoadReport:
    """Load the backbone's part of a file strictly; the authors' fused files lose their norms on the way.

    Args:
        backbone: in train form, or built with ``deploy=True``.
        checkpoint: see ``repnext_mm.checkpoints.read_checkpoint``.
        prefix: the entry (``'model_ema.'``) or the start of the keys to take; by itself, what fits is found.
        ema: take the averaged weights of the file.
        map_location: part of mmengine's entry; weights are copied, so where they are read does not matter.
        trust_pickle: see ``read_checkpoint``.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read or does not fit; the backbone is then unchanged.
    """
    content = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
    state, report = fit_to_model(backbone, content, source=checkpoint, prefix=prefix, ema=ema, part=True)
    backbone.load_state_dict(state, strict=True)
    return report


def fit_to_model(
    model: nn.Module,
    content: Mapping[str, Any],
    *,
    source: str,
    reset: Sequence[str] = (),
    prefix: str | None = None,
    ema: bool = False,
    part: bool = False,
) -> tuple[StateDict, LoadReport]:
    """The weights of a checkpoint for a model, see ``repnext_mm.checkpoints.fit``; norms of fused files are folded.

    The authors' fused files keep a norm per block and downsampling, which a deploy backbone does not have.
    """
    options: dict[str, Any] = {'source': source, 'reset': reset, 'prefix': prefix, 'ema': ema, 'part': part}
    target, name = model.state_dict(), type(model).__name__
    where, backbone = _deploy_backbone(model)
    if backbone is None or _form(content, prefix=prefix, ema=ema) != 'keep_norms':
        return fit(content, target, name=name, **options)
    train_form = type(backbone)(backbone.arch, backbone.in_channels).eval()
    with_norms, _ = fuse(train_form, form='keep_norms', copy=True)
    theirs = {key: value for key, value in target.items() if not key.startswith(where)}
    theirs |= {where + key: value for key, value in with_norms.state_dict().items()}
    state, report = fit(content, theirs, name=name, **options)
    with_norms.load_state_dict(_below(state, where))
    folded = {where + key: value for key, value in fuse(with_norms)[0].state_dict().items()}
    kept = {key: value for key, value in state.items() if not key.startswith(where)} | folded
    notes = (*report.notes, 'the norms that the fused file kept are folded')
    return kept, replace(report, loaded=len(kept), expected=len(target), notes=notes)


def deployed_like(
    model: nn.Module, content: Mapping[str, Any], *, prefix: str | None = None, ema: bool = False
) -> bool:
    """Make a model in train form the deploy form, in place, where a checkpoint holds fused weights of its task.

    For testing only: what is fused cannot be trained. The two heads of a classifier become one layer.

    Returns:
        Whether it did.
    """
    from repnext_mm.models.repnext import RepNeXt

    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, RepNeXt) or backbone.deploy or _form(content, prefix=prefix, ema=ema) not in _FUSED:
        return False
    found, own = (recognise(state, {}) for state in (_likeliest(content, prefix=prefix, ema=ema), model.state_dict()))
    if backbone is not model and found.task != own.task:
        return False
    backbone.switch_to_deploy()
    head = getattr(model, 'head', None)
    if isinstance(head, nn.Module) and hasattr(head, 'merged'):
        flags = head.training
        model.head = fuse(head.eval())[0].train(flags)
    return True


def _deploy_backbone(model: nn.Module) -> tuple[str, RepNeXt | None]:
    """The start of its keys, and the deploy backbone; None where there is none."""
    from repnext_mm.models.repnext import RepNeXt

    where, backbone = ('', model) if isinstance(model, RepNeXt) else ('backbone.', getattr(model, 'backbone', None))
    return where, backbone if isinstance(backbone, RepNeXt) and backbone.deploy else None


def _form(content: Mapping[str, Any], **options: Any) -> str:
    return recognise(_likeliest(content, **options), {}).form


def _likeliest(content: Mapping[str, Any], *, prefix: str | None, ema: bool) -> StateDict:
    try:
        return state_dict_of(content, prefix=prefix, ema=ema)
    except ValueError:  # several networks, or none: what fits is told elsewhere
        return {}


def _below(state: Mapping[str, Tensor], where: str) -> StateDict:
    return {key.removeprefix(where): value for key, value in state.items() if key.startswith(where)}
