"""The shared tests of transformers and PEFT, taken from their source distributions.

What every model of theirs has to pass stands in mixins, which are no part of the installed packages. The sources are
fetched once into a cache folder (`python tests/ecosystem.py`, which `make` calls), compared with their hashes, and
imported from there; without them the tests are skipped. Some modules that the mixins import are not in the
distributions: `STAND_INS` holds the little of them that is needed.
"""

import functools
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
SOURCES = HERE / "ecosystem-sources.txt"
FETCH = "python tests/ecosystem.py"
PICTURE = HERE.parent / "model_cards" / "assets" / "scene.png"
FILES = "test_ecosystem_"
# Marks that the mixins put on tests, none of which selects anything here.
MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_2_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "torch_compile_test",
)


class Source(NamedTuple):
    """A release, and the hash of its source distribution."""

    project: str
    release: str
    digest: str

    @property
    def folder(self) -> Path:
        """Where it is unpacked."""
        return cache_folder() / f"{self.project}-{self.release}"


def cache_folder() -> Path:
    """Where sources are kept: `$LLADAV_TEST_SOURCES`, or a folder in the user's cache."""
    if given := os.environ.get("LLADAV_TEST_SOURCES"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformers_lladav" / "test_sources"


def sources() -> dict[str, Source]:
    """The releases of `ecosystem-sources.txt` by name."""
    found = re.findall(r"^(\S+)==(\S+) --hash=sha256:(\w+)$", SOURCES.read_text(), flags=re.MULTILINE)
    return {project: Source(project, release, digest) for project, release, digest in found}


def unpack(archive: Path, source: Source) -> None:
    """Unpack the tests of an archive.

    Args:
        archive: the source distribution.
        source: what it has to be.

    Raises:
        ValueError: if the archive has another hash.
    """
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != source.digest:
        raise ValueError(
            f"{archive.name} has the hash {digest}, but {SOURCES.name} says {source.digest}; delete it and run "
            f"`{FETCH}` again"
        )
    tests = f"{source.project}-{source.release}/tests/"
    with tempfile.TemporaryDirectory(dir=archive.parent) as partial, tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith(tests)]
        tar.extractall(partial, members, filter="data")
        unpacked = Path(partial) / source.folder.name
        (unpacked / "tests" / "__init__.py").touch()  # which a distribution leaves out, and a mixin imports
        if not source.folder.exists():
            unpacked.rename(source.folder)


def fetch(pip_args: Iterable[str] = ()) -> None:
    """Download what is missing with pip, which compares the hashes, and unpack it.

    Args:
        pip_args: more arguments for pip.

    Raises:
        subprocess.CalledProcessError: if pip fails.
        ValueError: if an archive has another hash.
    """
    missing = [source for source in sources().values() if not source.folder.exists()]
    if not missing:
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", *pip_args]
        command += ["--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(SOURCES), "-d", folder]
        subprocess.run(command, check=True)
        for source in missing:
            unpack(Path(folder) / f"{source.project}-{source.release}.tar.gz", source)


# What the mixins import and the distributions do not hold


def _local_file(url: str) -> str:
    """A picture of ours in the place of any on the Hub."""
    return str(PICTURE) if url.endswith((".png", ".jpg")) else url


# Values that are not the defaults, for the fields that every configuration has.
COMMON_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "is_encoder_decoder": True,
    "architectures": ["LladaVModel"],
    "id2label": {0: "first", 1: "second"},
    "label2id": {"first": 0, "second": 1},
    "problem_type": "regression",
}
Nothing = type("Nothing", (), {})
STAND_INS = {
    # Exporting to other formats is a mixin of its own; what it would test here is nothing.
    "transformers": {
        ".exporters.test_export": {"ExportTesterMixin": Nothing},
        ".generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        ".utils.test_configuration_utils": {"config_common_kwargs": COMMON_FIELDS},
        ".distributed_testing_utils": {"run_distributed": None},
        "fetch_hub_objects_for_ci": {"url_to_local_path": _local_file},
    },
    # Asked whether a model is one of its kind.
    "peft": {"diffusers": {"StableDiffusionPipeline": Nothing}},
}


