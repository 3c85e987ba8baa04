"""One reader for every weight file that mmengine is asked to load: safe, and strict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import yaml  # type: ignore[import-untyped]
from mmengine.fileio.handlers import BaseFileHandler, JsonHandler, YamlHandler, file_handlers
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from torch import Tensor

from repnext_mm.apis.config import NotBuiltError
from repnext_mm.checkpoints import WeightsError, read_checkpoint, state_dict_of
from repnext_mm.checkpoints.read import weights_in

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
    under ``state_dict``. Annotations are read when they are JSON or plain YAML, see ``safe_handler``.
    """

    def load_from_repnext_mm(filename: str, map_location: Any = None) -> dict[str, Any]:
        content: Mapping[str, Any] = read_checkpoint(resolved(filename), trust_pickle=trust_pickle)
        if filename.startswith('mmcls://'):  # a classifier under the name of its backbone
            state = state_dict_of(content)
            return {'state_dict': {key[9:]: value for key, value in state.items() if key[:9] == 'backbone.'}}
        meta = content.get('meta')
        if isinstance(meta, Mapping):  # mmengine runs `config`, an old writer's Python, when it resumes
            content = {**content, 'meta': {key: value for key, value in meta.items() if key != 'config'}}
        if 'state_dict' in content:
            return dict(content)
        # Other entries come along: StrictLoadHook chooses by the model, this by the names alone.
        others = {key: value for key, value in content.items() if not isinstance(value, Tensor)}
        return {'meta': {}, **others, 'state_dict': _likeliest_weights(content)}

    schemes, handlers = dict(CheckpointLoader._schemes), dict(file_handlers)
    CheckpointLoader.register_scheme(list(schemes), load_from_repnext_mm, force=True)
    if not trust_pickle:
        file_handlers.update({suffix: safe_handler(suffix, handler) for suffix, handler in handlers.items()})
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes
        file_handlers.update(handlers)


def _likeliest_weights(content: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(weights_in(content)) > 1:
        try:
            return state_dict_of(content)
        except WeightsError:  # several networks
            return {}
    return state_dict_of(content)


def safe_handler(suffix: str, handler: BaseFileHandler) -> BaseFileHandler:
    """What reads files of a suffix without running anything: mmengine's own for JSON, YAML of plain values, no other.

    All of them write as before.
    """
    if type(handler) is JsonHandler:
        return handler
    return _PlainYaml() if type(handler) is YamlHandler else _write_only(suffix, handler)


class _PlainLoader(yaml.SafeLoader):
    """Plain values, not objects of classes; tuples too, which mmengine writes."""

    def construct_python_tuple(self, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))


_PlainLoader.add_constructor('tag:yaml.org,2002:python/tuple', _PlainLoader.construct_python_tuple)


class _PlainYaml(YamlHandler):
    def load_from_fileobj(self, file: Any, **_options: Any) -> Any:
        try:
            return _PlainLoader(file).get_single_data()
        except yaml.YAMLError as error:
            reason = ascii(' '.join(str(getattr(error, 'problem', error)).split()))[1:-1][:200]
            raise NotBuiltError(
                f'a YAML file that the config names does not hold plain values alone ({reason}), and others could run '
                'code: convert it to JSON, or, if you trust the file, add --trust-pickle'
            ) from error


def _write_only(suffix: str, handler: BaseFileHandler) -> BaseFileHandler:
    """A handler that writes, say predictions, but reads nothing."""

    def refuse(*_: Any, **_options: Any) -> None:
        raise NotBuiltError(
            f'the config names a file to read that could run code (.{suffix}): convert it to JSON, or, if you trust '
            'the file, add --trust-pickle'
        )

    silent = copy(handler)
    vars(silent).update(load_from_fileobj=refuse, load_from_path=refuse)
    return silent


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
