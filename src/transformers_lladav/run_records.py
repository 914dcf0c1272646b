"""What a run wrote down about itself, beside what is asked for now: it goes on only where the two agree."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_record(path: Path) -> dict[str, Any]:
    """Read what a run wrote down about itself.

    Args:
        path: the file.

    Returns:
        The record.

    Raises:
        OSError: if it is not there.
        ValueError: if it is none; such files are written whole or not at all, so that somebody else changed it.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); choose another output, or remove {path.parent}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no record of a run; choose another output, or remove {path.parent}")
    return record


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What two records disagree in, in words.

    Args:
        earlier: as it was read; JSON.
        now: of the same kind.
        prefix: of the names.

    Yields:
        For each difference the name, the old value and the new one.
    """
    for name in [*earlier, *(name for name in now if name not in earlier)]:
        old, new = earlier.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {json.dumps(old)} and is {json.dumps(new)}"
