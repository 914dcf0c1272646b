"""Files that are either complete or not there: written beside their place and moved in."""

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

LOCK = ".in_use"
TOKEN = "[0-9a-f]" * 8
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let a file be written so that a crash leaves the old one or the new one, never half of it.

    Args:
        path: where; missing parent folders are made.
        write: writes the file it is given, which is moved into place.

    Raises:
        OSError: if it cannot be written; the old one stays, and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        with naming_full_disk(path):
            write(scratch)
            os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Say what could not be written where a disk is full; the system's error names no file.

    Args:
        path: what is written.

    Yields:
        Nothing.

    Raises:
        OSError: with the file and what helps.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(
            error.errno, f"{path} could not be written ({error.strerror}); make room and repeat the command"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, never half of it.

    Args:
        path: where; missing parent folders are made.
        text: the whole content.

    Raises:
        OSError: as of `write_file`.
    """
    write_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def save_picture(picture: Image.Image, path: Path, kind: str | None = None) -> None:
    """Save a picture so that a crash leaves the old one or the new one, never half of it.

    Args:
        picture: the picture.
        path: where; missing parent folders are made.
        kind: such as "PNG"; by default what the name ends in says.

    Raises:
        ValueError: if the name ends in nothing that says which kind.
        OSError: as of `write_file`.
    """
    kind = kind or Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} ends in nothing that says which kind of picture it is; call it {path.name}.png")
    write_file(path, lambda scratch: picture.save(scratch, format=kind))


def content_of(folder: Path) -> list[Path]:
    """What stands in a folder, without what a killed run leaves there: its lock and files it had not finished.

    Args:
        folder: an existing folder.

    Returns:
        The entries.
    """
    return [
        path for path in folder.iterdir() if path.name != LOCK and not (path.name[0] == "." and path.suffix == ".part")
    ]


@contextmanager
def held(folder: Path, what: str = "run") -> Iterator[None]:
    """Keep a folder for one run alone.

    Args:
        folder: of the run; made if it is not there.
        what: writes there, for the error.

    Yields:
        Nothing.

    Raises:
        ValueError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another {what} writes to {folder} at this moment; wait for it or stop it") from error
    try:
        yield
    finally:
        # While it is held: removed after that, it could be the lock of the next one.
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()


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

    What a killed run left behind is removed by the next one for the same place. If it was killed in the moment in
    which a folder is replaced, the old one comes back first.

    Args:
        path: where it will stand.
        replace: whether an existing folder there may be replaced.

    Yields:
        A temporary folder beside it to write into.

    Raises:
        FileExistsError: if something with content stands there and may not be replaced.
    """
    _clean_up(path)
    check_free(path, replace)
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock stands beside the folder and outlives it on either side, so that no moment has a folder without one.
    lock_file, scratch, old = _beside(path, secrets.token_hex(4))
    lock = FileLock(lock_file)
    try:
        lock.acquire()
        scratch.mkdir(mode=0o700)
        yield scratch
        scratch.chmod(0o755)
        check_free(path, replace)
        if path.exists():
            os.replace(path, old)
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            if old.exists() and not path.exists():
                os.replace(old, path)
        _discard(lock, scratch)
        with suppress(OSError):  # somebody else uses it by now
            for folder in missing:
                folder.rmdir()
        raise
    _discard(lock, old)


def _beside(path: Path, token: str) -> tuple[Path, Path, Path]:
    """Where the lock, the new and the old folder of a writer stand."""
    lock, scratch, old = (path.with_name(f".{path.name}.{token}.{kind}") for kind in ("lock", "part", "old"))
    return lock, scratch, old


def _discard(lock: FileLock, *folders: Path) -> None:
    """Remove folders, and then the lock they stand under."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _clean_up(path: Path) -> None:
    """Remove temporary folders for this place whose process is gone: nobody holds their lock."""
    for lock_file in path.parent.glob(f".{glob.escape(path.name)}.{TOKEN}.lock"):
        _, scratch, old = _beside(path, lock_file.name.split(".")[-2])
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        try:
            if old.is_dir() and not path.exists():
                os.replace(old, path)
        except OSError:  # what is set aside is all that there is of the folder: it waits for the next run
            lock.release()
            continue
        _discard(lock, scratch, old)
