"""Weight files from an address: kept in torch's hub cache, whole or not at all, with their SHA-256 beside them."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import torch

from repnext_mm._files import drafted, writing
from repnext_mm.checkpoints._reader import NotReadError, format_of, is_whole_file
from repnext_mm.errors import NotDownloadedError, NotWrittenError, UserError, WeightsError

TIMEOUT_S = 60  # without a byte
RECORD = '.sha256'  # the end of a record's name; `sha256sum -c` reads it
_SAFE = "%/:=&?~+!$,;'@()*[]"  # what addresses may hold as it is


def cache_folder() -> Path:
    """Where downloads are kept, those of torch and timm too; ``TORCH_HOME`` moves it."""
    return Path(torch.hub.get_dir()) / 'checkpoints'


def downloaded(address: str) -> Path:
    """The local copy of the file at an ``http(s)://`` address; fetched once.

    Raises:
        WeightsError: the address names no host, a weight file did not come from it as a whole, or the copy has changed.
    """
    local = cache_folder() / cached_name(address)
    if not local.is_file():
        fetched_by_torch = cache_folder() / _last_part(address)
        if _proves_its_content(fetched_by_torch):
            return fetched_by_torch
        fetch(address, local, way_out='check the address, or download the file and give its path')
    return unchanged(local)


def is_cached(address: str) -> bool:
    """Whether the file at an address was downloaded before."""
    return (cache_folder() / cached_name(address)).is_file()


def fetch(address: str, local: Path, *, way_out: str) -> None:
    """Download a file to a place in the cache, unless another process does so in the meantime.

    Args:
        address: of the file.
        local: where to; the folder is made.
        way_out: what a user can do where it does not come.

    Raises:
        NotDownloadedError: it did not come as a whole, or is not a weight file; nothing is kept.
        NotWrittenError: the cache takes no file.
    """
    with _one_process(local):
        if not local.is_file():
            _download(address, local, way_out=way_out)


def unchanged(local: Path) -> Path:
    """The same path, once the file has the SHA-256 that was recorded when it was downloaded or first used.

    Raises:
        WeightsError: it has another one.
    """
    record, found = local.with_name(local.name + RECORD), _sha256(local)
    if not record.is_file():  # put there by hand, or by torch
        with suppress(NotWrittenError):  # the folder may be another user's
            _write_record(local, found)
    elif (recorded := record.read_text(errors='replace').split(' ')[0]) != found:
        raise WeightsError(
            f'{local} has changed since it was first used (SHA-256 {found[:16]}..., then {recorded[:16]}...): remove '
            f'it and {record.name} to download it again'
        )
    return local


def cached_name(address: str) -> str:
    """What the file at an address is called in the cache: the last part of its path, and a hash of all of the address.

    Files of one name on several hosts, or behind one path with several queries, are different files. Whatever the
    address holds, the name is one plain name: never a way out of the folder.

    Raises:
        WeightsError: the address names no host.
    """
    whole = _plain(address)
    if not urlsplit(whole).netloc:
        raise WeightsError(f'{address} names no host: give the whole address of a weight file')
    stem, dot, suffix = _last_part(address).rpartition('.')
    if not stem or len(suffix) > 12:
        stem, dot, suffix = f'{stem}{dot}{suffix}', '', ''
    return f'{stem or "weights"}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}{dot}{suffix}'


def _last_part(address: str) -> str:
    last = unquote(urlsplit(_plain(address)).path).replace('\\', '/').rpartition('/')[2]
    return re.sub(r'[^\w.+=@-]', '_', last, flags=re.ASCII)[-128:].lstrip('.')


def _plain(address: str) -> str:
    """An address as servers take it: in ASCII, without the fragment, which is for the reader."""
    try:
        parts = urlsplit(address)
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode('idna').decode()
    except ValueError as error:
        raise WeightsError(f'{address} is not an address ({error}): give that of a weight file') from error
    return urlunsplit((parts.scheme.lower(), host, quote(parts.path, _SAFE), quote(parts.query, _SAFE), ''))


def _proves_its_content(path: Path) -> bool:
    """Whether a file is the one that its name says by a hash, as those that torch and OpenMMLab publish do."""
    named = re.search(r'-([0-9a-f]{8,64})(?:\.\w+)*$', path.name)
    return named is not None and path.is_file() and _sha256(path).startswith(named[1])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_record(local: Path, digest: str) -> None:
    with drafted(local.with_name(local.name + RECORD)) as draft:
        draft.write_text(f'{digest}  {local.name}\n')


@contextmanager
def _one_process(local: Path) -> Iterator[None]:
    """Let the other processes of this machine wait and then find the file; one that is killed holds nobody up."""
    from filelock import FileLock  # a requirement of torch

    lock = FileLock(local.with_name(f'.{local.name}.lock'))
    with writing(local):
        local.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(address: str, local: Path, *, way_out: str) -> None:
    """Not ``torch.hub``'s: that keeps what came before a connection broke, and waits for ever."""
    with drafted(local) as draft, _said_of(address, way_out):
        with urlopen(Request(_plain(address), headers={'User-Agent': 'repnext_mm'}), timeout=TIMEOUT_S) as answer:
            promised = answer.headers.get('Content-Length')
            with draft.open('wb') as file, _shown(answer, local.name, promised) as content:
                shutil.copyfileobj(content, file, 1 << 20)
        size = draft.stat().st_size
        if promised is not None and size != int(promised):
            raise OSError(f'{size} of {promised} bytes came')
        try:
            format_of(draft)
        except (NotReadError, EOFError) as error:  # a login page, say, which would stay in the cache for good
            raise OSError(f'what came from there is not a weight file: {error}') from error
        if promised is None and not is_whole_file(draft):
            raise OSError(f'{size} bytes came, and they are not a whole file')
        _write_record(local, _sha256(draft))  # before the file: one without a record would be taken as it is


def _shown(answer: Any, name: str, promised: str | None) -> AbstractContextManager[Any]:
    """An answer whose reading moves a progress bar, where tqdm is installed; a few lines where it goes to a log."""
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext(answer)
    total = int(promised) if promised is not None else None
    pace = 0.1 if sys.stderr.isatty() else 30  # seconds
    return tqdm.wrapattr(answer, 'read', total=total, desc=name, unit='B', unit_scale=True, mininterval=pace)


@contextmanager
def _said_of(address: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the answer, too
        raise NotDownloadedError(f'{address} was not downloaded ({error}): {way_out}') from error
