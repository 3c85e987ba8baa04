"""Weight files: reading, recognising, matching and writing; knows tensors, no model."""

from repnext_mm.checkpoints._reader import is_torchscript, is_whole_file, unsafe_globals
from repnext_mm.checkpoints.load import LoadReport, backbone_state, check_fits, fit, load_strictly
from repnext_mm.checkpoints.read import (
    StateDict,
    is_averaged,
    one_sentence,
    plain_dict,
    read_checkpoint,
    shown_entries,
    state_dict_of,
    weights_in,
)
from repnext_mm.checkpoints.recognise import Recognised, recognise, writer_of
from repnext_mm.checkpoints.write import plain_metadata, published_name, write_checkpoint
from repnext_mm.errors import WeightsError

__all__ = [
    'LoadReport',
    'Recognised',
    'StateDict',
    'WeightsError',
    'backbone_state',
    'check_fits',
    'fit',
    'is_averaged',
    'is_torchscript',
    'is_whole_file',
    'load_strictly',
    'one_sentence',
    'plain_dict',
    'plain_metadata',
    'published_name',
    'read_checkpoint',
    'recognise',
    'shown_entries',
    'state_dict_of',
    'unsafe_globals',
    'weights_in',
    'write_checkpoint',
    'writer_of',
]
