"""What people install: the wheel and the source archive hold what they need, and nothing else."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def build(source, target, kind):
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, archive):
    """Made from the source archive, as pip does where there is no wheel."""
    folder = tmp_path_factory.mktemp("from-sdist")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


def test_the_wheel_answers_in_an_empty_folder(wheel, tmp_path):
    place, empty = tmp_path / "place", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place)]
    subprocess.run([*pip, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    picture = ROOT / "model_cards" / "assets" / "scene.png"

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=empty, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert Path(run("-c", "import transformers_lladav as package; print(package.__file__)").strip()).is_relative_to(
        place
    )
    answer = json.loads(run("-m", "transformers_lladav", "ask", str(picture), "How many shapes are there?", "--json"))
    assert answer["text"] == "three"
    # Cards are rendered from data that lies beside the code.
    assert run("-c", "from transformers_lladav.cards import read_data; print(len(read_data('paper/scores.json')))")
    assert list(empty.iterdir()) == []


def test_the_archive_from_the_repository_gives_the_same_wheel(wheel, tmp_path):
    direct = build(ROOT, tmp_path, "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(direct) as other:
        assert {item.filename: item.CRC for item in one.infolist()} == {
            item.filename: item.CRC for item in other.infolist()
        }


def test_the_wheel_holds_every_module_and_no_test(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    modules = {f"transformers_lladav/{path.name}" for path in (ROOT / "src" / "transformers_lladav").glob("*.py")}
    assert modules <= set(names)
    assert "transformers_lladav/py.typed" in names
    assert "transformers_lladav/bundled_checkpoint/model.safetensors" in names
    assert [name for name in names if "/test_" in name or name.endswith((".pkl", ".bin", ".pt"))] == []
    assert {name.split("/")[0] for name in names} == {"transformers_lladav", "transformers_lladav-0.1.0.dist-info"}


def test_the_metadata_is_complete(wheel):
    with zipfile.ZipFile(wheel) as content:
        (name,) = [name for name in content.namelist() if name.endswith("dist-info/METADATA")]
        facts = message_from_string(content.read(name).decode())
        (points,) = [name for name in content.namelist() if name.endswith("entry_points.txt")]
        assert "lladav = transformers_lladav.cli:main" in content.read(points).decode()
    for field in ("Summary", "License-Expression", "Requires-Python", "Keywords", "Description-Content-Type"):
        assert facts[field], field
    assert facts.get_payload().startswith("# transformers_lladav")
    extras = set(facts.get_all("Provides-Extra"))
    everything = {"data", "lmms-eval", "notebook", "qlora", "quantized", "ray", "serve", "train", "video", "web"}
    assert {"all", "dev", "docs", "release"} | everything == extras
    needs = {}
    for line in facts.get_all("Requires-Dist"):
        requirement, _, extra = line.partition("; extra == ")
        needs.setdefault(extra.strip("'"), set()).add(requirement)
    assert needs["all"] == set().union(*(needs[extra] for extra in everything))
    assert any(requirement.startswith("transformers<6,>=5.17") for requirement in needs[""])


def test_the_oldest_versions_are_tested():
    """But for torch and Pillow, as constraints-lowest.txt says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in (*project["dependencies"], *extras["train"], *extras["serve"])]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for one in wanted:
        (lowest,) = [rule.version for rule in one.specifier if rule.operator == ">="]
        if one.name not in ("torch", "pillow"):
            assert Version(pins[one.name]) == Version(lowest), one
        assert Version(pins[one.name]) in one.specifier, one
