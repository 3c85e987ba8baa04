"""Weight files from an address: kept in torch's hub cache, whole or not at all, and nowhere else."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import torch

from repnext_mm._files import drafted
from repnext_mm.checkpoints._reader import NotReadError, format_of
from repnext_mm.errors import UserError, WeightsError

TIMEOUT_S = 60  # without a byte
_SAFE = "%/:=&?~+!$,;'@()*[]"  # what addresses may hold as it is


def downloaded(address: str) -> Path:
    """The local copy of the file at an ``http(s)://`` address; fetched once.

    Raises:
        WeightsError: the address names no host, or a weight file did not come from it as a whole.
    """
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    local = folder / cached_name(address)
    if local.is_file():
        return local
    fetched_by_torch = folder / _last_part(address)
    if _proves_its_content(fetched_by_torch):
        return fetched_by_torch
    _download(address, local)
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
    if named is None or not path.is_file():
        return False
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().startswith(named[1])


def _download(address: str, local: Path) -> None:
    """Not ``torch.hub``'s: that keeps what came before a connection broke, and waits for ever."""
    with drafted(local) as draft, _said_of(address):
        local.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(Request(_plain(address), headers={'User-Agent': 'repnext_mm'}), timeout=TIMEOUT_S) as answer:
            with draft.open('wb') as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            size, promised = draft.stat().st_size, answer.headers.get('Content-Length')
        if promised is not None and size != int(promised):
            raise OSError(f'{size} of {promised} bytes came')
        try:
            format_of(draft)
        except (NotReadError, EOFError) as error:  # a login page, say, which would stay in the cache for good
            raise OSError(f'what came from there is not a weight file: {error}') from error


@contextmanager
def _said_of(address: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(
            f'{address} was not downloaded ({error}): check the address, or download the file and give its path'
        ) from error
