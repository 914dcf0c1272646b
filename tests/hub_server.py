"""A stand-in for the Hub on loopback: the part of its API that uploads and downloads of models ask for.

    with HubServer() as hub:
        hub.add_repo("owner/name", folder)
        subprocess.run([...], env=os.environ | hub.environment(tmp_path))

It keeps everything in memory, speaks plain HTTP (no Xet), counts what it is asked, and can be told to fail. The tests
set HF_HUB_OFFLINE and huggingface_hub reads its environment when it is imported, so flows run in a process of their
own, with `environment`.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "somebody"
TOKEN = "hf_stand_in"
LARGE_SUFFIXES = (".safetensors", ".bin", ".png", ".jpg")
REGULAR_LIMIT = 10 * 2**20
DROP = "drop"


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self):
        """What git calls the file (of an LFS file: its pointer)."""
        content = self.content
        if self.is_lfs:
            head = "version https://git-lfs.github.com/spec/v1\n"
            content = f"{head}oid sha256:{self.sha256}\nsize {len(content)}\n".encode()
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.is_lfs else self.oid


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A model repository: branches (and pull requests) point to commits."""

    repo_id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref, files, message):
        number = len(self.commits)
        oid = hashlib.sha1(f"{self.repo_id} {number} {message}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, message, files)
        self.refs[ref] = oid
        return oid

    def find(self, revision):
        """The commit that a branch, a pull request or an object name means; None if there is none."""
        return self.commits.get(self.refs.get(revision, revision))

    def files(self, revision="main"):
        return self.find(revision).files


@dataclass
class Fault:
    method: str
    part: str
    status: int | str
    times: int


class HubServer:
    """Serves while its context is open.

    Attributes:
        endpoint: what HF_ENDPOINT must be.
        repos: repository by id.
        objects: uploaded large files by sha256.
        requests: "METHOD path" of everything asked, in order.
    """

    def __init__(self, part_size=None):
        """
        Args:
            part_size: large files above so many bytes are uploaded in parts of that size; by default never.
        """
        self.part_size = part_size
        self.repos = {}
        self.objects = {}
        self.parts = {}
        self.requests = []
        self.faults = []
        self.lock = threading.RLock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        # Closing waits for the next poll: a short one keeps tests quick.
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home, token=TOKEN):
        """Settings that make a new process talk to this server and keep its files to itself.

        Args:
            home: folder for caches; a token of the user's is not found there.
            token: None for somebody who is not logged in.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_TOKEN": token or "",
            "HF_TOKEN_PATH": str(Path(home) / "no-token"),
            "NO_PROXY": "127.0.0.1",
        }

    def add_repo(self, repo_id, folder=None, private=False):
        """Publish the files of a folder in one commit, or nothing but .gitattributes."""
        repo = Repo(repo_id, private)
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
        files = {".gitattributes": Blob(rules.encode(), False)}
        repo.commit("main", dict(files), "initial commit")
        if folder is not None:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    name, content = path.relative_to(folder).as_posix(), path.read_bytes()
                    files[name] = Blob(content, is_large(name, len(content)))
            repo.commit("main", files, "files")
        self.repos[repo_id] = repo
        return repo

    def fail(self, method, part, status, times=1):
        """Let the next requests fail.

        Args:
            method: of the requests.
            part: regular expression that their path contains.
            status: an HTTP status, or DROP to close the connection in the middle.
            times: how many of them fail.
        """
        self.faults.append(Fault(method, part, status, times))

    def take_fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.part, path):
                    fault.times -= 1
                    return fault.status
        return None

    def asked(self, pattern):
        """How many requests "METHOD path" contained a regular expression."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)


def is_large(name, size):
    return name.endswith(LARGE_SUFFIXES) or size > REGULAR_LIMIT


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status, message, code=None, body=None, commit=None):
        super().__init__(message)
        self.status, self.message, self.code, self.body, self.commit = status, message, code, body, commit


ROUTES = []


def route(method, pattern):
    """Registers a handler; groups of the pattern (matched against the whole, still quoted path) are its arguments."""

    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


