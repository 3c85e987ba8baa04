"""Where a weight file is on this machine: a path, a published name, an address, or a repository of the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.error import HTTPError

from repnext_mm.checkpoints.download import cache_folder, downloaded, fetch, is_cached, unchanged
from repnext_mm.checkpoints.published import FOLDER, Published, published, similar
from repnext_mm.errors import MissingFileError, NotDownloadedError, WeightsError

HUB = 'hf-hub:'
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # where a repository keeps its weights, by convention
_NOT_FOUND = 404


def local_file(source: str | Path) -> Path:
    """The path of a weight file, downloaded first where it is not here yet.

    What is here is used without any look at the network: a file of this very path; of a published name the file in
    ``pretrain/`` of the working directory, else that in torch's hub cache.

    Args:
        source: the path of a file; a name of ``PUBLISHED``, with or without its suffix and ``pretrain/``; an
            ``http(s)://`` address; or ``hf-hub:OWNER/NAME``, with ``@REVISION`` and ``:FILE`` behind it where they are
            not ``main`` and ``model.safetensors``.

    Raises:
        MissingFileError: there is no such file, or (``NotDownloadedError``) it did not come.
        WeightsError: the file in the cache has changed, or the source names nothing.
    """
    name = str(source)
    path = Path(os.path.expanduser(name.removeprefix('file://')))  # leaves an unknown user's name as it is
    if path.is_file():
        return path
    if entry := published(name):
        return present(entry) or _fetched(entry)
    if name[:8].lower().startswith(('http://', 'https://')):
        return downloaded(name)
    if name.startswith(HUB):
        return _from_hub(name)
    if path.is_dir():
        shards = any(path.glob('*.distcp'))
        hint = 'convert it by torch.distributed.checkpoint.format_utils.dcp_to_torch_save' if shards else 'give a file'
        raise MissingFileError(f'no weight file at {name}, which is a folder: {hint}')
    raise MissingFileError(f'no weight file at {name}: give the path of a file{similar(name)}')


def present(entry: Published) -> Path | None:
    """Where a published file is on this machine; None where it is not.

    Raises:
        WeightsError: it is in the cache, and has changed there.
    """
    given = Path(FOLDER) / entry.file
    if given.is_file():
        return given
    cached = cache_folder() / entry.file
    return unchanged(cached) if cached.is_file() else None


def _fetched(entry: Published) -> Path:
    local = cache_folder() / entry.file
    way_out = f'put the file of {entry.address} in {local.parent}, or in {FOLDER}/ of the working directory'
    fetch(entry.source, local, way_out=way_out)
    return unchanged(local)


def _from_hub(source: str) -> Path:
    named = re.fullmatch(rf'{HUB}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./ +-]+))?', source, re.ASCII)
    if named is None:
        raise WeightsError(f'{source} is not {HUB}OWNER/NAME, with @REVISION and :FILE behind it if need be')
    repository, revision, file = named.groups()
    tried = [file] if file else _HUB_FILES
    for ask in (False, True):  # what is here is used without a look at the network: another state is another @REVISION
        for candidate in tried:
            found = _hub_file(repository, candidate, revision or 'main', source=source, ask=ask)
            if found is not None:
                return found
    raise NotDownloadedError(
        f'{source} was not downloaded (it has no {" or ".join(tried)}): name the file as {HUB}OWNER/NAME:FILE'
    )


def _hub_file(repository: str, file: str, revision: str, *, source: str, ask: bool) -> Path | None:
    """A file of a repository, by huggingface_hub, which knows tokens, where that is installed.

    None where it is not in the cache or, if the hub is to be asked, where the repository has no such file.

    Raises:
        NotDownloadedError: the hub did not give it.
    """
    endpoint = os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')
    address = f'{endpoint}/{repository}/resolve/{revision}/{file}'
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        if not ask and not is_cached(address):
            return None
        try:
            return downloaded(address)
        except NotDownloadedError as error:
            if isinstance(error.__cause__, HTTPError) and error.__cause__.code == _NOT_FOUND:
                return None
            raise
    try:
        if not ask:
            cached = try_to_load_from_cache(repository, file, revision=revision)
            return Path(cached) if isinstance(cached, str) else None
        return Path(hf_hub_download(repository, file, revision=revision, endpoint=endpoint))
    except (OSError, ValueError, EntryNotFoundError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        said = ' '.join(str(error).split())[:300]
        raise NotDownloadedError(
            f'{source} was not downloaded ({said}): check the name and the network, or download {address} and give '
            'its path'
        ) from error
