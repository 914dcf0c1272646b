"""Publishing a folder on the Hub: checked first, completed where something is missing, one commit."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from . import __version__
from .adapter_checks import Checked, check_adapter
from .card_facts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, METRIC_FILES, RECIPE, read_object
from .cards import detect_kind, render_card
from .publishing import AUTO_MAP, code_files
from .verification import PROCESSOR_MAP, verify
from .weights import INDEX, PICKLES, Progress, weight_files

Origin = Literal["folder", "completed", "generated"]

CARD = "README.md"
PROCESSOR_FILES = {
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "preprocessor_config.json",
    "processor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
}  # fmt: skip
BESIDE = {CARD, RECIPE, *METRIC_FILES}  # without which a folder loads all the same
COMMON_FILES = PROCESSOR_FILES | BESIDE
MODEL_FILES = COMMON_FILES | {"config.json", "generation_config.json", INDEX}
ADAPTER_FILES = COMMON_FILES | {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
LICENCES = ("LICENSE", "LICENCE", "NOTICE")
LEAVES = "a link that leaves the folder"
IMAGE_PROCESSOR_MAP = {"AutoImageProcessor": "image_processing_lladav.LladaVImageProcessor", **PROCESSOR_MAP}
# PEFT writes a README.md full of these beside every adapter; it says nothing, so it is replaced.
UNFILLED = "[More Information Needed]"


@dataclass(frozen=True)
class UploadFile:
    """A file of the commit.

    Attributes:
        name: in the repository.
        origin: "folder" as it is, "completed" with what was missing, "generated" here.
        content: a path, or the bytes of what is not in the folder like that.
    """

    name: str
    origin: Origin
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Upload:
    """Everything that is known before the Hub is asked.

    Attributes:
        folder: the folder; it is never changed.
        repo_id: where it goes.
        kind: "model" or "adapter".
        files: what is uploaded, by name.
        left_out: why each other entry of the folder stays, by name.
        checked: what the check found.
    """

    folder: Path
    repo_id: str
    kind: Literal["model", "adapter"]
    files: list[UploadFile]
    left_out: dict[str, str]
    checked: Checked

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


class Published(NamedTuple):
    """What came of a push.

    Attributes:
        address: of the repository, its branch or the pull request.
        removed: weight files of an earlier upload that the commit removes; they stay in the history.
    """

    address: str
    removed: list[str]


def plan_upload(
    folder: str | Path, repo_id: str, base_model: str | None = None, progress: Progress | None = None
) -> Upload:
    """Check a folder and decide what would be uploaded; needs no network.

    Args:
        folder: a native checkpoint or a PEFT adapter.
        repo_id: OWNER/NAME.
        base_model: Hub id of an adapter's base model, in place of what its configuration says.
        progress: told (done, total) while tensors are read.

    Returns:
        The plan; if the check found errors, without a card.

    Raises:
        ValueError: if it is neither a model nor an adapter, or the id is malformed.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    if base_model is not None:
        check_repo_id(base_model)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    adapter = detect_kind(folder) == "adapter"
    if base_model is not None and not adapter:
        raise ValueError(f"--base-model {base_model} was given, but {folder} is a model, not an adapter; leave it out")
    checked = check_adapter(folder, base_model) if adapter else check_model(folder, progress)
    names = (
        ADAPTER_FILES
        if adapter
        else MODEL_FILES | {path.name for path in weight_files(folder)} | {path.name for path in code_files()}
    )
    left_out = {path.name: reason for path in sorted(folder.iterdir()) if (reason := _reason_against(path, names))}
    files = {
        path.name: UploadFile(path.name, "folder", path)
        for path in sorted(folder.iterdir())
        if path.name not in left_out
    }
    outside = [name for name, reason in left_out.items() if reason == LEAVES and name in names - BESIDE]
    checked.errors.extend(
        f"{name} is a link that leaves {folder}; copy the folder with `cp -rL` first" for name in outside
    )
    if not checked.errors:
        completed = _complete_adapter(folder, base_model) if adapter else _complete_model(folder, checked)
        files |= {file.name: file for file in completed}
        _add_card(folder, repo_id, base_model, files, checked)
    ordered = [files[name] for name in sorted(files)]
    return Upload(folder, repo_id, "adapter" if adapter else "model", ordered, left_out, checked)


