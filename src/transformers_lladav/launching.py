"""Settings for `accelerate launch`, by name: how many devices take part, and what of a model lies on each."""

from pathlib import Path

FOLDER = Path(__file__).parent / "accelerate_configs"


def configs() -> dict[str, Path]:
    """The settings that come along, for `accelerate launch --config_file PATH`.

    Returns:
        Their files by name, in the order of the names.
    """
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """Settings by their name.

    Args:
        name: such as "eight_gpus_fsdp2".

    Returns:
        The file.

    Raises:
        ValueError: listing the names, if there are none of this name.
    """
    found = configs()
    if name not in found:
        raise ValueError(f"there are no launch settings {name!r}; choose one of {', '.join(found)}")
    return found[name]


def describe_config(path: Path) -> str:
    """What settings are for: the comment that their file begins with.

    Args:
        path: of the file.

    Returns:
        Its lines, without the marks.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)
