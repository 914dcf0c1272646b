"""The measurement behind the page on testing: runs are counted as their reports say, and the code as it is."""

import json

import measure_testing
import pytest

REPORT = """<testsuites><testsuite tests="50" time="90.5">
<testcase classname="tests.test_a" name="x"/>
<testcase classname="tests.test_a.TestMore" name="y"/>
<testcase classname="tests.test_a" name="z"><skipped/></testcase>
<testcase classname="tests.test_b" name="x"><failure/></testcase>
<testcase classname="tests.test_c" name="x"><error/></testcase>
</testsuite></testsuites>"""
PINS = "# why\n" + "".join(f"{name}==1.{place}\n" for place, name in enumerate(measure_testing.LIBRARIES))


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    return path


def test_a_run_is_what_its_report_says(report, tmp_path):
    (tmp_path / "pins.txt").write_text(PINS)
    assert measure_testing.run_figures(report, tmp_path / "pins.txt") == {
        "passed": 2,
        "failed": 2,
        "skipped": 1,
        "seconds": 90.5,
        "versions": {name: f"1.{place}" for place, name in enumerate(measure_testing.LIBRARIES)},
    }


@pytest.mark.parametrize(("names", "count"), [(["test_a"], 2), (["test_b", "test_c"], 2), (["test_d"], 0)])
def test_tests_of_a_file_are_those_that_ran(report, names, count):
    assert measure_testing.tests_of(report, *names) == count


def test_functions_and_names_are_counted(tmp_path):
    layout = measure_testing.load_layout()
    layout.PACKAGE, layout.MODULES = tmp_path, ["one"]
    (tmp_path / "one.py").write_text(
        "def told(a: int) -> int:\n"
        '    """Say.\n\n    More.\n    """\n'
        "    return a\n"
        "def bare(a, *b: int) -> int:\n"
        "    c = a\n"
        "    return c\n"
        "class _Own:\n"
        "    def it(self) -> None: ...\n"
        "    def other(self, x): ...\n"
    )
    assert measure_testing.house_figures(layout) == {
        "modules": 1,
        "longest_module": 12,
        "functions": 4,
        "annotated": 2,
        "longest_function": 3,
        "public_names": 2,
        "documented": 1,
    }


def test_what_is_gathered_are_the_sums_of_the_other_files(tmp_path):
    classes = {name: {"passed": 3, "failed": 0, "skipped": 1} for name in "ab"}
    runs = {"guessing": {"records": {"cases": 5}}, "coverage": {"records": {"cases": 7}, "chats": {"cases": 1}}}
    points = [{"generations": 10}, {"generations": 30}]
    for name, document in {
        "ecosystem": {"classes": classes},
        "fuzzing": {"runs": runs, "found": [{}, {}]},
        "faults": {"tried": [{"tried": 4, "held": 4}, {"tried": 2, "held": 1}]},
        "endurance": {"points": points, "growth_of_bytes": 0.1},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert measure_testing.gathered_figures(tmp_path) == {
        "ecosystem": {"passed": 6, "failed": 0, "skipped": 2},
        "fuzzing": {"cases": 13, "found": 2},
        "faults": {"tried": 6, "held": 5},
        "endurance": {"generations": 30, "first": 10, "growth_of_bytes": 0.1},
    }


def test_the_committed_figures_are_those_of_the_other_files():
    committed = json.loads((measure_testing.RESULTS / "testing.json").read_text(encoding="utf-8"))
    for name, figures in measure_testing.gathered_figures(measure_testing.RESULTS).items():
        assert committed[name] == figures, "run model_cards/measure_testing.py again"
