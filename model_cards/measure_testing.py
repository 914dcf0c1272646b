"""Count what the library was put through: `python model_cards/measure_testing.py --newest A.xml --lowest B.xml`.

A.xml and B.xml are what `make test` and `make test-lowest` write with `PYTEST_ARGS="... --junitxml=FILE"`; the rest is
taken from the code and from the other result files.
"""

import argparse
import ast
import importlib.util
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from circumstances import ROOT, circumstances

RESULTS = ROOT / "model_cards" / "results"
LIBRARIES = ("torch", "transformers", "tokenizers", "huggingface_hub", "peft")


def run_figures(report: Path, pins: Path) -> dict[str, Any]:
    """What a run of the tests came to.

    Args:
        report: in JUnit's format.
        pins: the constraints it ran with.

    Returns:
        How many tests passed, failed and were skipped, the seconds of the whole run, and versions of libraries.
    """
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    # Not its own counts, in which every part of a test that has parts is a test.
    ends = [{end.tag for end in case} for case in suite.iter("testcase")]
    failed = sum(bool(end & {"failure", "error"}) for end in ends)
    skipped = sum("skipped" in end and not end & {"failure", "error"} for end in ends)
    versions = dict(re.findall(r"^(\S+)==(\S+)$", pins.read_text(encoding="utf-8"), flags=re.MULTILINE))
    return {
        "passed": len(ends) - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "seconds": float(suite.get("time", 0)),
        "versions": {name: versions[name] for name in LIBRARIES},
    }


def tests_of(report: Path, *names: str) -> int:
    """How many tests of some files ran.

    Args:
        report: in JUnit's format.
        *names: of files, such as `test_numerics`.

    Returns:
        The number; parameters of a test count one by one.
    """
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return sum(case.get("classname", "").split(".")[1] in names and case.find("skipped") is None for case in cases)


def load_layout() -> ModuleType:
    """tests/test_layout.py, which knows all modules and what of them is public."""
    spec = importlib.util.spec_from_file_location("layout_of_the_package", ROOT / "tests" / "test_layout.py")
    assert spec is not None
    assert spec.loader is not None
    layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layout)
    return layout


def house_figures(layout: ModuleType) -> dict[str, int]:
    """How large the package is, and how much of it is documented and annotated.

    Args:
        layout: tests/test_layout.py.

    Returns:
        Counts of modules, lines, functions and names; lines of a function are without its docstring.
    """
    figures = dict.fromkeys(
        ("modules", "longest_module", "functions", "annotated", "longest_function", "public_names", "documented"), 0
    )
    for module in layout.MODULES:
        figures["modules"] += 1
        lines = (layout.PACKAGE / f"{module}.py").read_text(encoding="utf-8").count("\n")
        figures["longest_module"] = max(figures["longest_module"], lines)
        for node in ast.walk(layout.tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                figures["functions"] += 1
                figures["annotated"] += _is_annotated(node)
                size = layout.lines_of(node) if node.name != "forward" else 0
                figures["longest_function"] = max(figures["longest_function"], size)
        for _, documented in layout.public_definitions(module):
            figures["public_names"] += 1
            figures["documented"] += documented
    return figures


def _is_annotated(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [one for one in (arguments.vararg, arguments.kwarg) if one]
    own = [one for place, one in enumerate(named) if place or one.arg not in ("self", "cls")]
    return node.returns is not None and all(one.annotation is not None for one in own)


def gathered_figures(results: Path) -> dict[str, Any]:
    """Sums of what has a result file of its own.

    Args:
        results: their folder.

    Returns:
        Counts of shared tests, hostile cases, faults, and what a thousand generations left behind.
    """
    read = {
        name: json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("ecosystem", "fuzzing", "faults", "endurance")
    }
    shared = read["ecosystem"]["classes"].values()
    runs = [run for runs in read["fuzzing"]["runs"].values() for run in runs.values()]
    return {
        "ecosystem": {key: sum(found[key] for found in shared) for key in ("passed", "failed", "skipped")},
        "fuzzing": {"cases": sum(run["cases"] for run in runs), "found": len(read["fuzzing"]["found"])},
        "faults": {key: sum(row[key] for row in read["faults"]["tried"]) for key in ("tried", "held")},
        "endurance": {
            "generations": read["endurance"]["points"][-1]["generations"],
            "first": read["endurance"]["points"][0]["generations"],
            "growth_of_bytes": read["endurance"]["growth_of_bytes"],
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write results/testing.json.

    Args:
        arguments: command line; that of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--newest", type=Path, required=True, help="JUnit report of `make test`")
    parser.add_argument("--lowest", type=Path, required=True, help="JUnit report of `make test-lowest`")
    parser.add_argument("--output", type=Path, default=RESULTS / "testing.json", help="default: %(default)s")
    options = parser.parse_args(given)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    document = circumstances("measure_testing.py", given, cores=os.cpu_count()) | {
        "newest": run_figures(options.newest, ROOT / "constraints.txt"),
        "lowest": run_figures(options.lowest, ROOT / "constraints-lowest.txt"),
        **gathered_figures(RESULTS),
        "hostile_input": tests_of(options.newest, "test_hostile_input"),
        "numerics": tests_of(options.newest, "test_numerics"),
        "house": house_figures(load_layout()),
        "pinned": len(re.findall(r"^\S+==\S+$", pins, flags=re.MULTILINE)),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