def _stand_ins(project: str, package: str) -> dict[str, ModuleType]:
    modules = {}
    for name, content in STAND_INS[project].items():
        full = package + name if name.startswith(".") else name
        modules[full] = ModuleType(full)
        vars(modules[full]).update(content)
        parent = full.rpartition(".")[0]
        if parent and parent != package:
            modules.setdefault(parent, ModuleType(parent))
    return modules


def load(project: str, module: str) -> ModuleType:
    """Import a module of a project's shared tests; skips the module that asks if they are not there.

    Args:
        project: "transformers" or "peft".
        module: its name in the folder `tests`.

    Returns:
        The module.
    """
    pytest.importorskip("parameterized", reason="needs parameterized: pip install -e '.[dev]'")
    source, installed = sources()[project], version(project)
    if installed != source.release:
        pytest.skip(
            f"{project} {installed} is installed, but {SOURCES.name} names {source.release}; name the same and run "
            f"`{FETCH}`",
            allow_module_level=True,
        )
    if not source.folder.exists():
        pytest.skip(
            f"the shared tests of {project} {source.release} are not in {cache_folder()}; run `{FETCH}`, which "
            "fetches them",
            allow_module_level=True,
        )
    package = f"{project}_shared_tests"
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(source.folder / "tests")]
    stand_ins = {name: stand_in for name, stand_in in _stand_ins(project, package).items() if name not in sys.modules}
    before = list(sys.path)
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        sys.path[:] = before  # some mixins add folders that do not exist
        for name in stand_ins:
            del sys.modules[name]


def skipping(reasons: dict[str, str]) -> Callable[[type], type]:
    """Skip tests of a mixin by name; a name that is no test is an error, so that the table cannot grow stale.

    Args:
        reasons: why each is no real difference.

    Returns:
        A decorator for classes.
    """

    def decorate(owner: type) -> type:
        for name, reason in reasons.items():
            if not hasattr(owner, name):
                raise AttributeError(f"{owner.__name__} has no test {name!r}; take it out of the table")

            @functools.wraps(getattr(owner, name))
            def skipped(self: Any, *args: Any, reason: str = reason, **kwargs: Any) -> None:
                pytest.skip(reason)

            setattr(owner, name, skipped)
        return owner

    return decorate


# The report

# What each class of tests runs.
MIXINS = {
    "TestAdapters": "PeftCommonTester",
    "TestConfigurations": "ConfigTester",
    "TestImageProcessor": "ImageProcessingTestMixin",
    "TestModels": "ModelTesterMixin",
    "TestProcessor": "ProcessorTesterMixin",
    "TestTensorParallel": "TensorParallelTesterMixin",
    "TestTextModel": "ModelTesterMixin",
    "TestTraining": "TrainingTesterMixin",
}


def counts(reports: dict[str, list[Any]]) -> dict[str, Any]:
    """How the shared tests went.

    Args:
        reports: pytest's reports by outcome.

    Returns:
        Versions, and for each class its mixin, its tests by outcome and the reasons of those that were skipped.
    """
    classes: dict[str, Any] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in reports.get(outcome, ()):
            parts = report.nodeid.split("::")
            part_of_a_test = hasattr(report, "context")
            if not Path(parts[0]).name.startswith(FILES) or len(parts) < 3 or part_of_a_test:
                continue
            new = {"mixin": MIXINS[parts[1]], "passed": 0, "failed": 0, "skipped": 0, "reasons": {}}
            entry = classes.setdefault(parts[1], new)
            entry[outcome] += 1
            if outcome == "skipped":
                entry["reasons"][parts[2]] = str(report.longrepr[2]).removeprefix("Skipped: ")
    for entry in classes.values():
        entry["reasons"] = dict(sorted(entry["reasons"].items()))
    return {
        "versions": {project: source.release for project, source in sources().items()},
        "classes": dict(sorted(classes.items())),
    }


def write_counts(path: Path, reports: dict[str, list[Any]]) -> None:
    """Write `counts` as JSON.

    Args:
        path: the file.
        reports: pytest's reports by outcome.

    Raises:
        pytest.UsageError: if none of the shared tests ran.
    """
    if not counts(reports)["classes"]:
        raise pytest.UsageError(f"none of the shared tests ran, so that {path} was not written; run `{FETCH}` first")
    path.write_text(json.dumps(counts(reports), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    fetch(sys.argv[1:])
