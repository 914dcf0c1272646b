"""What a run wrote down about itself, beside what is asked for now: it goes on only where the two agree."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


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
