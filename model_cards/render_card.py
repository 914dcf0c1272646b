"""Render the model card of a folder: a converted checkpoint, a fine-tuned adapter, or the bundled small model.

python model_cards/render_card.py LLaDA-V-hf --repo-id owner/LLaDA-V-hf --output LLaDA-V-hf/README.md
"""

import argparse
import sys
from pathlib import Path

from transformers_lladav import BUNDLED_CHECKPOINT
from transformers_lladav.cards import KINDS, render_card
from transformers_lladav.files import write_text


def main(arguments: list[str] | None = None) -> int:
    """Render a card.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        0, or 1 with the reason on standard error, also if `--check` found a stale card.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=BUNDLED_CHECKPOINT, help="default: the bundled model")
    parser.add_argument("--kind", choices=KINDS, help="detected from the folder by default")
    parser.add_argument("--repo-id", metavar="OWNER/NAME", help="repository the card will stand in")
    parser.add_argument(
        "--base-model", metavar="OWNER/NAME", help="what an adapter or a fine-tuned model started from"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, help="file to write (default: README.md in the folder)")
    where.add_argument("--stdout", action="store_true", help="print the card instead of writing a file")
    where.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md is stale")
    options = parser.parse_args(arguments)
    target = options.output or options.folder / "README.md"
    try:
        text = render_card(options.folder, options.kind, options.repo_id, options.base_model).content
        if options.stdout:
            sys.stdout.write(text)
        elif options.check:
            return 0 if target.is_file() and target.read_text(encoding="utf-8") == text else 1
        else:
            write_text(target, text)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