def check_repo_id(repo_id: str) -> None:
    """Refuse an id that the Hub would refuse.

    Args:
        repo_id: what a user typed.

    Raises:
        ValueError: with an example.
    """
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(
            f"{repo_id!r} is not the id of a repository; give OWNER/NAME of letters, digits, '-', '_' and '.', "
            "96 characters at most, such as somebody/my-lladav"
        )


def check_login(api: HfApi | None = None) -> str:
    """Ask the Hub who is logged in, before work is done that is to be published.

    Args:
        api: who talks to the Hub.

    Returns:
        The user's name.

    Raises:
        OSError: if nobody is, or the Hub cannot be reached.
    """
    with _hub_errors(""):
        return str((api or HfApi()).whoami()["name"])


def check_model(folder: Path, progress: Progress | None = None) -> Checked:
    """Check a native checkpoint.

    Args:
        folder: the checkpoint.
        progress: told (done, total).

    Returns:
        The findings of [`verification.verify`]; missing code and a missing map of it are no warnings, because the
        upload brings them.
    """
    report = verify(folder, progress=progress)
    warnings = [finding.text for finding in report.warnings if finding.topic not in ("auto_map", "code")]
    passed = [f"{finding.topic}: {finding.text}" for finding in report.findings if finding.level == "ok"]
    return Checked([finding.text for finding in report.errors], warnings, passed)


def _reason_against(path: Path, names: set[str]) -> str | None:
    """Why an entry of the folder is not uploaded, or None."""
    if path.name.startswith("."):
        return "hidden"
    if not path.resolve().is_relative_to(path.parent.resolve()):
        return LEAVES
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return "not a plain file"
    if path.suffix.lower() in PICKLES:
        return "a pickle, which can run code when it is opened"
    if path.name in names or path.name.upper().startswith(LICENCES):
        return None
    return "not part of a checkpoint"


def _complete_model(folder: Path, checked: Checked) -> Iterator[UploadFile]:
    """What a folder lacks to load by itself: the map from Auto classes to code, and the code."""
    wanted: dict[str, dict[str, Any]] = {
        "config.json": {"auto_map": AUTO_MAP, "architectures": ["LladaVForMaskedDiffusion"]},
        "processor_config.json": {"auto_map": PROCESSOR_MAP, "processor_class": "LladaVProcessor"},
        "tokenizer_config.json": {"auto_map": PROCESSOR_MAP},
    }
    for name, entries in wanted.items():
        if not (folder / name).is_file():
            continue
        stored = read_object(folder / name)
        complete = {**stored, **entries}
        if isinstance(pictures := stored.get("image_processor"), dict):
            complete["image_processor"] = {**pictures, "auto_map": IMAGE_PROCESSOR_MAP}
        if complete != stored:
            checked.passed.append(f"{name} gets the map that Auto classes follow")
            yield UploadFile(name, "completed", _json_bytes(complete))
    for path in code_files():
        if not (folder / path.name).is_file():
            yield UploadFile(path.name, "completed", path.read_bytes())


def _complete_adapter(folder: Path, base_model: str | None) -> Iterator[UploadFile]:
    """The configuration with another base model, if one was given."""
    config = read_object(folder / ADAPTER_CONFIG)
    if base_model is not None and config.get("base_model_name_or_path") != base_model:
        complete = {**config, "base_model_name_or_path": base_model}
        yield UploadFile(ADAPTER_CONFIG, "completed", _json_bytes(complete))


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _add_card(
    folder: Path, repo_id: str, base_model: str | None, files: dict[str, UploadFile], checked: Checked
) -> None:
    """Keep the folder's own card, or write one."""
    own = None
    if CARD in files:
        own = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        if UNFILLED in own:
            checked.passed.append(f"{CARD} is an unfilled form of PEFT and is replaced")
            own = None
        elif own == render_card(folder, base_model=base_model).content:
            own = None  # ours, without the repository's name
    if own is None:
        text = render_card(folder, repo_id=repo_id, base_model=base_model).content
        files[CARD] = UploadFile(CARD, "generated", text.encode())
        return
    try:
        ModelCard(own)
    except Exception as error:  # whatever the YAML parser raises
        checked.errors.append(f"the metadata of {CARD} cannot be read: {error}")
    else:
        checked.passed.append(f"{CARD} is the folder's own and is kept")


