"""A push uploads what its dry run lists and nothing else, goes on after failures, and loads from a stand-in Hub."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from packaging.version import Version
from safetensors.torch import load_file, save_file

import parity
import python_process
from hub_server import DROP, TOKEN, HubServer
from test_remote_code import outcome
from transformers_lladav import LladaVForMaskedDiffusion, LladaVProcessor, cli, pushing
from transformers_lladav.publishing import code_files
from transformers_lladav.pushing import check_repo_id, plan_upload, push

REPO = "somebody/tiny"
LORA_TARGETS = r".*language_model\..*\.(q_proj|v_proj)"


# The other side: a process without the package, with nothing but the repository's id.
LOAD_FROM_HUB = """
import sys
sys.path.insert(0, sys.argv[3])
from test_remote_code import PackageBlocker, outcome
sys.meta_path.insert(0, PackageBlocker())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
repo_id, results, _ = sys.argv[1:]
model, info = AutoModelForImageTextToText.from_pretrained(repo_id, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
save_file(outcome(model, AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)), results)
"""


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def run(command, hub, home, **options):
    """A process of its own that knows the stand-in as the Hub."""
    environment = os.environ | hub.environment(home, **options)
    return python_process.run(command, env=environment)


@pytest.fixture(scope="module")
def plain_folder(converted_folder, tmp_path_factory):
    """What `save_pretrained` of model and processor leaves: no code, and no map that leads to it."""
    folder = tmp_path_factory.mktemp("plain") / "my-model"
    LladaVForMaskedDiffusion.from_pretrained(converted_folder, dtype="auto").save_pretrained(folder)
    LladaVProcessor.from_pretrained(converted_folder).save_pretrained(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("auto_map", None)
        content.get("image_processor", {}).pop("auto_map", None)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def model_folder(plain_folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(plain_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def plan(plain_folder):
    return plan_upload(plain_folder, REPO)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in that this process may talk to, through an `HfApi` of its address only."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=TOKEN)


def test_a_pushed_folder_loads_from_the_hub_without_the_package(plain_folder, tmp_path):
    before = digests(plain_folder)
    with HubServer(part_size=2**20) as hub:
        pushed = run(["-m", "transformers_lladav", "push", plain_folder, REPO], hub, tmp_path / "home")
        assert pushed.returncode == 0, pushed.stderr
        assert f"Published: {hub.endpoint}/{REPO}" in pushed.stdout
        assert hub.asked(r"PUT /large/\w+/part/2")
        arguments = [REPO, tmp_path / "outcome.safetensors", Path(__file__).parent]
        loaded = run(["-c", LOAD_FROM_HUB, *arguments], hub, tmp_path / "other-home")
        assert loaded.returncode == 0, loaded.stderr[-4000:]
        assert hub.asked(r"GET /somebody/tiny/resolve/\w+/modeling_lladav\.py") == 1
        assert len(hub.repos[REPO].commits) == 2
    assert digests(plain_folder) == before
    model = LladaVForMaskedDiffusion.from_pretrained(plain_folder)
    expected = outcome(model, LladaVProcessor.from_pretrained(plain_folder))
    found = load_file(tmp_path / "outcome.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_missing_is_completed_as_the_converter_would_have_written_it(plan, plain_folder, converted_folder):
    files = {file.name: file for file in plan.files}
    code = {path.name: path.read_bytes() for path in code_files()}
    completed = {name: file.content for name, file in files.items() if file.origin == "completed"}
    assert completed.keys() == {*code, "config.json", "processor_config.json", "tokenizer_config.json"}
    assert all(completed[name] == content for name, content in code.items())
    for name in completed.keys() - code.keys():
        uploaded = json.loads(completed[name])
        plain, converted = (json.loads((folder / name).read_text()) for folder in (plain_folder, converted_folder))
        assert uploaded.pop("auto_map") == converted["auto_map"]
        if name == "processor_config.json":
            assert uploaded["image_processor"].pop("auto_map") == converted["image_processor"]["auto_map"]
        assert uploaded == plain
    assert files["README.md"].origin == "generated"
    assert not plan.checked.errors


def test_a_complete_folder_is_uploaded_as_it_is(converted_folder):
    plan = plan_upload(converted_folder, REPO)
    assert {file.name: file.origin for file in plan.files} == {
        **dict.fromkeys(os.listdir(converted_folder), "folder"),
        "README.md": "generated",
    }
    assert plan.left_out == {}
    assert plan.checked.warnings == []


def test_a_dry_run_lists_what_a_push_uploads(plain_folder, plan, hub, api, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lladav", "push", str(plain_folder), REPO, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code in (0, None)
    assert hub.requests == []
    assert "Nothing was uploaded" in printed.out
    push(plan, api=api)
    uploaded = hub.repos[REPO].files()
    del uploaded[".gitattributes"]
    rows = [line.split() for line in printed.out.splitlines()[1:]]
    listed = [row for row in rows if row[-1] in ("folder", "completed", "generated")]
    assert {name: int(size.replace(",", "")) for name, size, *_ in listed} == {
        name: len(blob.content) for name, blob in uploaded.items()
    }
    assert f"{len(uploaded)} files, {sum(len(blob.content) for blob in uploaded.values()):,} bytes" in printed.out
    for file in plan.files:
        content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
        assert uploaded[file.name].content == content


def test_what_is_not_part_of_a_checkpoint_stays(model_folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (model_folder / "optimizer.pt").write_bytes(b"state")
    (model_folder / "log.txt").write_text("log")
    (model_folder / "notes.py").write_text("print()")
    (model_folder / ".env").write_text("HF_TOKEN=hf_x")
    (model_folder / "runs").mkdir()
    (model_folder / "metrics.json").symlink_to(tmp_path / "secret.json")
    (model_folder / "recipe.json").write_text("{}")
    (model_folder / "LICENSE.txt").write_text("MIT")
    (model_folder / "LICENSE.PKL").write_bytes(b"state")
    plan = plan_upload(model_folder, REPO)
    assert plan.left_out == {
        ".env": "hidden",
        "LICENSE.PKL": "a pickle, which can run code when it is opened",
        "log.txt": "not part of a checkpoint",
        "metrics.json": "a link that leaves the folder",
        "notes.py": "not part of a checkpoint",
        "optimizer.pt": "a pickle, which can run code when it is opened",
        "runs": "a folder",
    }
    names = {file.name for file in plan.files}
    assert {"recipe.json", "LICENSE.txt", "model.safetensors"} <= names
    assert not names & plan.left_out.keys()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "modeling_lladav.py"])
def test_a_part_of_the_model_outside_the_folder_is_an_error_and_stays_there(name, converted_folder, tmp_path):
    folder = Path(shutil.copytree(converted_folder, tmp_path / "model"))
    (folder / name).rename(tmp_path / name)
    if name.endswith(".json"):
        content = json.loads((tmp_path / name).read_text())
        del content["auto_map"]  # so that the upload would complete it
        (tmp_path / name).write_text(json.dumps({**content, "secret": "of elsewhere"}))
    (folder / name).symlink_to(tmp_path / name)
    plan = plan_upload(folder, REPO)
    assert plan.left_out == {name: "a link that leaves the folder"}
    (error,) = plan.checked.errors
    assert error == f"{name} is a link that leaves {folder}; copy the folder with `cp -rL` first"
    assert name not in {file.name for file in plan.files}


def test_the_folders_own_card_is_kept(model_folder):
    own = "---\nlicense: mit\n---\n# Mine\n"
    (model_folder / "README.md").write_text(own)
    plan = plan_upload(model_folder, REPO)
    (card,) = [file for file in plan.files if file.name == "README.md"]
    assert (card.origin, card.content) == ("folder", model_folder / "README.md")
    assert "README.md is the folder's own and is kept" in plan.checked.passed


def test_an_unfilled_form_and_our_own_card_are_replaced(model_folder):
    for text in ("# Model Card\n[More Information Needed]\n", pushing.render_card(model_folder).content):
        (model_folder / "README.md").write_text(text)
        (card,) = [file for file in plan_upload(model_folder, REPO).files if file.name == "README.md"]
        assert card.origin == "generated"
        assert f'from_pretrained("{REPO}"' in ModelCard(card.content.decode()).text


def test_a_card_that_the_hub_would_refuse_is_an_error(model_folder):
    (model_folder / "README.md").write_text("---\nlicense: [\n---\n# Mine\n")
    assert "README.md cannot be read" in plan_upload(model_folder, REPO).checked.errors[0]


def test_a_broken_model_is_not_uploaded(model_folder, hub, api, monkeypatch, capsys):
    tensors = load_file(model_folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, model_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="nothing was uploaded") as refused:
        push(plan_upload(model_folder, REPO), api=api)
    assert name in str(refused.value)
    assert hub.requests == []
    monkeypatch.setattr("sys.argv", ["lladav", "push", str(model_folder), REPO, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert name in capsys.readouterr().err


def test_code_that_differs_is_not_uploaded(model_folder):
    (model_folder / "modeling_lladav.py").write_text("raise SystemExit")
    assert any("modeling_lladav.py" in error for error in plan_upload(model_folder, REPO).checked.errors)


@pytest.mark.parametrize(
    "repo_id", ["tiny", "a/b/c", "some body/x", "somebody/-x", "../x", "somebody/x.git", "s/" + "x" * 99]
)
def test_malformed_ids_are_refused_before_anything_is_read(repo_id, monkeypatch):
    monkeypatch.setattr(pushing, "check_model", lambda *_: pytest.fail("the folder was read"))
    with pytest.raises(ValueError, match="give OWNER/NAME") as refused:
        plan_upload("gone", repo_id)
    assert repr(repo_id) in str(refused.value)
    check_repo_id("somebody/my-lladav.v1_x")


def test_other_folders_are_refused(tmp_path, model_folder):
    with pytest.raises(ValueError, match="is not a folder"):
        plan_upload(tmp_path / "gone", REPO)
    with pytest.raises(ValueError, match=r"official release; convert it first: .*convert_checkpoint\.py"):
        plan_upload(parity.OFFICIAL, REPO)
    with pytest.raises(ValueError, match="is a model, not an adapter; leave it out"):
        plan_upload(model_folder, REPO, base_model="somebody/base")


# Talking to the Hub


def commits(hub, repo_id=REPO):
    return [commit.message for commit in hub.repos[repo_id].commits.values()]


def test_a_new_repository_is_private_if_asked(plan, hub, api):
    assert push(plan, private=True, message="First", api=api) == (f"{hub.endpoint}/{REPO}", [])
    assert hub.repos[REPO].private
    assert commits(hub) == ["initial commit", "First"]
    assert hub.asked("POST /api/validate-yaml") == 1


def test_a_public_repository_is_not_taken_for_private(plan, hub, api):
    hub.add_repo(REPO)
    with pytest.raises(ValueError, match=r"exists and is public.*/settings.*Nothing was uploaded"):
        push(plan, private=True, api=api)
    assert commits(hub) == ["initial commit"]
    push(plan, api=api)
    assert not hub.repos[REPO].private


def test_a_branch_is_made_and_main_stays(plan, hub, api):
    hub.add_repo(REPO)
    assert push(plan, revision="dev", api=api).address == f"{hub.endpoint}/{REPO}/tree/dev"
    push(plan, revision="dev", api=api)
    assert hub.repos[REPO].files("main").keys() == {".gitattributes"}
    assert "model.safetensors" in hub.repos[REPO].files("dev")
    assert len(commits(hub)) == 2


def test_a_pull_request_leaves_main_alone(plan, hub, api):
    assert push(plan, create_pr=True, api=api).address == f"{hub.endpoint}/{REPO}/discussions/1"
    assert hub.repos[REPO].files("main").keys() == {".gitattributes"}
    assert "model.safetensors" in hub.repos[REPO].files("refs/pr/1")
    with pytest.raises(OSError, match="somebody/tiny has no such branch; a pull request needs one that exists"):
        push(plan, create_pr=True, revision="dev", api=api)
    assert hub.repos[REPO].refs.keys() == {"main", "refs/pr/1"}


def test_weights_of_an_earlier_upload_are_removed(plan, hub, api, tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.md"):
        (tmp_path / name).write_text("old")
    hub.add_repo(REPO, tmp_path)
    removed = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert sorted(push(plan, api=api).removed) == removed
    files = hub.repos[REPO].files()
    assert "notes.md" in files
    assert [name for name in files if name.startswith("model") and "lladav" not in name] == ["model.safetensors"]
    assert len(commits(hub)) == 3


def test_the_same_push_again_changes_nothing(plan, hub, api):
    push(plan, api=api)
    asked = len(hub.requests)
    push(plan, api=api)
    assert not [request for request in hub.requests[asked:] if request.startswith("PUT") or "/commit/" in request]
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("fault", [500, 503, DROP])
def test_one_failure_of_the_storage_is_overcome(plan, hub, api, fault):
    if fault == DROP and Version(huggingface_hub.__version__) < Version("1.26"):
        pytest.skip("older versions of huggingface_hub do not send again what a dropped connection lost")
    hub.fail("PUT", "/large/", fault)
    push(plan, api=api)
    assert hub.asked("PUT /large/") == 2
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("fault", [500, DROP])
def test_an_interrupted_push_goes_on_where_it_stopped(plan, hub, api, fault):
    hub.fail("POST", "/commit/", fault)
    with pytest.raises(OSError, match="Run the same command again: what has arrived is not sent twice"):
        push(plan, api=api)
    assert commits(hub) == ["initial commit"]
    assert hub.asked("PUT /large/") == 1
    push(plan, api=api)
    assert hub.asked("PUT /large/") == 1
    assert len(commits(hub)) == 2


def test_storage_that_stays_away_is_named_with_the_file(plan, hub, api):
    hub.fail("PUT", "/large/", DROP, times=99)
    with pytest.raises(OSError, match=r"uploading 'model\.safetensors'.*cannot be reached.*again"):
        push(plan, api=api)
    assert commits(hub) == ["initial commit"]


def test_somebody_elses_namespace_is_refused(plain_folder, hub, api):
    plan = plan_upload(plain_folder, "other/tiny")
    with pytest.raises(
        OSError, match=r"somebody may not write to other/tiny.*rights to create.*push to somebody/tiny"
    ):
        push(plan, api=api)
    assert hub.repos == {}
    hub.add_repo("other/tiny")
    with pytest.raises(OSError, match="somebody may not write to other/tiny"):
        push(plan, api=api)
    assert commits(hub, "other/tiny") == ["initial commit"]


def test_a_token_that_is_not_accepted(plan, hub):
    with pytest.raises(OSError, match=r"does not accept your token.*hf auth login"):
        push(plan, api=HfApi(endpoint=hub.endpoint, token="hf_withdrawn"))
    assert hub.repos == {}


def test_nobody_logged_in_and_no_network(plan, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(OSError, match="you are not logged in to the Hub: run `hf auth login`"):
        push(plan, api=HfApi(endpoint=hub.endpoint))
    hub.__exit__()
    with pytest.raises(OSError, match=r"the Hub cannot be reached.*Check the network"):
        push(plan, api=HfApi(endpoint=hub.endpoint, token=TOKEN))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        push(plan, api=HfApi(endpoint=hub.endpoint, token=TOKEN))


# Adapters


@pytest.fixture(scope="module")
def lora(plain_folder):
    """A LoRA of the tiny model that changes its answers, and the model with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = LladaVForMaskedDiffusion.from_pretrained(plain_folder, dtype=torch.float32)
    settings = LoraConfig(r=3, target_modules=LORA_TARGETS, init_lora_weights=False)
    return get_peft_model(base, settings).eval()


