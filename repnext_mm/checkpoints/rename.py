"""Other names for the same tensors: of older packages, of wrappers, and of other implementations of a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from repnext_mm.checkpoints.read import StateDict

# (pattern in a file of mmdet 2.x or mmseg 0.x, name in mmdet 3.x or mmseg 1.x). Empty: every part of Mask R-CNN and
# Semantic FPN kept its names, which tests/checkpoints checks against lists of the old ones.
RENAMED: tuple[tuple[str, str], ...] = ()

# Parts of keys that torch.compile, FSDP, activation checkpointing and DeepSpeed add, anywhere in a name.
_WRAPPERS = {'_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_forward_module'}
# Last parts of keys whose tensors carry nothing: counters of batch norms and of averages, and what thop leaves behind.
_COUNTERS = {'num_batches_tracked', 'n_averaged', 'total_ops', 'total_params'}

# Name in a classifier of MMPretrain -> name in a file, for each writer: the authors and timm (a fused head is one
# layer); and for ConvNeXt timm and Facebook, with the authors' downsampling.
SPELLINGS: tuple[tuple[tuple[str, str], ...], ...] = (
    ((r'^backbone\.', ''), (r'^head\.fc\.', 'head.')),
    (
        (r'^backbone\.norm3\.', 'head.norm.'),
        (r'^backbone\.', ''),
        (r'^downsample_layers\.0\.', 'stem.'),
        (r'^downsample_layers\.(\d+)\.', r'stages.\1.downsample.'),
        (r'\.token_mixer\.', '.dwconv.'),
        (r'\.channel_mixer\.0\.', '.pwconv1.'),
        (r'\.channel_mixer\.2\.', '.pwconv2.'),
        (r'^stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
        (r'\.depthwise_conv\.', '.conv_dw.'),
        (r'\.pointwise_conv(\d)\.', r'.mlp.fc\1.'),
    ),
    (
        (r'^backbone\.norm3\.', 'norm.'),
        (r'^backbone\.', ''),
        (r'^head\.fc\.', 'head.'),
        (r'\.(token_mixer|depthwise_conv)\.', '.dwconv.'),
        (r'\.channel_mixer\.0\.', '.pwconv1.'),
        (r'\.channel_mixer\.2\.', '.pwconv2.'),
        (r'\.pointwise_conv(\d)\.', r'.pwconv\1.'),
    ),
)


def current_names(state: StateDict) -> StateDict:
    """A whole model's state dict under the names of the versions that this package supports."""
    renamed: StateDict = {}
    for key, value in state.items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def carries_nothing(key: str) -> bool:
    """Whether a tensor is a counter, which neither tells a network nor is needed to run it."""
    return key.rpartition('.')[2] in _COUNTERS or key == 'steps'  # of mmengine's averages


def unwrapped(state: Mapping[str, Tensor], *, everywhere: bool = False) -> StateDict:
    """Weights without what wrappers add to their names.

    ``_orig_mod.`` and its like go wherever they stand, ``module.`` where all keys begin with it, or ``everywhere``.
    """
    wrappers = _WRAPPERS | {'module'} if everywhere else _WRAPPERS
    renamed = _renamed(state, lambda key: '.'.join(part for part in key.split('.') if part not in wrappers))
    while True:
        deciding = [key for key in renamed if not carries_nothing(key)]
        if not deciding or not all(key.startswith('module.') for key in deciding):
            return renamed
        renamed = _renamed(renamed, lambda key: key.removeprefix('module.'))


def spellings(target: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    """The names that a model's tensors may have in a file, by their names in the model; the model's own come first."""
    yield {key: key for key in target}
    if {key.split('.')[0] for key in target} == {'backbone', 'head'}:
        for rules in SPELLINGS:
            named = {}
            for key in target:
                name = key
                for pattern, replacement in rules:
                    name = re.sub(pattern, replacement, name)
                named[key] = name
            yield named


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> StateDict:
    renamed = {rename(key): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else dict(state)  # two of one name: the parts mean something
