"""While files are read safely, mmengine's file handlers run nothing, whoever registered them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml
from mmengine.fileio import dump, load
from mmengine.fileio.handlers import BaseFileHandler, JsonHandler, file_handlers

from repnext_mm.apis.safe_loading import reading_safely

PLAIN = {'a': [1, 2.5, None, 'text'], 'b': {'c': True}}


class Foreign(BaseFileHandler):
    """A handler that somebody registers."""

    str_like = False

    def load_from_fileobj(self, file, **kwargs):
        return pickle.load(file)

    def dump_to_fileobj(self, obj, file, **kwargs):
        pickle.dump(obj, file)

    def dump_to_str(self, obj, **kwargs):
        return pickle.dumps(obj)


class ForeignJson(JsonHandler):
    def load_from_fileobj(self, file, **kwargs):
        return eval(file.read())


@pytest.fixture
def registered(monkeypatch):
    """mmengine's handlers, and others under a new and under a known suffix."""
    monkeypatch.setitem(file_handlers, 'foreign', Foreign())
    monkeypatch.setitem(file_handlers, 'jsn', ForeignJson())


def hostile(suffix: str, trace: Path) -> bytes:
    """A file that makes another when it is read with trust."""
    if suffix in ('yaml', 'yml'):
        return f'!!python/object/apply:os.mkdir ["{trace}"]'.encode()
    if suffix == 'jsn':
        return f'__import__("pathlib").Path({str(trace)!r}).touch()'.encode()
    return pickle.dumps(Runs(trace))


class Runs:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


SUFFIXES = [*file_handlers, 'foreign', 'jsn']


@pytest.mark.parametrize('suffix', [suffix for suffix in SUFFIXES if suffix != 'json'])
def test_no_handler_runs_a_file(suffix, registered, tmp_path):
    path, trace = tmp_path / f'a.{suffix}', tmp_path / 'trace'
    path.write_bytes(hostile(suffix, trace))
    with reading_safely():
        with pytest.raises(ValueError, match='could run code') as caught:
            load(str(path))
        with pytest.raises(ValueError, match='could run code'), path.open('rb') as file:
            load(file, file_format=suffix)
        with pytest.raises(ValueError, match='could run code'):
            file_handlers[suffix].load_from_path(str(path))
    assert not trace.exists()
    assert len(str(caught.value).splitlines()) == 1
    with reading_safely(trust_pickle=True):
        load(str(path))
    assert trace.exists()  # the test above refused something


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_every_handler_writes_and_plain_files_are_read(suffix, registered, tmp_path):
    path = tmp_path / f'a.{suffix}'
    with reading_safely():
        dump(PLAIN, str(path))
        if suffix in ('json', 'yaml', 'yml'):
            assert load(str(path)) == PLAIN
        assert isinstance(dump(PLAIN, file_format=suffix), str | bytes)
    before = dict(file_handlers)
    with reading_safely():
        pass
    assert file_handlers == before
    if suffix != 'jsn':
        assert load(str(path)) == PLAIN


def test_yaml_of_tuples_is_read(tmp_path):
    """mmengine writes them in YAML's words for Python."""
    content = {'size': (1, 2), 'nested': [(3, (4, 5))]}
    dump(content, str(tmp_path / 'a.yaml'))
    assert 'python/tuple' in (tmp_path / 'a.yaml').read_text()
    with reading_safely():
        assert load(str(tmp_path / 'a.yaml')) == content
        (tmp_path / 'b.yaml').write_text(yaml.safe_dump(json.loads(json.dumps(content))))
        assert load(str(tmp_path / 'b.yaml')) == {'size': [1, 2], 'nested': [[3, [4, 5]]]}
        (tmp_path / 'c.yaml').write_text('a: [1, 2')
        with pytest.raises(ValueError, match='does not hold plain values'):
            load(str(tmp_path / 'c.yaml'))


@pytest.mark.parametrize(
    'tag', ['name:os.system', 'module:os', 'object:pathlib.Path', 'object/new:pathlib.Path', 'object/apply:os.system']
)
def test_every_tag_of_classes_is_refused(tag, tmp_path):
    (tmp_path / 'a.yml').write_text(f'data: !!python/{tag} []\n')
    with reading_safely(), pytest.raises(ValueError, match='could run code'):
        load(str(tmp_path / 'a.yml'))
