"""Loading any kind of weight file into a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repnext_mm.checkpoints import LoadReport, backbone_state, load_strictly, read_checkpoint, recognise, state_dict_of
from repnext_mm.reparam import fuse

if TYPE_CHECKING:
    from .repnext import RepNeXt


def load_pretrained(
    backbone: RepNeXt,
    checkpoint: str,
    *,
    prefix: str | None = None,
    map_location: str = 'cpu',
    trust_pickle: bool = False,
) -> LoadReport:
    """Load the backbone's part of a file strictly; the authors' fused files lose their norms on the way.

    Args:
        backbone: in train form, or built with ``deploy=True``.
        checkpoint: see ``repnext_mm.checkpoints.read_checkpoint``.
        prefix: of the backbone's keys in the file; found by itself where it is ``backbone.``.
        map_location: part of mmengine's entry; weights are copied, so where they are read does not matter.
        trust_pickle: see ``read_checkpoint``.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read or does not fit; the backbone is then unchanged.
    """
    content = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
    state, dropped = backbone_state(state_dict_of(content), prefix=prefix)
    if backbone.deploy and recognise(state, {}).form == 'keep_norms':
        train_form = type(backbone)(backbone.arch, backbone.in_channels).eval()
        kept, _ = fuse(train_form, form='keep_norms', copy=True)
        load_strictly(kept, state, source=checkpoint)
        state = fuse(kept)[0].state_dict()
    return load_strictly(backbone, state, dropped=dropped, source=checkpoint)
