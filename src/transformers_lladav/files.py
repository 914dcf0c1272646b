"""Files that are either complete or not there: written beside their place and moved in."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".in_use"


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, never half of it.

    Args:
        path: where; missing parent folders are made.
        text: the whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def check_free(path: Path, replace: bool = False) -> None:
    """Refuse a place for a new folder where something stands.

    Args:
        path: where the folder would stand.
        replace: whether an existing folder there may be replaced.

    Raises:
        FileExistsError: if something with content stands there and may not be replaced.
    """
    if path.exists() and not replace and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; choose another output folder or remove it first")


def check_space(path: Path, needed: int) -> None:
    """Refuse a disk that is too small before anything is written to it.

    Args:
        path: where a folder would stand; its parents need not exist.
        needed: bytes.

    Raises:
        OSError: with both figures.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{path} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free; nothing was "
            "written. Make room or choose an output folder on another disk"
        )


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that appears only when it is complete.

    What a killed run left behind is removed by the next one for the same place.

    Args:
        path: where it will stand.
        replace: whether an existing folder there may be replaced.

    Yields:
        A temporary folder beside it to write into.

    Raises:
        FileExistsError: if something with content stands there and may not be replaced.
    """
    check_free(path, replace)
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    lock = FileLock(scratch / LOCK)
    try:
        lock.acquire()
        yield scratch
        lock.release()
        (scratch / LOCK).unlink(missing_ok=True)
        scratch.chmod(0o755)
        check_free(path, replace)
        old = scratch.with_suffix(".old")
        if path.exists():
            os.replace(path, old)
        os.replace(scratch, path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        lock.release()
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # somebody else uses it by now
            for folder in missing:
                folder.rmdir()
        raise


def _remove_leftovers(path: Path) -> None:
    """Remove temporary folders for this place whose process is gone: nobody holds their lock."""
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*.part/{LOCK}"):
        folder = lock.parent
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue
