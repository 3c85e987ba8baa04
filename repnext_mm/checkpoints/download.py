"""Weight files from an address: kept in torch's hub cache, whole or not at all, and nowhere else."""

from __future__ import annotations

import re
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

import torch

from .errors import WeightsError

TIMEOUT_S = 60  # without a byte


def downloaded(address: str) -> Path:
    """The local copy of the file at an ``http(s)://`` address; fetched once.

    Raises:
        WeightsError: the address names no file, or it did not come as a whole.
    """
    local = Path(torch.hub.get_dir()) / 'checkpoints' / cached_name(address)
    if not local.is_file():
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(address, local)
        except (OSError, HTTPException, ValueError) as error:
            raise WeightsError(
                f'{address} was not downloaded ({error}): check the address, or fetch the file and give its path'
            ) from error
    return local


def cached_name(address: str) -> str:
    """What the file at an address is called in the cache: the last part of its path, without query.

    Whatever the address holds, the name is one plain name: never a way out of the folder.

    Raises:
        WeightsError: the address names no file.
    """
    last = unquote(urlsplit(address).path).replace('\\', '/').rpartition('/')[2]
    name = re.sub(r'[^\w.+=@-]', '_', last)[-128:].lstrip('.')
    if not name:
        raise WeightsError(f'{address} names no file: give the whole address of a weight file')
    return name


def _download(address: str, local: Path) -> None:
    """Not ``torch.hub``'s: that keeps what came before a connection broke, and waits for ever."""
    draft = local.with_name(f'.{local.name}-{uuid4().hex}')
    try:
        with urlopen(Request(address, headers={'User-Agent': 'repnext_mm'}), timeout=TIMEOUT_S) as answer:
            with draft.open('wb') as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            size, promised = draft.stat().st_size, answer.headers.get('Content-Length')
        if promised is not None and size != int(promised):
            raise OSError(f'{size} of {promised} bytes came')
        draft.replace(local)
    finally:
        draft.unlink(missing_ok=True)