REPO = r"/api/models/(?P<repo_id>[^/]+/[^/]+)"


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_request(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {self.path}")
        fault = self.hub.take_fault(self.command, url.path)
        if fault == DROP:
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.read_body()
        try:
            if fault:
                raise Refusal(fault, "as the test wants it")
            answer = self.find_route(url.path)
        except Refusal as refusal:
            self.refuse(refusal)
        else:
            if answer is not None:
                self.send_json(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_request

    def find_route(self, path):
        for method, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else None):
                with self.hub.lock:
                    return function(self, **{name: unquote(text or "") for name, text in match.groupdict().items()})
        raise Refusal(404, f"the stand-in does not know {self.command} {path}")

    def read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send_bytes(self, content, status=200, **headers):
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, document, status=200, **headers):
        self.send_bytes(json.dumps(document).encode(), status, Content_Type="application/json", **headers)

    def refuse(self, refusal):
        headers = {"X_Error_Message": refusal.message}
        if refusal.code:
            headers["X_Error_Code"] = refusal.code
        if refusal.commit:
            headers["X_Repo_Commit"] = refusal.commit
        self.send_json(refusal.body or {"error": refusal.message}, refusal.status, **headers)

    # What many routes need

    def logged_in(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def need_login(self):
        if not self.logged_in():
            raise Refusal(401, "Invalid credentials in Authorization header")

    def need_repo(self, repo_id, revision="main", write=False):
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self.logged_in()):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write:
            self.need_login()
            self.need_ownership(repo_id)
        commit = repo.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, commit

    def need_ownership(self, repo_id):
        owner = repo_id.split("/")[0]
        if owner != USER:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner}")

    # Accounts and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        self.need_login()
        token = {"displayName": "stand-in", "role": "write"}
        return {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}

    @route("POST", "/api/repos/create")
    def create_repo(self):
        self.need_login()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repos:
            body = {**answer, "error": "You already created this model repo"}
            raise Refusal(409, "You already created this model repo", body=body)
        self.need_ownership(repo_id)
        # "visibility" is what huggingface_hub 2 asks for, "private" what 1 does.
        self.hub.add_repo(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return answer

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        head = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
        if head is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            problems = metadata_problems(yaml.safe_load(head[1]))
        except yaml.YAMLError as error:
            problems = [f"the metadata is no YAML: {error}"]
        if problems:
            body = {"errors": [{"message": problem} for problem in problems], "warnings": []}
            raise Refusal(400, "Invalid metadata", body=body)
        return {"errors": [], "warnings": []}

    @route("GET", REPO + r"(?:/revision/(?P<revision>[^/]+))?")
    def model_info(self, repo_id, revision):
        repo, commit = self.need_repo(repo_id, revision or "main")
        siblings = [{"rfilename": name, "size": len(blob.content)} for name, blob in commit.files.items()]
        return {"_id": "0", "id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": commit.oid,
                "private": repo.private, "disabled": False, "gated": False, "tags": [], "downloads": 0, "likes": 0,
                "createdAt": "2026-01-01T00:00:00.000Z", "lastModified": "2026-01-01T00:00:00.000Z",
                "siblings": siblings}  # fmt: skip

    @route("GET", REPO + "/refs")
    def list_refs(self, repo_id):
        repo, _ = self.need_repo(repo_id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repo.refs.items()
            if not name.startswith("refs/")
        ]
        return {"branches": branches, "converts": [], "tags": []}

    @route("POST", REPO + "/branch/(?P<branch>[^/]+)")
    def create_branch(self, repo_id, branch):
        repo, commit = self.need_repo(repo_id, write=True)
        if branch in repo.refs:
            raise Refusal(409, f"Reference {branch} already exists")
        repo.refs[branch] = commit.oid
        return {}

    @route("GET", REPO + "/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def list_tree(self, repo_id, revision, path):
        _, commit = self.need_repo(repo_id, revision)
        prefix = f"{path}/" if path else ""
        inside = {name: blob for name, blob in commit.files.items() if name.startswith(prefix)}
        if path and not inside:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound", commit=commit.oid)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        folders = {prefix + name.removeprefix(prefix).split("/")[0] for name in inside if "/" in name[len(prefix) :]}
        shown = [describe(name, blob) for name, blob in inside.items() if recursive or "/" not in name[len(prefix) :]]
        return shown + [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]

    @route("POST", REPO + "/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, repo_id, revision):
        _, commit = self.need_repo(repo_id, revision)
        asked = json.loads(self.body)["paths"]
        return [describe(name, commit.files[name]) for name in asked if name in commit.files]

    # Uploads

    @route("POST", REPO + "/preupload/(?P<revision>[^/]+)")
    def preupload(self, repo_id, revision):
        _, commit = self.need_repo(repo_id, revision, write=True)
        answers = []
        for file in json.loads(self.body)["files"]:
            name, there = file["path"], commit.files.get(file["path"])
            mode = "lfs" if is_large(name, file["size"]) else "regular"
            known = {"oid": there.etag} if there else {}
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": answers}

    @route("POST", r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo_id):
        self.need_repo(repo_id, write=True)
        batch = json.loads(self.body)
        objects = []
        for wanted in batch["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                link = f"{self.hub.endpoint}/large/{oid}"
                upload = {"href": link}
                if self.hub.part_size and size > self.hub.part_size and "multipart" in batch["transfers"]:
                    count = -(-size // self.hub.part_size)
                    parts = {str(number): f"{link}/part/{number}" for number in range(1, count + 1)}
                    header = {"chunk_size": str(self.hub.part_size), **parts}
                    upload = {"href": f"{link}/complete", "header": header}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{link}/verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/large/(?P<oid>[0-9a-f]{64})")
    def upload_large(self, oid):
        self.store(oid, self.body)
        return {}

    @route("PUT", r"/large/(?P<oid>[0-9a-f]{64})/part/(?P<number>\d+)")
    def upload_part(self, oid, number):
        etag = hashlib.sha256(self.body).hexdigest()
        self.hub.parts[oid, int(number)] = (etag, self.body)
        self.send_json({}, ETag=f'"{etag}"')

    @route("POST", "/large/(?P<oid>[0-9a-f]{64})/complete")
    def complete_large(self, oid):
        content = b""
        for part in json.loads(self.body)["parts"]:
            etag, data = self.hub.parts.pop((oid, part["partNumber"]))
            if part["etag"].strip('"') != etag:
                raise Refusal(400, f"part {part['partNumber']} has another etag")
            content += data
        self.store(oid, content)
        return {}

    def store(self, oid, content):
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content has another sha256 than its name says")
        self.hub.objects[oid] = content

    @route("POST", "/large/(?P<oid>[0-9a-f]{64})/verify")
    def verify_large(self, oid):
        if len(self.hub.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(404, "no such object of that size")
        return {}

    @route("POST", REPO + "/commit/(?P<revision>[^/]+)")
    def make_commit(self, repo_id, revision):
        repo, parent = self.need_repo(repo_id, revision, write=True)
        files, header = dict(parent.files), {"summary": ""}
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                header = value
                if value.get("parentCommit", parent.oid) != parent.oid:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif step["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"], validate=True), False)
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"LFS object {value['oid']} of {value['path']} was not uploaded")
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            elif step["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, f"the stand-in does not know {step['key']}")
        ref, answer = revision, {"success": True}
        if "create_pr" in self.query:
            number = next(number for number in itertools.count(1) if f"refs/pr/{number}" not in repo.refs)
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{number}"
        oid = repo.commit(ref, files, header["summary"])
        return {**answer, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}"}

    # Downloads

    @route("GET", r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, repo_id, revision, path):
        _, commit = self.need_repo(repo_id, revision)
        blob = commit.files.get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit=commit.oid)
        headers = {"ETag": f'"{blob.etag}"', "X_Repo_Commit": commit.oid, "Accept_Ranges": "bytes"}
        if blob.is_lfs:
            headers |= {"X_Linked_Etag": f'"{blob.etag}"', "X_Linked_Size": str(len(blob.content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send_bytes(blob.content, **headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(blob.content)), len(blob.content) - 1)
        if first > last:
            raise Refusal(416, "Requested Range Not Satisfiable")
        headers["Content_Range"] = f"bytes {first}-{last}/{len(blob.content)}"
        self.send_bytes(blob.content[first : last + 1], 206, **headers)


def describe(name, blob):
    """A file as the tree shows it."""
    shown = {"type": "file", "path": name, "oid": blob.oid, "size": len(blob.content)}
    if blob.is_lfs:
        shown["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return shown


def as_list(value):
    return value if isinstance(value, list) else [value]


def metadata_problems(metadata):
    """What the Hub refuses in the metadata of a model card, as far as its documentation says."""
    if not isinstance(metadata, dict):
        return ["the metadata is not a mapping"]
    problems = []
    for name in ("license", "library_name", "pipeline_tag"):
        if not isinstance(metadata.get(name, ""), str):
            problems.append(f'"{name}" must be a string')
    for name in ("tags", "datasets", "language", "base_model"):
        if not all(isinstance(value, str) for value in as_list(metadata.get(name, []))):
            problems.append(f'"{name}" must be a string or a list of strings')
    for base in as_list(metadata.get("base_model", [])):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)):
            problems.append(f'"base_model" with value "{base}" is not valid')
    for result in (result for model in metadata.get("model-index", []) for result in model["results"]):
        if not ({"task", "dataset", "metrics"} <= set(result) and {"name", "type"} <= set(result["dataset"])):
            problems.append('a result of "model-index" lacks its task, dataset or metrics')
    return problems
