"""Weight files: reading, recognizing, matching and writing; knows tensors, no model."""

from repnext_mm._moved import former_names
from repnext_mm.checkpoints._reader import is_torchscript, is_whole_file, unsafe_globals
from repnext_mm.checkpoints.find import local_file
from repnext_mm.checkpoints.load import LoadReport, load_strictly
from repnext_mm.checkpoints.published import PUBLISHED
from repnext_mm.checkpoints.read import Recognized, StateDict, read_checkpoint, recognize, state_dict_of
from repnext_mm.checkpoints.write import published_name, write_checkpoint
from repnext_mm.errors import WeightsError

__all__ = [
    'PUBLISHED',
    'LoadReport',
    'Recognized',
    'StateDict',
    'WeightsError',
    'is_torchscript',
    'is_whole_file',
    'load_strictly',
    'local_file',
    'published_name',
    'read_checkpoint',
    'recognize',
    'state_dict_of',
    'unsafe_globals',
    'write_checkpoint',
]

_FORMER = {
    'load': ('backbone_state', 'check_fits', 'fit'),
    'read': (
        'Recognised',
        'is_averaged',
        'model_state',
        'one_sentence',
        'plain_dict',
        'recognise',
        'shown_entries',
        'weights_in',
        'writer_of',
    ),
    'write': ('plain_metadata',),
}
"""Names that stood here, by the module that has them, for one release."""

__getattr__ = former_names(__name__, _FORMER)
