"""JSON of strangers: what Python's reader passes over or dies of is an error in words."""

import json
from collections import Counter
from typing import Any


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text, for `object_pairs_hook`; of a key that stands twice one value would be lost unseen.

    Args:
        pairs: keys and values as they stand.

    Returns:
        The object.

    Raises:
        ValueError: naming the key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        # Counted: looking each key up in a list of those before it takes hours for a hostile text of some megabytes.
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in an object; remove one of them")
    return found


def loads(text: str) -> Any:
    """Read a JSON text.

    Args:
        text: the whole of it.

    Returns:
        Its value.

    Raises:
        ValueError: if it is no JSON, an object has a key twice, a number has thousands of digits, or it is nested
            too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be read") from error
