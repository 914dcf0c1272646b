"""Where a checkpoint comes from: a folder, or a repository on the Hub of which only safe files are fetched."""

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    SafetensorsParsingError,
)
from huggingface_hub.utils import validate_repo_id

from .weights import DTYPES, StoredTensor, pickle_problems

CACHED = re.compile(r"models--(.+)")
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
WEIGHTS = ("*.safetensors",)


def is_hub_id(source: object) -> bool:
    """Whether a name means a repository on the Hub: `owner/name`, and no such folder is here.

    Args:
        source: what a user typed, or some file says.
    """
    if not isinstance(source, str) or source.count("/") != 1 or Path(source).exists():
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def check_source(source: str | None) -> None:
    """Refuse what can be no checkpoint, before anything slow happens.

    Args:
        source: a folder or a Hub id; None is fine, and means that nobody named one.

    Raises:
        FileNotFoundError: if it is neither.
    """
    if source is not None and not Path(source).is_dir() and not is_hub_id(source):
        raise FileNotFoundError(f"{source} is neither a folder nor a Hub id such as GSAI-ML/LLaDA-V")


def origin(source: str, folder: Path) -> str | None:
    """The repository and commit that a checkpoint comes from, if that can be told.

    Args:
        source: a folder or a Hub id.
        folder: what `fetch` made of it; in the Hub's cache it has the commit's name.

    Returns:
        `owner/name@commit`, or None for a folder outside the cache.
    """
    *_, repository, snapshots, commit = ("", "", *folder.absolute().parts)
    if snapshots != "snapshots" or not (cached := CACHED.fullmatch(repository)):
        return source if is_hub_id(source) else None
    return f"{cached[1].replace('--', '/')}@{commit}"


def fetch(source: str, revision: str | None = None, weights: bool = True) -> Path:
    """A local folder with the files of a checkpoint.

    Args:
        source: a folder, or a Hub id, whose safetensors, JSON and tokenizer files are downloaded to the Hub's cache
            (an interrupted download goes on where it stopped). Nothing that could run code is fetched.
        revision: branch, tag or commit of a Hub id.
        weights: whether the safetensors files are wanted.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if the repository holds pickles and no safetensors.
        OSError: if it cannot be downloaded or there is no room.
    """
    check_source(source)
    if Path(source).is_dir():
        return Path(source)
    if weights:
        _check_download(source, revision)
    patterns = [*SMALL_FILES, *(WEIGHTS if weights else ())]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise OSError(f"{source} cannot be downloaded: {error}") from error


def _check_download(source: str, revision: str | None) -> None:
    """Refuse a repository of pickles, and one that is larger than the room in the cache."""
    try:
        files = HfApi().model_info(source, revision=revision, files_metadata=True).siblings or []
    except (HTTPError, OfflineModeIsEnabled, OSError):
        return  # what is in the cache already may do; the download says what is wrong otherwise
    names = [file.rfilename for file in files]
    if not any(name.endswith(".safetensors") for name in names) and (pickles := pickle_problems(names)):
        raise ValueError(f"{source} has no safetensors files:\n" + "\n".join(f"- {pickle}" for pickle in pickles))
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    stored = cache / f"models--{source.replace('/', '--')}" / "blobs"
    have = sum(blob.stat().st_size for blob in stored.glob("*")) if stored.is_dir() else 0
    needed = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors")) - have
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{source} needs {needed / 1e9:.2f} GB in the Hub's cache {cache}, which has {free / 1e9:.2f} GB free; "
            "make room or set HF_HOME to another disk"
        )


def remote_headers(source: str, revision: str | None, problems: list[str]) -> list[StoredTensor]:
    """The tensors of a repository on the Hub, of which only the headers are fetched.

    Args:
        source: a Hub id.
        revision: branch, tag or commit.
        problems: gets a sentence if they cannot be read, and for every tensor of an unknown type.

    Returns:
        Every tensor, file by file; the files are not here.
    """
    try:
        metadata: Any = HfApi().get_safetensors_metadata(source, revision=revision)
    except (HTTPError, OfflineModeIsEnabled, SafetensorsParsingError, OSError) as error:
        problems.append(f"the tensors of {source} cannot be listed: {error}")
        return []
    found = []
    for name, file in sorted(metadata.files_metadata.items()):
        for key, entry in file.tensors.items():
            if entry.dtype not in DTYPES:
                problems.append(f"{key} in {name} is {entry.dtype}; supported: {', '.join(DTYPES)}")
                continue
            found.append(StoredTensor(Path(name), key, tuple(entry.shape), DTYPES[entry.dtype]))
    return found
