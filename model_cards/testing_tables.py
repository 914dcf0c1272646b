"""Tables of what the library was put through: shared tests, foreign input, faults, long use; from results/*.json."""

from collections import Counter
from typing import Any

FAULTS = {
    "kill": "killed (SIGKILL)", "SIGKILL": "killed (SIGKILL)", "term": "ended (SIGTERM)", "SIGTERM": "ended (SIGTERM)",
    "full": "the disk is full", "gone": "a file is gone", "torn": "a file is torn",
}  # fmt: skip


def overview_table(document: dict[str, Any]) -> str:
    """All that is told below, in a line each.

    Args:
        document: written by `model_cards/measure_testing.py`.

    Returns:
        A Markdown table.
    """
    faults, house, endurance = document["faults"], document["house"], document["endurance"]
    growth = f"memory {endurance['growth_of_bytes']:+.2%} after the first {endurance['first']}"
    rows = [
        ("tests, newest versions", _run(document["newest"])),
        ("tests, oldest versions allowed", _run(document["lowest"])),
        ("shared tests of transformers and PEFT", _counts(document["ecosystem"])),
        ("hostile cases", "{cases:,}, {found} findings mended".format(**document["fuzzing"])),
        ("tests of hostile input", f"{document['hostile_input']}"),
        ("faults at writing steps", f"{faults['held']} of {faults['tried']} held"),
        ("generations in one process", f"{endurance['generations']:,}, {growth}"),
        ("tests of half precision and extreme numbers", f"{document['numerics']}"),
        ("public names with a docstring", f"{house['documented']:,} of {house['public_names']:,}"),
        ("functions with all types", f"{house['annotated']:,} of {house['functions']:,}, mypy strict"),
        (f"longest of {house['modules']} modules", f"{house['longest_module']} lines"),
        ("longest function, but for `forward`", f"{house['longest_function']} lines"),
        ("pinned packages", f"{document['pinned']}"),
    ]
    note = f"The tests ran on {document['machine']['cores']} CPU cores. `python model_cards/measure_testing.py`."
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in rows), f"\n{note}"])


def _run(run: dict[str, Any]) -> str:
    """A run of the tests in a line."""
    versions = "transformers {transformers}, torch {torch}".format(**run["versions"])
    return f"{_counts(run)} in {run['seconds'] / 60:.1f} min ({versions})"


def _counts(run: dict[str, Any]) -> str:
    return f"{run['passed']:,} passed, {run['failed']} failed, {run['skipped']} skipped"


def ecosystem_table(document: dict[str, Any]) -> str:
    """How the shared tests of transformers and PEFT went.

    Args:
        document: written by the tests with `LLADAV_ECOSYSTEM_REPORT`.

    Returns:
        A Markdown table.
    """
    rows = ["| shared tests | passed | failed | skipped |", "|---|---:|---:|---:|"]
    for name, found in document["classes"].items():
        figures = f"{found['passed']} | {found['failed']} | {found['skipped']}"
        rows.append(f"| `{found['mixin']}` ({name.removeprefix('Test').lower()}) | {figures} |")
    total = {key: sum(found[key] for found in document["classes"].values()) for key in ("passed", "failed", "skipped")}
    rows.append(f"| **all** | {total['passed']} | {total['failed']} | {total['skipped']} |")
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    rows.append(f"\nThe tests that come with {versions}. `LLADAV_ECOSYSTEM_REPORT=FILE make test`.")
    return "\n".join(rows)


def fuzzing_table(document: dict[str, Any]) -> str:
    """How many cases each part was fed.

    Args:
        document: written by `make fuzz`.

    Returns:
        A Markdown table.
    """
    found = Counter(finding["target"] for finding in document["found"])
    cases: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for runs in document["runs"].values():
        for target, run in runs.items():
            cases[target] += run["cases"]
            taken[target] += run["counts"].get("taken", 0)
    rows = ["| fed with what nobody should send | cases | taken as good | found and mended |", "|---|---:|---:|---:|"]
    rows += [f"| {target} | {cases[target]:,} | {taken[target]:,} | {found[target]} |" for target in cases]
    rows.append(f"| **all** | {sum(cases.values()):,} | {sum(taken.values()):,} | {sum(found.values())} |")
    rows.append("\nEverything else was refused with its reason. `make fuzz`.")
    return "\n".join(rows)


def findings_table(document: dict[str, Any]) -> str:
    """What feeding found.

    Args:
        document: written by `make fuzz`.

    Returns:
        A Markdown table.
    """
    rows = ["| fed | what happened | now |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {one['target']} | {one['was']} | {one['now']} |" for one in document["found"])])


def faults_table(document: dict[str, Any]) -> str:
    """Which faults were tried on which command, and how often the next run was right.

    Args:
        document: written by `tests/faults/run.py`.

    Returns:
        A Markdown table.
    """
    tried: Counter[tuple[str, str]] = Counter()
    held: Counter[tuple[str, str]] = Counter()
    for row in document["tried"]:
        place = FAULTS.get(row["fault"], row["fault"]), row["command"]
        tried[place] += row["tried"]
        held[place] += row["held"]
    commands = list(dict.fromkeys(row["command"] for row in document["tried"]))
    rows = [f"| fault | {' | '.join(commands)} |", "|---|" + "---:|" * len(commands)]
    for fault in dict.fromkeys(fault for fault, _ in tried):
        cells = [
            f"{held[fault, command]} of {tried[fault, command]}" if tried[fault, command] else ""
            for command in commands
        ]
        rows.append(f"| {fault} | {' | '.join(cells)} |")
    rows.append(
        f"\nHow often the next run went on or began clean, of how often it was tried. `{document['command']}`."
    )
    return "\n".join(rows)


def endurance_table(document: dict[str, Any]) -> str:
    """What many generations left behind.

    Args:
        document: written by `tests/endurance.py`.

    Returns:
        A Markdown table.
    """
    points = document["points"]
    rows = ["| after generations | memory | tensors | threads |", "|---:|---:|---:|---:|"]
    for point in points:
        memory = f"{point['bytes'] / 1e6:.1f} MB"
        rows.append(f"| {point['generations']:,} | {memory} | {point['tensors']} | {point['threads']} |")
    rows.append(
        f"\nMemory grew by {document['growth_of_bytes']:.2%} after the first {points[0]['generations']:,}; "
        f"generations were {', '.join(document['kinds'])}. `{document['command']}`."
    )
    return "\n".join(rows)
