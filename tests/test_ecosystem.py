"""Where the shared tests come from: what is compared, what is said without them, and how they are counted."""

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import ecosystem

ROOT = Path(__file__).parent.parent


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A distribution of one test and one file that is none, and the source it belongs to."""
    monkeypatch.setenv("LLADAV_TEST_SOURCES", str(tmp_path))
    path = tmp_path / "peft-9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("peft-9/tests/testing_common.py", "peft-9/src/peft.py"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"A = 1"))
    return path, ecosystem.Source("peft", "9", hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_versions_are_those_that_are_tested_together():
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    found = ecosystem.sources()
    assert {project: source.release for project, source in found.items()} == {
        project: pins[project] for project in ("transformers", "peft")
    }


def test_the_tests_of_an_archive_are_unpacked_and_nothing_else(archive, tmp_path):
    path, source = archive
    ecosystem.unpack(path, source)
    files = {str(file.relative_to(source.folder)) for file in source.folder.rglob("*") if file.is_file()}
    assert files == {"tests/testing_common.py", "tests/__init__.py"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"peft-9", "peft-9.tar.gz"}


def test_an_archive_of_another_hash_is_refused(archive):
    path, source = archive
    with pytest.raises(
        ValueError, match=rf"peft-9.tar.gz has the hash {source.digest}, but .* says 00; delete it and"
    ):
        ecosystem.unpack(path, source._replace(digest="00"))
    assert not source.folder.exists()


def test_without_the_sources_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LLADAV_TEST_SOURCES", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"are not in .*; run `python tests/ecosystem.py`, which fetches"):
        ecosystem.load("peft", "testing_common")


def test_another_version_than_the_installed_one_is_not_run(monkeypatch):
    monkeypatch.setattr(ecosystem, "version", lambda project: "0.0")
    with pytest.raises(pytest.skip.Exception, match=r"^peft 0.0 is installed, but ecosystem-sources.txt names"):
        ecosystem.load("peft", "testing_common")


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LLADAV_TEST_SOURCES", str(tmp_path))
    for source in ecosystem.sources().values():
        source.folder.mkdir()
    monkeypatch.setattr(ecosystem.subprocess, "run", lambda *args, **kwargs: pytest.fail("pip was started"))
    ecosystem.fetch()


def test_a_skip_of_a_test_that_does_not_exist_is_an_error():
    owner = type("Some", (), {"test_a": lambda self: 1 / 0})
    skipped = ecosystem.skipping({"test_a": "has no meaning"})(owner)
    with pytest.raises(pytest.skip.Exception, match="has no meaning"):
        skipped().test_a()
    with pytest.raises(AttributeError, match=r"Some has no test 'test_b'; take it out of the table"):
        ecosystem.skipping({"test_b": "gone"})(owner)


def test_counts_are_of_the_shared_tests_by_class():
    def report(name, reason=None):
        return SimpleNamespace(nodeid=name, longrepr=("file", 1, f"Skipped: {reason}"))

    found = ecosystem.counts(
        {
            "passed": [
                report("tests/test_ecosystem_models.py::TestModels::test_a"),
                report("tests/test_ecosystem_models.py::TestModels::test_b"),
                report("tests/test_layout.py::test_c"),
            ],
            "skipped": [report("tests/test_ecosystem_models.py::TestModels::test_d", "needs a card")],
        }
    )
    expected = {"mixin": "ModelTesterMixin", "passed": 2, "failed": 0, "skipped": 1}
    assert found["classes"] == {"TestModels": {**expected, "reasons": {"test_d": "needs a card"}}}


def test_nothing_is_recorded_where_nothing_ran(tmp_path):
    with pytest.raises(pytest.UsageError, match="none of the shared tests ran"):
        ecosystem.write_counts(tmp_path / "ecosystem.json", {})
    assert not list(tmp_path.iterdir())


def test_the_record_is_of_these_versions_and_nothing_failed():
    record = json.loads((ROOT / "model_cards" / "results" / "ecosystem.json").read_text())
    assert record["versions"] == {name: source.release for name, source in ecosystem.sources().items()}
    assert {name: entry["mixin"] for name, entry in record["classes"].items()} == ecosystem.MIXINS
    for name, entry in record["classes"].items():
        assert entry["failed"] == 0, name
        assert len(entry["reasons"]) == entry["skipped"], name
