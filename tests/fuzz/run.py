"""Run fuzz targets with large budgets, and write what was run and found.

    python tests/fuzz/run.py                                   # all targets, as many cases as `BUDGETS` says
    python tests/fuzz/run.py pictures --cases 50000 --seed 7   # one, with a budget
    python tests/fuzz/run.py records --coverage --cases 50000  # guided by coverage, needs `pip install atheris`
    python tests/fuzz/run.py --report model_cards/results/fuzzing.json

Each target runs in a process of its own with a limit on its memory, so that a crash of a decoder or of a library in C
is a finding, not the end.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
BATCH = 2000  # hypothesis keeps what it tried, so that a long run is many short ones
MEMORY = 12 * 2**30  # bytes of addresses; torch and its libraries take half of them without touching any
# Cases for each target of a run of all: as many as its price allows.
BUDGETS = {
    "pictures": 26_000, "chats": 14_000, "requests": 12_000, "configs": 10_000, "tensors": 5_000, "records": 20_000,
    "settings": 20_000, "adapters": 1_500,
}  # fmt: skip


def describe(error: BaseException) -> str:
    """A finding with the case that shows it."""
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(map(describe, error.exceptions))
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)[-4:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return "\n".join((f"{type(error).__name__}: {error} [{where}]", *getattr(error, "__notes__", [])))


def guess(name: str, cases: int, seed: int, counts: Counter[str], place: Path) -> str | None:
    """Run a target on cases drawn by hypothesis; the first finding, in its smallest form, or None."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from fuzzing import checker, load

    check, done = checker(name, place, counts), 0
    while done < cases:
        budget = settings(
            max_examples=min(BATCH, cases - done), deadline=None, database=None, derandomize=False,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck), print_blob=True,
        )  # fmt: skip
        before = counts.total()
        try:
            seeded(seed + done)(budget(given(load(name).STRATEGY)(check)))()
        except BaseException as error:
            return describe(error)
        if counts.total() == before:
            break  # there is nothing left to try
        done += counts.total() - before
    return None


def follow_coverage(name: str, cases: int, seed: int, counts: Counter[str], place: Path) -> None:
    """Run a target on bytes that atheris makes up, guided by which lines they reach; it ends the process."""
    try:
        import atheris
    except ImportError as error:
        raise SystemExit("--coverage needs atheris: pip install atheris") from error

    with atheris.instrument_imports(include=["transformers_lladav", "PIL"]):
        from fuzzing import checker, load

        target = load(name)
    from hypothesis import given

    feed = given(target.STRATEGY)(checker(name, place, counts)).hypothesis.fuzz_one_input

    def watched(data: bytes) -> None:
        # libFuzzer ends the process without a word to Python, so that the counts are told as they grow.
        try:
            feed(data)
        except BaseException as error:
            print(json.dumps({"target": name, "counts": counts, "finding": describe(error)}), flush=True)
            raise
        if counts.total() % 50 == 0:
            print(json.dumps({"target": name, "counts": counts, "finding": None}), flush=True)

    options = [f"-runs={cases}", f"-seed={seed}", "-max_len=8192", f"-artifact_prefix={place}/"]
    atheris.Setup([sys.argv[0], *options], watched)
    atheris.Fuzz()


def run_here(arguments: argparse.Namespace) -> int:
    """Run one target in this process."""
    (name,) = arguments.targets
    sys.path.insert(0, str(TESTS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as place:
        cases = arguments.cases or BUDGETS[name]
        if arguments.coverage:
            follow_coverage(name, cases, arguments.seed, counts, Path(place))
        finding = guess(name, cases, arguments.seed, counts, Path(place))
    print(json.dumps({"target": name, "counts": counts, "finding": finding}))
    return finding is not None


def run_apart(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one target in a process of its own, and tell how it ended."""
    command = [sys.executable, __file__, name, "--here", f"--seed={arguments.seed}"]
    command += [f"--cases={arguments.cases}"] if arguments.cases else []
    command += ["--coverage"] if arguments.coverage else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | os.environ
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    lines = [line for line in process.stdout.splitlines() if line.startswith('{"target"')]
    result = json.loads(lines[-1]) if lines else {"target": name, "counts": {}, "finding": None}
    if process.returncode and not result["finding"]:
        result["finding"] = f"the process ended with {process.returncode}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**result, "cases": sum(result["counts"].values()), "cpu_seconds": round(seconds)}


def main() -> int:
    """The command line; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*BUDGETS, []], metavar="TARGET", help=", ".join(BUDGETS))
    total = f"{sum(BUDGETS.values()):,}"
    parser.add_argument("--cases", type=int, help=f"of each target; by default what fits its price, {total} in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", action="store_true", help="let atheris find cases")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the counts as JSON")
    parser.add_argument("--here", action="store_true", help="run one target in this process, for a debugger")
    arguments = parser.parse_args()
    if arguments.here:
        return run_here(arguments)
    results = []
    for name in arguments.targets or BUDGETS:
        results.append(run_apart(name, arguments))
        print(json.dumps(results[-1]), flush=True)
    if arguments.report:
        write_report(arguments, results)
    return any(result["finding"] for result in results)


def write_report(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Write the counts beside those of earlier runs of other targets; what was found and put right stays."""
    earlier = json.loads(arguments.report.read_text()) if arguments.report.exists() else {}
    runs = {**earlier.get("runs", {})}
    kind = "coverage" if arguments.coverage else "guessing"
    targets = runs.get(kind, {}) | {result["target"]: {"seed": arguments.seed, **result} for result in results}
    runs[kind] = {name: targets[name] for name in BUDGETS if name in targets}
    packages = ("hypothesis", "pillow", "safetensors", "transformers", "torch")
    report = {
        "versions": {name: version(name) for name in packages},
        "cases": sum(target["cases"] for run in runs.values() for target in run.values()),
        "runs": runs,
        "found": earlier.get("found", []),
    }
    arguments.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
