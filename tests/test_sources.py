"""From the Hub come safe files only, no more than is needed, and errors that say what to do."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import convert_checkpoint
import parity
import python_process
from hub_server import HubServer
from transformers_lladav.sources import fetch, is_hub_id, origin
from transformers_lladav.weights import stored_origin

SCRIPT = convert_checkpoint.__file__
SIGLIP = parity.FOLDER / "checkpoint-siglip" / "config.json"
REPO = "somebody/LLaDA-V"


@pytest.fixture
def hub(tmp_path):
    """A Hub with the official tiny checkpoint, and with files beside it that nobody should fetch."""
    folder = shutil.copytree(parity.OFFICIAL, tmp_path / "repo")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (folder / "modeling_llava.py").write_text("raise SystemExit('executed')")
    with HubServer() as server:
        server.add_repo(REPO, folder)
        yield server


def run(hub, home, *command, **settings):
    """A process that talks to this Hub."""
    environment = {**os.environ, **hub.environment(home), "OMP_NUM_THREADS": "1", **settings}
    return python_process.run(command, env=environment)


def fetched(hub, home, call):
    code = f"import json; from transformers_lladav.sources import fetch, remote_headers\nprint(json.dumps({call}))"
    done = run(hub, home, "-c", code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_a_name_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("GSAI-ML/LLaDA-V")
    assert not any(is_hub_id(name) for name in ("LLaDA-V", "/a/b", "a/b/c", "../a", "a/b c"))
    (tmp_path / "GSAI-ML" / "LLaDA-V").mkdir(parents=True)
    assert not is_hub_id("GSAI-ML/LLaDA-V")
    assert fetch("GSAI-ML/LLaDA-V") == Path("GSAI-ML/LLaDA-V")
    with pytest.raises(FileNotFoundError, match="nowhere is neither a folder nor a Hub id such as GSAI-ML/LLaDA-V"):
        fetch("nowhere")


def test_where_a_folder_comes_from(tmp_path):
    cached = tmp_path / "hub" / "models--GSAI-ML--LLaDA-V" / "snapshots" / "0123abc"
    assert origin("GSAI-ML/LLaDA-V", cached) == "GSAI-ML/LLaDA-V@0123abc"
    assert origin(str(cached), cached) == "GSAI-ML/LLaDA-V@0123abc"
    assert origin(str(tmp_path), tmp_path) is None


def test_only_safe_files_are_fetched(hub, tmp_path):
    folder = Path(fetched(hub, tmp_path, f"str(fetch({REPO!r}))"))
    expected = {path.name for path in parity.OFFICIAL.iterdir()}
    assert {path.name for path in folder.iterdir()} == expected
    for name in expected:
        assert (folder / name).read_bytes() == (parity.OFFICIAL / name).read_bytes()
    assert not any(request.endswith((".bin", ".py")) for request in hub.requests)


def test_headers_without_weights(hub, tmp_path):
    call = f"[[t.file.name, t.key, t.shape, str(t.dtype)] for t in remote_headers({REPO!r}, None, [])]"
    found = fetched(hub, tmp_path, call)
    local = {tensor.key: tensor for tensor in convert_checkpoint.make_plan(parity.OFFICIAL, SIGLIP).tensors.values()}
    assert {key: (file, tuple(shape), dtype) for file, key, shape, dtype in found} == {
        key: (tensor.file.name, tensor.shape, str(tensor.dtype)) for key, tensor in local.items()
    }


def test_a_dry_run_downloads_no_weights(hub, tmp_path):
    arguments = ["--source", REPO, "--vision-config", str(SIGLIP), "--dry-run"]
    done = run(hub, tmp_path, SCRIPT, *arguments)
    assert done.returncode == 0, done.stderr
    assert "model.norm.weight -> model.language_model.norm.weight  [32] bfloat16" in done.stdout
    assert done.stdout.count(" -> ") == 88
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    local = python_process.run([SCRIPT, "--source", str(parity.OFFICIAL), *arguments[2:]])
    assert local.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]


def test_a_hub_id_is_converted_like_the_folder(hub, tmp_path, converted_folder):
    output = tmp_path / "out"
    done = run(hub, tmp_path, SCRIPT, "--source", REPO, "--vision-config", str(SIGLIP), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output.iterdir()} == {path.name for path in converted_folder.iterdir()}
    for path in converted_folder.iterdir():
        if path.suffix == ".safetensors":
            ours, theirs = load_file(output / path.name), load_file(path)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        else:
            assert (output / path.name).read_bytes() == path.read_bytes(), path.name
    assert stored_origin(output) == f"{REPO}@{hub.repos[REPO].refs['main']}"
    assert stored_origin(converted_folder) is None


def test_a_repository_of_pickles_is_refused_before_the_download(hub, tmp_path):
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "config.json").write_text("{}")
    (pickles / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    hub.add_repo("somebody/pickles", pickles)
    done = run(hub, tmp_path, SCRIPT, "--source", "somebody/pickles", "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "somebody/pickles has no safetensors files:" in done.stderr
    assert "pytorch_model.bin is a pickle" in done.stderr
    assert not any(request.startswith("GET") and "resolve" in request for request in hub.requests)
    assert not (tmp_path / "out").exists()


def test_a_repository_that_is_not_there(hub, tmp_path):
    done = run(hub, tmp_path, SCRIPT, "--source", "somebody/else", "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "error: somebody/else cannot be downloaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") < 12


def test_a_cache_without_room_is_noticed_before(hub, tmp_path):
    code = (
        "import shutil, sys; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**8, 10**8 - 10**6, 10**6)\n"
        f"from transformers_lladav.sources import fetch\nfetch({REPO!r})"
    )
    done = run(hub, tmp_path, "-c", code)
    assert "OSError: somebody/LLaDA-V needs 0.02 GB in the Hub's cache" in done.stderr
    assert "which has 0.00 GB free" in done.stderr


def test_without_a_network_the_cache_is_used(hub, tmp_path):
    first = fetched(hub, tmp_path, f"str(fetch({REPO!r}))")
    asked = len(hub.requests)
    code = f"from transformers_lladav.sources import fetch\nprint(fetch({REPO!r}))"
    again = run(hub, tmp_path, "-c", code, HF_HUB_OFFLINE="1")
    assert again.stdout.strip() == first
    assert len(hub.requests) == asked
    never = run(hub, tmp_path / "empty", "-c", code, HF_HUB_OFFLINE="1")
    assert "OSError: somebody/LLaDA-V cannot be downloaded" in never.stderr


def test_a_converted_checkpoint_is_published(hub, tmp_path):
    output = tmp_path / "out"
    arguments = ["--source", REPO, "--vision-config", str(SIGLIP), "--output", str(output)]
    done = run(hub, tmp_path, SCRIPT, *arguments, "--push-to", "somebody/LLaDA-V-hf", "--private")
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.endpoint}/somebody/LLaDA-V-hf" in done.stdout
    repo = hub.repos["somebody/LLaDA-V-hf"]
    assert repo.private
    files = repo.files()
    assert set(files) - {".gitattributes"} == {path.name for path in output.iterdir()} | {"README.md"}
    assert files["model.safetensors"].content == (output / "model.safetensors").read_bytes()


def test_who_cannot_publish_is_told_before_the_work(hub, tmp_path):
    arguments = ["--source", REPO, "--vision-config", str(SIGLIP), "--output", str(tmp_path / "out")]
    done = run(hub, tmp_path, SCRIPT, *arguments, "--push-to", "somebody/new", HF_TOKEN="")
    assert done.returncode == 1
    assert "error: you are not logged in to the Hub" in done.stderr
    assert not (tmp_path / "out").exists()
    malformed = run(hub, tmp_path, SCRIPT, *arguments, "--push-to", "new")
    assert malformed.returncode == 1
    assert "'new' is not the id of a repository" in malformed.stderr


def test_a_refused_upload_leaves_the_folder_and_says_how_to_go_on(hub, tmp_path):
    arguments = ["--source", REPO, "--vision-config", str(SIGLIP), "--output", str(tmp_path / "out")]
    done = run(hub, tmp_path, SCRIPT, *arguments, "--push-to", "stranger/name")
    assert done.returncode == 1
    assert (
        f"out is complete all the same; publish it with: lladav push {tmp_path / 'out'} stranger/name" in done.stderr
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_network_that_is_down(hub, tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for arguments in (["--output", str(tmp_path / "out")], ["--dry-run"]):
        done = run(hub, tmp_path, SCRIPT, "--source", REPO, *arguments, **nowhere)
        assert done.returncode == 1
        assert "error: somebody/LLaDA-V cannot be downloaded" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") < 12
