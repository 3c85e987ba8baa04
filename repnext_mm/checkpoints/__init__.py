"""Weight files: reading, recognising, matching and writing; knows tensors, no model."""

from .load import LoadReport, backbone_state, check_fits, load_strictly
from .read import StateDict, is_torchscript, read_checkpoint
from .recognise import Recognised, recognise, writer_of
from .scan import unsafe_globals
from .state import model_state, state_dict_of
from .write import published_name, write_checkpoint

__all__ = [
    'LoadReport', 'Recognised', 'StateDict', 'backbone_state', 'check_fits', 'is_torchscript', 'load_strictly',
    'model_state', 'published_name', 'read_checkpoint', 'recognise', 'state_dict_of', 'unsafe_globals',
    'write_checkpoint', 'writer_of',
]  # fmt: skip
