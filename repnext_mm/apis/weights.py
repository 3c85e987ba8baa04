"""One reader for every weight file that mmengine is asked to load: safe, and strict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.fileio.handlers import PickleHandler, file_handlers
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from repnext_mm.apis.run import NotBuiltError
from repnext_mm.checkpoints import WeightsError, model_state, read_checkpoint
from repnext_mm.models import type_name

_ADDRESS_BOOKS: dict[str, Callable[[], Mapping[str, str]]] = {
    'torchvision': get_torchvision_models,
    'modelzoo': get_torchvision_models,
    'openmmlab': get_external_models,
    'open-mmlab': get_external_models,
    'mmcls': get_mmcls_models,
}


@contextmanager
def reading_safely(*, trust_pickle: bool = False) -> Iterator[None]:
    """Within, mmengine executes no file that it reads.

    Weight files go through ``read_checkpoint``: mmengine itself falls back to unpickling, and looks for weights only
    under ``state_dict``. Pickled annotations are refused.
    """

    def load_from_repnext_mm(filename: str, map_location: Any = None) -> dict[str, Any]:
        content: Mapping[str, Any] = read_checkpoint(resolved(filename), trust_pickle=trust_pickle)
        if filename.startswith('mmcls://'):  # a classifier under the name of its backbone
            state = model_state(content)
            return {'state_dict': {key[9:]: value for key, value in state.items() if key[:9] == 'backbone.'}}
        meta = content.get('meta')
        if isinstance(meta, Mapping):  # mmengine runs `config`, an old writer's Python, when it resumes
            content = {**content, 'meta': {key: value for key, value in meta.items() if key != 'config'}}
        if 'state_dict' in content:
            return dict(content)
        return {'state_dict': model_state(content), 'meta': content.get('meta', {})}

    schemes, handlers = dict(CheckpointLoader._schemes), dict(file_handlers)
    CheckpointLoader.register_scheme(list(schemes), load_from_repnext_mm, force=True)
    if not trust_pickle:
        file_handlers.update(pickle=_PickleWriter(), pkl=_PickleWriter())
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes
        file_handlers.update(handlers)


class _PickleWriter(PickleHandler):
    """mmengine's handler of pickles, which writes predictions, but reads nothing."""

    def load_from_fileobj(self, file: Any, **options: Any) -> Any:
        raise NotBuiltError(
            'the config names a pickle to read (.pkl), and unpickling could run code: convert it to JSON, or, if you '
            'trust the file, add --trust-pickle'
        )


def resolved(address: str) -> str:
    """The file or ``http(s)://`` address that one of mmengine's names stands for (``torchvision://resnet50``).

    Raises:
        WeightsError: the name is not in mmengine's list, or is in a store that only pickle-reading clients open.
    """
    scheme, separator, name = address.partition('://')
    if not separator or scheme in ('http', 'https', 'file'):
        return address
    if scheme not in _ADDRESS_BOOKS:
        raise WeightsError(f"'{address}' is not read: download it and give the file's path, or an http(s) address")
    book = _ADDRESS_BOOKS[scheme]()
    if 'mmlab' in scheme:
        name = get_deprecated_model_names().get(name, name)
    if name not in book:
        raise WeightsError(f"'{address}' is in no list of this mmengine: give the file's path, or its http(s) address")
    return book[name]


def load_strictly(config: Config, *, without: Sequence[str] = ()) -> None:
    """Put StrictLoadHook into a config that lacks it.

    ``without`` are prefixes of keys in the file that the model to test does not have on purpose.
    """
    hooks = list(config.get('custom_hooks') or [])
    strict = next((h for h in hooks if isinstance(h, dict) and type_name(h.get('type')) == 'StrictLoadHook'), None)
    if strict is None:
        strict = dict(type='StrictLoadHook')
        hooks.append(strict)
    if without:
        strict['reset'] = [*strict.get('reset', ()), *without]
    config.custom_hooks = hooks