def push(
    upload: Upload,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    api: HfApi | None = None,
) -> Published:
    """Upload a plan in one commit; files that the repository has already are not sent again.

    Weight files of an earlier upload that the new one does not have are removed in the same commit, since transformers
    might load them instead.

    Args:
        upload: the plan.
        private: make a new repository private.
        revision: branch; it is made if it does not exist.
        message: of the commit.
        create_pr: open a pull request instead of changing the branch.
        api: who talks to the Hub.

    Returns:
        Where it is, and what was removed there.

    Raises:
        ValueError: if the check found errors, or the repository exists and is public though it should be private.
        OSError: if the Hub cannot be reached or refuses.
    """
    if upload.checked.errors:
        listing = "\n".join(f"- {error}" for error in upload.checked.errors)
        raise ValueError(f"{upload.folder} cannot be published; nothing was uploaded:\n{listing}")
    api = api or HfApi(library_name="transformers_lladav", library_version=__version__)
    user = check_login(api)
    with _hub_errors(upload.repo_id, user):
        _prepare_repository(api, upload.repo_id, private, None if create_pr else revision)
        there = api.list_repo_files(upload.repo_id, revision=revision)
        names = {file.name for file in upload.files}
        stale = [name for name in there if _is_weight_file(name) and name not in names]
        stale = stale if upload.kind == "model" else []
        operations = [
            *(CommitOperationAdd(file.name, file.content) for file in upload.files),
            *(CommitOperationDelete(name) for name in stale),
        ]
        commit = api.create_commit(
            upload.repo_id,
            operations,
            commit_message=message or f"Upload {upload.kind} with transformers_lladav {__version__}",
            revision=revision,
            create_pr=create_pr,
        )
    address = f"{api.endpoint}/{upload.repo_id}"
    return Published(commit.pr_url or (f"{address}/tree/{revision}" if revision else address), stale)


def _is_weight_file(name: str) -> bool:
    return "/" not in name and (name == INDEX or (name.startswith("model") and name.endswith(".safetensors")))


def _prepare_repository(api: HfApi, repo_id: str, private: bool, branch: str | None) -> None:
    try:
        existing = api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
    else:
        if private and existing.private is False:
            raise ValueError(
                f"{repo_id} exists and is public, and --private changes no repository that exists; make it private "
                f"in its settings ({api.endpoint}/{repo_id}/settings) or choose another name. Nothing was uploaded"
            )
    if branch is not None and branch != "main":
        api.create_branch(repo_id, branch=branch, exist_ok=True)


@contextmanager
def _hub_errors(repo_id: str, user: str | None = None) -> Iterator[None]:
    """Say in a sentence or two what went wrong at the Hub and what helps."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise OSError("you are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise OSError("HF_HUB_OFFLINE is set, so nothing is uploaded; unset it, or look at --dry-run") from error
    except RevisionNotFoundError as error:
        raise OSError(f"{repo_id} has no such branch; a pull request needs one that exists") from error
    except RuntimeError as error:  # hub's wrapper around what went wrong with one large file
        cause = error.__cause__
        if not isinstance(cause, HTTPError):
            raise
        raise OSError(f"{error} {_explain(cause, repo_id, user)}") from error
    except HTTPError as error:
        raise OSError(_explain(error, repo_id, user)) from error


def _explain(error: Any, repo_id: str, user: str | None) -> str:
    again = "Run the same command again: what has arrived is not sent twice"
    if not isinstance(error, HfHubHTTPError):
        return f"the Hub cannot be reached ({error or type(error).__name__}). Check the network. {again}"
    status = error.response.status_code
    if status == 401:
        return "the Hub does not accept your token (expired or withdrawn?): run `hf auth login`, or set HF_TOKEN anew"
    if status in (403, 404) and user is not None:
        said = error.response.headers.get("X-Error-Message") or "no access"
        name = repo_id.split("/")[1]
        return (
            f"{user} may not write to {repo_id} (the Hub says: {said}). Use a token with write access, or push to "
            f"{user}/{name}"
        )
    return f"the Hub answered {status} ({error.server_message or error}). {again}"