@pytest.fixture
def adapter_folder(lora, tmp_path):
    folder = tmp_path / "adapter"
    lora.save_pretrained(folder)
    change_config(folder, base_model_name_or_path="somebody/base")
    return folder


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path)


def adapter_errors(folder, **options):
    return plan_upload(folder, REPO, **options).checked.errors


def test_an_adapter_is_uploaded_with_a_card_and_loads_again(adapter_folder, lora, plain_folder, hub, api, tmp_path):
    from peft import PeftModel

    (adapter_folder / "optimizer.pt").write_bytes(b"state")
    plan = plan_upload(adapter_folder, REPO)
    assert {file.name: file.origin for file in plan.files} == {
        "README.md": "generated",  # PEFT's form is replaced
        "adapter_config.json": "folder",
        "adapter_model.safetensors": "folder",
    }
    assert plan.kind == "adapter"
    assert plan.checked.warnings == []
    push(plan, api=api)
    downloaded = huggingface_hub.snapshot_download(
        REPO, endpoint=hub.endpoint, token=TOKEN, local_dir=tmp_path / "downloaded"
    )
    base = LladaVForMaskedDiffusion.from_pretrained(plain_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    before = base(input_ids=ids).logits
    again = PeftModel.from_pretrained(base, downloaded).eval()
    assert torch.equal(again(input_ids=ids).logits, lora(input_ids=ids).logits)
    assert not torch.allclose(before, again(input_ids=ids).logits)
    card = ModelCard.load(Path(downloaded) / "README.md")
    assert card.data.base_model == "somebody/base"
    assert "| `r` | `3` |" in card.text


def test_a_local_base_model_can_be_replaced(adapter_folder, plain_folder):
    change_config(adapter_folder, base_model_name_or_path=str(plain_folder))
    assert "--base-model" in plan_upload(adapter_folder, REPO).checked.warnings[0]
    before = digests(adapter_folder)
    plan = plan_upload(adapter_folder, REPO, base_model="somebody/published")
    assert plan.checked.warnings == []
    files = {file.name: file for file in plan.files}
    stored = json.loads((adapter_folder / "adapter_config.json").read_text())
    uploaded = json.loads(files["adapter_config.json"].content)
    assert uploaded == {**stored, "base_model_name_or_path": "somebody/published"}
    assert ModelCard(files["README.md"].content.decode()).data.base_model == "somebody/published"
    assert digests(adapter_folder) == before
    change_config(adapter_folder, base_model_name_or_path=None)
    assert "has no base_model_name_or_path" in adapter_errors(adapter_folder)[0]
    assert adapter_errors(adapter_folder, base_model="somebody/published") == []


def test_a_whole_model_in_an_adapters_folder_is_an_error_with_its_size(adapter_folder):
    extra = {f"base_model.model.layer{number}.weight": torch.zeros(250, 1000) for number in range(4)}
    change_tensors(adapter_folder, lambda tensors: {**tensors, **extra})
    count = len(load_file(adapter_folder / "adapter_model.safetensors"))
    (error,) = adapter_errors(adapter_folder)
    assert error.startswith(f"4 of {count} tensors (4.0 MB of ")
    assert "layer0.weight" in error
    assert "layer3.weight" not in error
    change_config(adapter_folder, modules_to_save=[f"layer{number}" for number in range(3)])
    (error,) = adapter_errors(adapter_folder)
    assert error.startswith(f"1 of {count} tensors (1.0 MB of ")
    for saved in (5, "layer0"):  # of a foreign file
        change_config(adapter_folder, modules_to_save=saved)
        (error,) = adapter_errors(adapter_folder)
        assert error.startswith(f"4 of {count} tensors (4.0 MB of ")


def test_broken_adapters_are_refused(adapter_folder):
    def spoil(tensors):
        name = sorted(tensors)[1]
        tensors[name][0, 0] = float("inf")
        return tensors

    change_tensors(adapter_folder, spoil)
    (error,) = adapter_errors(adapter_folder)
    assert "1 of" in error
    assert "NaN or infinity" in error
    path = adapter_folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "truncated or damaged" in adapter_errors(adapter_folder)[0]
    save_file({}, path)
    assert adapter_errors(adapter_folder) == ["adapter_model.safetensors holds no tensors"]
    path.rename(adapter_folder / "adapter_model.bin")
    pickle, missing = adapter_errors(adapter_folder)
    assert "adapter_model.bin is a pickle" in pickle
    assert "adapter_model.safetensors is missing" in missing


def test_unknown_kinds_of_adapters_are_refused(adapter_folder):
    change_config(adapter_folder, peft_type="MAGIC")
    assert "peft_type='MAGIC'; PEFT knows " in adapter_errors(adapter_folder)[0]
    (adapter_folder / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in adapter_errors(adapter_folder)[0]
