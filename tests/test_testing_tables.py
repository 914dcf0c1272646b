"""The tables of what the library was put through say what the result files say."""

from testing_tables import (
    ecosystem_table,
    endurance_table,
    faults_table,
    findings_table,
    fuzzing_table,
    overview_table,
)


def test_everything_stands_in_a_line_each():
    run = {"passed": 1234, "failed": 0, "skipped": 5, "seconds": 90, "versions": {"transformers": "5.9", "torch": "2"}}
    document = {
        "newest": run,
        "lowest": run | {"passed": 7, "seconds": 30},
        "ecosystem": {"passed": 8, "failed": 1, "skipped": 2},
        "fuzzing": {"cases": 100_000, "found": 3},
        "hostile_input": 11,
        "faults": {"tried": 6, "held": 5},
        "endurance": {"generations": 1000, "first": 300, "growth_of_bytes": 0.00034},
        "numerics": 12,
        "house": {
            "modules": 4, "longest_module": 45, "functions": 2000, "annotated": 1999, "longest_function": 50,
            "public_names": 20, "documented": 19,
        },
        "pinned": 190,
        "machine": {"cores": 2},
    }  # fmt: skip
    assert overview_table(document).splitlines()[2:] == [
        "| tests, newest versions | 1,234 passed, 0 failed, 5 skipped in 1.5 min (transformers 5.9, torch 2) |",
        "| tests, oldest versions allowed | 7 passed, 0 failed, 5 skipped in 0.5 min (transformers 5.9, torch 2) |",
        "| shared tests of transformers and PEFT | 8 passed, 1 failed, 2 skipped |",
        "| hostile cases | 100,000, 3 findings mended |",
        "| tests of hostile input | 11 |",
        "| faults at writing steps | 5 of 6 held |",
        "| generations in one process | 1,000, memory +0.03% after the first 300 |",
        "| tests of half precision and extreme numbers | 12 |",
        "| public names with a docstring | 19 of 20 |",
        "| functions with all types | 1,999 of 2,000, mypy strict |",
        "| longest of 4 modules | 45 lines |",
        "| longest function, but for `forward` | 50 lines |",
        "| pinned packages | 190 |",
        "",
        "The tests ran on 2 CPU cores. `python model_cards/measure_testing.py`.",
    ]


def test_shared_tests_are_counted():
    classes = {
        "TestModels": {"mixin": "ModelTesterMixin", "passed": 3, "failed": 0, "skipped": 2},
        "TestProcessor": {"mixin": "ProcessorTesterMixin", "passed": 4, "failed": 1, "skipped": 0},
    }
    assert ecosystem_table({"versions": {"transformers": "5.0", "peft": "0.2"}, "classes": classes}).splitlines() == [
        "| shared tests | passed | failed | skipped |",
        "|---|---:|---:|---:|",
        "| `ModelTesterMixin` (models) | 3 | 0 | 2 |",
        "| `ProcessorTesterMixin` (processor) | 4 | 1 | 0 |",
        "| **all** | 7 | 1 | 2 |",
        "",
        "The tests that come with transformers 5.0, peft 0.2. `LLADAV_ECOSYSTEM_REPORT=FILE make test`.",
    ]


def test_cases_and_findings_are_counted_by_target():
    document = {
        "runs": {
            "guessing": {
                "pictures": {"cases": 1000, "counts": {"taken": 10, "refused": 990}},
                "records": {"cases": 5, "counts": {"refused": 5}},
            },
            "coverage": {"records": {"cases": 7, "counts": {"taken": 2}}},
        },
        "found": [{"target": "records", "was": "lost", "now": "kept"}],
    }
    assert fuzzing_table(document).splitlines()[2:5] == [
        "| pictures | 1,000 | 10 | 0 |",
        "| records | 12 | 2 | 1 |",
        "| **all** | 1,012 | 12 | 1 |",
    ]
    assert findings_table(document).splitlines()[2:] == ["| records | lost | kept |"]


def test_faults_are_told_by_command():
    tried = [
        {"command": "batch", "fault": "kill", "tried": 4, "held": 4},
        {"command": "serve", "fault": "SIGKILL", "tried": 1, "held": 1},
        {"command": "batch", "fault": "a disk that can only be read", "tried": 2, "held": 1},
    ]
    assert faults_table({"command": "run", "tried": tried}).splitlines() == [
        "| fault | batch | serve |",
        "|---|---:|---:|",
        "| killed (SIGKILL) | 4 of 4 | 1 of 1 |",
        "| a disk that can only be read | 1 of 2 |  |",
        "",
        "How often the next run went on or began clean, of how often it was tried. `run`.",
    ]


def test_what_long_use_leaves_behind_is_told():
    points = [{"generations": 300, "bytes": 4_000_000, "tensors": 5, "threads": 2}]
    document = {"command": "run", "points": points, "growth_of_bytes": 0.0034, "kinds": ["plain", "sampled"]}
    assert endurance_table(document).splitlines()[2:] == [
        "| 300 | 4.0 MB | 5 | 2 |",
        "",
        "Memory grew by 0.34% after the first 300; generations were plain, sampled. `run`.",
    ]
