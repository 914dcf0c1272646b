"""What a result file says of how it was measured: the command, the code, the machine and the versions."""

import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "transformers_lladav")


def circumstances(
    script: str, arguments: Sequence[str], packages: Sequence[str] = PACKAGES, **machine: Any
) -> dict[str, Any]:
    """Begin a result document.

    Args:
        script: its name in this folder.
        arguments: that it was given.
        packages: whose versions matter.
        **machine: more about the machine.

    Returns:
        The command that repeats it, the commit of this repository (empty where there is none), machine and versions.
    """
    # Of this folder's repository, whatever the working folder is.
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "command": shlex.join(["python", f"model_cards/{script}", *arguments]),
        "commit": commit.stdout.strip(),
        "machine": {"processor": platform.machine(), "system": platform.system(), "device": "cpu", **machine},
        "versions": {name: version(name) for name in packages},
    }
