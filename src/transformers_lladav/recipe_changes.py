"""Recipes from files and command lines: what does not exist or has another type is an error, never ignored."""

import dataclasses
import json
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .recipes import Recipe
from .strict_json import loads


def read_recipe(text: str, start: Recipe) -> Recipe:
    """Read a recipe, or some fields of one, from JSON.

    Args:
        text: an object with fields of a recipe, as `to_json` writes it.
        start: gives the fields that are not there.

    Returns:
        The recipe.

    Raises:
        ValueError: for text that is no JSON object, fields that do not exist or stand twice, values of another type,
            or ones that cannot work.
    """
    try:
        fields = loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a recipe is a JSON object, but this is no JSON: {error}") from error
    except ValueError as error:  # such as a field that stands twice
        raise ValueError(f"a recipe cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a recipe is a JSON object, not {type(fields).__name__}")
    return _changed(start, fields, "")


def change_recipe(recipe: Recipe, changes: list[str]) -> Recipe:
    """Apply `field=value` texts from a command line.

    Args:
        recipe: what to start from.
        changes: such as "epochs=2" or "lora.rank=64"; the value is read as JSON, or as text where that fails. Of
            a field that is set twice, the last one counts.

    Returns:
        The changed recipe.

    Raises:
        ValueError: for an unknown field, a text without "=", a value of another type or one that cannot work.
    """
    fields: dict[str, Any] = {}
    for change in changes:
        path, separator, text = change.partition("=")
        names = path.strip().split(".")
        if not separator or not all(names):
            raise ValueError(f"{change!r} changes nothing: give FIELD=VALUE, such as learning_rate=2e-5")
        inner = fields
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{change!r}: {name} was set before, as a whole; set it once")
        inner[names[-1]] = _value(text)
    return _changed(recipe, fields, "")


def _value(text: str) -> Any:
    """What a command line gives for a field: JSON, or a text."""
    try:
        return loads(text)
    except json.JSONDecodeError:
        return text


def _changed(recipe: Any, fields: dict[str, Any], prefix: str) -> Any:
    """A recipe, or a part of one, with some fields changed, each checked against its type."""
    hints = get_type_hints(type(recipe))
    values = {}
    for name, value in fields.items():
        if name not in hints:
            raise ValueError(f"a recipe has no field {prefix}{name}; there are {', '.join(prefix + n for n in hints)}")
        values[name] = _as_type(value, hints[name], getattr(recipe, name), prefix + name)
    return dataclasses.replace(recipe, **values)


def _as_type(value: Any, hint: Any, current: Any, name: str) -> Any:
    """A JSON value as the type of a field.

    Raises:
        ValueError: if it is none.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        origin = get_origin(option)
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return _changed(current if current is not None else option(), value, f"{name}.")  # type: ignore[operator]
        if origin is Literal and value in get_args(option):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(_as_type(item, get_args(option)[0], None, name) for item in value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, str) and type(value) is option:
            return value
    raise ValueError(f"{name}={json.dumps(value)}: it takes {_type_text(hint)}")


def _type_text(hint: Any) -> str:
    """What a field takes, for people."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(option) for option in get_args(hint))
    if origin is Literal:
        return ", ".join(json.dumps(value) for value in get_args(hint))
    if origin is tuple:
        return f"a list of {_type_text(get_args(hint)[0])}"
    names = {type(None): "null", int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "an object")
