"""Weight files: reading, recognising and matching; knows tensors, no model."""

from .load import LoadReport, backbone_state, load_strictly
from .read import StateDict, read_checkpoint, state_dict_of

__all__ = ['LoadReport', 'StateDict', 'backbone_state', 'load_strictly', 'read_checkpoint', 'state_dict_of']
