"""The reader of torch's formats: runs nothing, costs a multiple of a file's size; see docs/records/weight_format.md."""

from repnext_mm.checkpoints._reader.budget import NotReadError, RefusedGlobalError
from repnext_mm.checkpoints._reader.files import format_of, is_torchscript, is_whole_file, read_file, unsafe_globals

__all__ = [
    'NotReadError',
    'RefusedGlobalError',
    'format_of',
    'is_torchscript',
    'is_whole_file',
    'read_file',
    'unsafe_globals',
]
