"""Every fault at every writing step: what a command leaves when it dies, and whether the same command then ends well.

The commands run as they are, on the bundled checkpoint and on the tiny official one, each in a process of its own that
is forked from this one after the imports. An audit hook counts what a command does to files below the folder it works
in (open for writing, move, make, remove, cut), and calls of the libraries that write weights past Python; at a chosen
one it lets the fault happen. The commands know nothing of it.

The rule, for every fault at every step:

1. What stands where the result belongs is not there, or it is the whole result.
2. The same command then goes on or begins anew and ends with the result of a run without faults.
3. Nothing else is left in the folder.

    python tests/faults/run.py --every 1 --output model_cards/results/faults.json
"""

# ruff: noqa: E402

import argparse
import errno
import hashlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "conversion")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import peft  # noqa: F401
import safetensors.torch
import torch
import transformers.models.auto.modeling_auto
import transformers.trainer  # noqa: F401

import convert_checkpoint
import parity
from training_runs import command_line, write_data
from transformers_lladav import BUNDLED_CHECKPOINT, asking, batch_run, cli, eval_run, train  # noqa: F401
from transformers_lladav.files import write_text
from transformers_lladav.shape_scenes import make_scene, render_scene

WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
FAULTS = ("kill", "term", "torn", "full", "gone")
DISKS = (8_000, 40_000, 300_000, 1_200_000)  # bytes of a disk that a command fills, in the mounted part of the matrix
NO_MOUNT = "a tmpfs cannot be mounted here (that takes root)"


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        name: what the table calls it.
        main: runs it, given its folder.
        result: of the folder, what stands there when all is done; `None` if the run is not done.
        done: what it says when it is repeated on a whole result, if it refuses that.
        inputs: files of it that may vanish.
        prepare: fills its folder before it runs the first time.
    """

    name: str
    main: Callable[[Path], None]
    result: Callable[[Path], str | None]
    done: str | None = None
    inputs: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda folder: None


def digest(folder: Path, *patterns: str) -> str | None:
    """Of the files that match, with their names; none if a pattern has no match."""
    found = hashlib.sha256()
    for pattern in patterns:
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not files:
            return None
        for path in files:
            # Some say where they lie, which is another place where a disk is mounted.
            content = path.read_bytes().replace(str(folder).encode(), b"HERE")
            found.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    return found.hexdigest()


def script(main: Callable[[list[str]], int], *arguments: str) -> None:
    """A script of `conversion/`."""
    from command_line import run as guarded

    sys.argv = ["script", *arguments]
    sys.exit(guarded(main, list(arguments)))


def program(*arguments: str) -> None:
    """The command `lladav`."""
    batch_run.BATCHES_OF_A_WINDOW = 1
    sys.argv = ["lladav", *arguments]
    cli.main()


def draw(folder: Path) -> None:
    """Records to answer."""
    records = []
    for number in range(4):
        render_scene(make_scene("test", number), 96).save(folder / f"{number}.png")
        records.append({"image": f"{number}.png", "question": "How many shapes are there?", "answer": "one"})
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def copy_official(folder: Path) -> None:
    """The tiny official checkpoint."""
    shutil.copytree(parity.OFFICIAL, folder / "official")


SHORT = ("--max-new-tokens", "8", "--threshold", "0.5", "--batch-size", "2", "--device", "cpu")
COMMANDS = (
    Command(
        "convert",
        lambda folder: script(
            convert_checkpoint.main, "--source", str(folder / "official"), "--output", str(folder / "out"),
            "--vision-config", str(parity.FOLDER / "checkpoint-siglip" / "config.json"), "--max-shard-size", "0.0003",
        ),
        lambda folder: digest(folder / "out", "**/*"),
        "exists and is not empty",
        ("official/model*.safetensors",),
        copy_official,
    ),
    Command(
        "batch",
        lambda folder: program("batch", str(folder / "records.jsonl"), str(folder / "out.jsonl"), *SHORT),
        lambda folder: digest(folder, "out.jsonl"),
        "is there already",
        ("3.png",),
        draw,
    ),
    Command(
        "eval",
        lambda folder: program(
            "eval", "--tasks", str(folder / "records.jsonl"), "--output", str(folder / "out"), "--sheet", "2", *SHORT
        ),
        lambda folder: digest(folder, "out/result.json", "out/result.md", "out/answers.jsonl", "out/settings.json")
        if (folder / "out" / "result.json").exists() else None,
        None,
        ("3.png",),
        draw,
    ),
    Command(
        "train",
        lambda folder: program(
            *command_line("lora", folder / "train.csv", folder / "out", "--set", "max_steps=2", "--set",
                          "checkpoint_every=1", "--set", "global_batch_size=2", "--set", "device_batch_size=2",
                          "--set", "keep_checkpoints=1")
        ),
        # Training may be killed after the product and before the card, which comes with the next run.
        lambda folder: digest(folder, "out/adapter/*.safetensors", "out/adapter/recipe.json")
        if (folder / "out" / "adapter").exists() else None,
        None,
        ("train-3.png",),
        lambda folder: write_data(folder, 4) and None,
    ),
)  # fmt: skip


@dataclass
class Watch:
    """Counts writes below a folder and lets the fault happen at one of them.

    Attributes:
        folder: of the command.
        fault: one of `FAULTS`; None to count only.
        at: number of the write, from 0.
        inputs: what vanishes.
        steps: what was written, in order, as the table names it.
    """

    folder: Path
    fault: str | None = None
    at: int = -1
    inputs: tuple[str, ...] = ()
    steps: list[str] = field(default_factory=list)
    inside: bool = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event not in WATCHED or self.inside or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not set(str(arguments[1] or "")) & set("wax+"):
            return
        path = Path(os.fspath(arguments[1 if event == "os.rename" else 0]))
        if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] >= 0:  # names below an open folder
            path = Path(os.readlink(f"/proc/self/fd/{arguments[-1]}")) / path
        path = path.absolute()
        if path.is_relative_to(self.folder):
            self.step(event.removeprefix("os."), path)

    def step(self, kind: str, path: Path) -> None:
        """Note a write, and let the fault happen if it is the one."""
        self.inside = True
        try:
            name = re.sub(r"\.[0-9a-f]{8}\.", ".*.", str(path.relative_to(self.folder)))
            self.steps.append(f"{kind} {name}")
            if len(self.steps) - 1 == self.at and self.fault is not None:
                self.happen(path, kind)
        finally:
            self.inside = False

    def happen(self, path: Path, kind: str) -> None:
        """The fault."""
        if self.fault == "torn" and kind in ("open", "write"):
            with open(path, "ab") as file:
                file.write(b'{"half": ')
        if self.fault in ("kill", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.fault == "full":
            if kind in ("open", "write", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.fault == "gone":
            for pattern in self.inputs:
                for file in self.folder.glob(pattern):
                    file.rename(file.with_name(f"{file.name}.gone"))

    def install(self) -> None:
        """Watch this process, for as long as it lives."""
        sys.addaudithook(self.audit)
        for owner, name, place in ((safetensors.torch, "serialize_file", 1), (torch, "save", 1)):
            self._wrap(owner, name, place)

    def _wrap(self, owner: Any, name: str, place: int) -> None:
        """Libraries that write past Python: a step before the call."""
        call = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            target = arguments[place]
            if isinstance(target, str | os.PathLike) and Path(target).absolute().is_relative_to(self.folder):
                self.step("write", Path(target).absolute())
            return call(*arguments, **options)

        setattr(owner, name, watched)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, negative for a signal.
        said: on both streams.
        steps: what it wrote.
    """

    code: int
    said: str
    steps: list[str]


def run(
    command: Command, folder: Path, scratch: Path, watch: Watch | None = None, largest: int | None = None
) -> Ended:
    """Run a command in a process of its own.

    Args:
        command: which.
        folder: of its files.
        scratch: for what it says.
        watch: lets a fault happen; a new one counts.
        largest: bytes of the largest file that it may write; no limit by default.

    Returns:
        How it ended.
    """
    said, steps = scratch / "said.txt", scratch / "steps.txt"
    steps.write_text("")
    child = os.fork()
    if not child:
        code = 70
        try:
            with said.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            watch = watch or Watch(folder)
            watch.install()
            command.main(folder)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        except BaseException:  # what a command lets through is a finding
            import traceback

            traceback.print_exc()
        finally:
            with suppress(OSError, AttributeError):
                steps.write_text("\n".join(watch.steps))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    text = said.read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), text, steps.read_text().splitlines())


def entries(folder: Path) -> list[str]:
    """All that stands in a folder; of checkpoints the names that do not depend on the time."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in names if "events.out" not in name)


@dataclass
class Case:
    """A command with its folder made and its result known."""

    command: Command
    start: Path
    scratch: Path
    wanted: str = ""
    steps: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def measure(self, folder: Path) -> None:
        """Run without faults, to know what they must not change."""
        fill(folder, self.start)
        ended = run(self.command, folder, self.scratch)
        if ended.code:
            raise RuntimeError(f"{self.command.name} ended with {ended.code}: {ended.said}")
        wanted = self.command.result(folder)
        assert wanted is not None, f"{self.command.name} left no result"
        self.wanted, self.steps, self.left = wanted, ended.steps, entries(folder)

    def judge(self, folder: Path, ended: Ended) -> str | None:
        """What breaks the rule after a fault; None if nothing does."""
        if ended.code == 70 or "Traceback" in ended.said:
            return f"a trace: {ended.said.strip().splitlines()[-1][:200]}"
        if (found := self.command.result(folder)) not in (None, self.wanted):
            return "what stands in the place of the result is not the result"
        for file in folder.rglob("*.gone"):
            file.rename(file.with_name(file.name.removesuffix(".gone")))
        again = run(self.command, folder, self.scratch)
        whole = found is not None and self.command.done is not None
        if again.code and not (whole and self.command.done in again.said):  # type: ignore[operator]
            return f"the same command ends with {again.code}: {again.said.strip()[-300:]}"
        if self.command.result(folder) != self.wanted:
            return "the same command ends with another result"
        return None

    def leftovers(self, folder: Path) -> list[str]:
        """What is there that a run without faults does not leave."""
        return sorted(set(entries(folder)) - set(self.left))


def fill(folder: Path, start: Path) -> None:
    """Make a folder as it was before the command ran; the folder itself may be a mount."""
    for path in folder.iterdir() if folder.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(start, folder, dirs_exist_ok=True)


def faults_of(case: Case, folder: Path, every: int, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Let every kind of fault happen at every so manieth step.

    Yields:
        A row for each.
    """
    for kind in kinds:
        if kind == "gone" and not case.command.inputs:
            continue
        # Only what is being written can be torn.
        at = [n for n, step in enumerate(case.steps) if kind != "torn" or step.startswith(("open", "write"))]
        for number in at[:: every if kind == "kill" else 3 * every]:
            fill(folder, case.start)
            ended = run(case.command, folder, case.scratch, Watch(folder, kind, number, case.command.inputs))
            problem = case.judge(folder, ended) or _left(case, folder)
            if kind in ("kill", "torn") and ended.code != -signal.SIGKILL:
                problem = f"the fault did not happen; it ended with {ended.code}"
            yield {"command": case.command.name, "fault": kind, "step": case.steps[number], "problem": problem}


def two_at_once(case: Case, folder: Path) -> Iterator[dict[str, Any]]:
    """The same command twice at the same time in the same folder: one does it, and the other refuses or finds it done.

    Yields:
        A row.
    """
    fill(folder, case.start)
    spaces = [case.scratch / name for name in ("one", "other")]
    for space in spaces:
        space.mkdir(exist_ok=True)
    children = []
    for space in spaces:
        child = os.fork()
        if not child:
            ended = run(case.command, folder, space)
            (space / "code.txt").write_text(str(ended.code))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    codes = sorted(int((space / "code.txt").read_text()) for space in spaces)
    said = "; ".join((space / "said.txt").read_text().strip()[-200:] for space in spaces)
    problem = None
    if codes not in ([0, 0], [0, 1], [0, 2]) or "Traceback" in said:
        problem = f"they end with {codes}: {said}"
    elif case.command.result(folder) != case.wanted:
        problem = "the result is another one"
    problem = problem or _left(case, folder)
    yield {"command": case.command.name, "fault": "two at once", "step": "from the start", "problem": problem}


def _left(case: Case, folder: Path) -> str | None:
    """What is there beside the result and what the command works with."""
    found = case.leftovers(folder)
    return f"left behind: {', '.join(found[:5])}" if found else None


@contextmanager
def disk(size: int) -> Iterator[Path | None]:
    """A disk of a size; None where it cannot be mounted."""
    place = Path(tempfile.mkdtemp(prefix="disk-"))
    mounted = False
    try:
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
        mounted = shutil.which("mount") is not None and not subprocess.run(options, capture_output=True).returncode
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
        place.rmdir()


def remount(place: Path, options: str) -> None:
    """Change a mounted disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)


def disks_of(case: Case) -> Iterator[dict[str, Any]]:
    """Disks that are full, then have room; and one that can only be read.

    Yields:
        A row for each, with the reason where it was skipped.
    """
    used = sum(path.stat().st_blocks * 512 for path in case.start.rglob("*"))
    for room in (*DISKS, None):
        row = {
            "command": case.command.name,
            "fault": "a disk that can only be read" if room is None else f"a disk with room for {room:,} bytes",
            "step": "wherever it is full" if room else "the first",
        }
        with disk(64 << 20) as folder:
            if folder is None:
                yield {**row, "problem": None, "skipped": NO_MOUNT}
                continue
            fill(folder, case.start)
            remount(folder, "ro" if room is None else f"size={used + room}")
            before = entries(folder)
            ended = run(case.command, folder, case.scratch)
            if ended.code == 0 and room is not None:
                continue  # it was large enough
            problem = None
            if room is None and (ended.code not in (1, 2) or entries(folder) != before):
                problem = f"it ends with {ended.code}: {ended.said[-300:]}"
            remount(folder, f"rw,size={64 << 20}")
            problem = problem or case.judge(folder, ended) or _left(case, folder)
            yield {**row, "problem": problem, "said": ended.said.strip().splitlines()[-1:][:1]}


def serving(scratch: Path) -> Iterator[dict[str, Any]]:
    """A server that dies in the middle of an answer: who listens is not kept waiting, and the next one answers alike.

    Yields:
        A row for each signal.
    """
    question = {
        "messages": [{"role": "user", "content": "Describe the picture."}],
        "max_tokens": 128,
        "temperature": 0,
    }
    port, child = _serve(scratch)
    try:
        with _asked(port, question) as answer:
            wanted = json.load(answer)["choices"][0]["message"]["content"]
        for name in ("SIGKILL", "SIGTERM"):
            problem = None
            with _asked(port, {**question, "stream": True}) as stream:
                stream.readline()
                os.kill(child, getattr(signal, name))
                with suppress(http.client.HTTPException, OSError):
                    stream.read()  # ends: with an error, or because the server lets it finish
            os.waitpid(child, 0)
            child = 0
            port, child = _serve(scratch, port)
            with _asked(port, question) as answer:
                if json.load(answer)["choices"][0]["message"]["content"] != wanted:
                    problem = "the next server answers otherwise"
            yield {"command": "serve", "fault": name, "step": "in the middle of an answer", "problem": problem}
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _serve(scratch: Path, port: int = 0) -> tuple[int, int]:
    """Start a server; its port and process, once it answers."""
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
    child = os.fork()
    if not child:
        with (scratch / "serve.txt").open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with suppress(SystemExit):
            program("serve", "--port", str(port), "--device", "cpu")
        os._exit(0)
    for _ in range(600):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30):
            return port, child
        if os.waitpid(child, os.WNOHANG)[0]:
            raise RuntimeError(f"the server ended: {(scratch / 'serve.txt').read_text()}")
        time.sleep(0.1)
    raise RuntimeError("the server does not answer")


def _asked(port: int, question: dict[str, Any]) -> Any:
    """The response to a question."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps({"model": "lladav-bundled", **question}).encode(),
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=120)


def matrix(
    every: int, names: tuple[str, ...], kinds: tuple[str, ...], mounts: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Try everything.

    Args:
        every: so manieth writing step for a kill; three times as rarely for the others.
        names: of the commands.
        kinds: of the faults.
        mounts: whether to try disks as well.
        say: is told what breaks the rule.

    Returns:
        The table.
    """
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        base = Path(name).resolve()
        steps: dict[str, Any] = {}
        for command in (command for command in COMMANDS if command.name in names):
            start, folder, scratch = (base / command.name / part for part in ("start", "work", "scratch"))
            for path in (start, scratch):
                path.mkdir(parents=True)
            command.prepare(start)
            case = Case(command, start, scratch)
            case.measure(folder)
            steps[command.name] = {"steps": len(case.steps), "killed_at_every": every}
            found = faults_of(case, folder, every, tuple(kind for kind in kinds if kind in FAULTS))
            pairs = two_at_once(case, folder) if "pair" in kinds else ()
            for row in (*found, *pairs, *(disks_of(case) if mounts else ())):
                rows.append(row)
                if row["problem"]:
                    say(f"{row['command']}, {row['fault']} at {row['step']}: {row['problem']}")
            say(f"{command.name}: {len(case.steps)} steps, {time.monotonic() - began:.0f} s")
        if "serve" in names:
            rows += serving(base)
            say(f"serve: {time.monotonic() - began:.0f} s")
    return {
        "command": "python tests/faults/run.py",
        "writing_steps": steps,
        "tried": summary(rows),
        "skipped": sorted({row["skipped"] for row in rows if row.get("skipped")}),
        "problems": [row for row in rows if row["problem"]],
    }


def together(earlier: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A table with the rows of an earlier one for commands that were not tried again.

    Args:
        earlier: the table that is there.
        table: the new one.

    Returns:
        Both.
    """
    again = {row["command"] for row in table["tried"]}
    kept = {name: [row for row in earlier[name] if row["command"] not in again] for name in ("tried", "problems")}
    return {
        **table,
        "writing_steps": {**earlier["writing_steps"], **table["writing_steps"]},
        "tried": sorted(kept["tried"] + table["tried"], key=lambda row: str(row["command"])),
        "skipped": sorted({*earlier["skipped"], *table["skipped"]}),
        "problems": kept["problems"] + table["problems"],
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often each fault was tried on each command and how often the rule held."""
    tried = Counter((row["command"], row["fault"]) for row in rows if not row.get("skipped"))
    held = Counter((row["command"], row["fault"]) for row in rows if not row.get("skipped") and not row["problem"])
    return [
        {"command": command, "fault": fault, "tried": count, "held": held[command, fault]}
        for (command, fault), count in tried.items()
    ]


def main() -> int:
    """The command line.

    Returns:
        0 if the rule held everywhere.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="kill at every so manieth writing step")
    parser.add_argument("--commands", default=",".join([*(command.name for command in COMMANDS), "serve"]))
    parser.add_argument("--faults", default=",".join((*FAULTS, "pair")))
    parser.add_argument("--no-disks", action="store_true", help="mount nothing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201

    table = matrix(
        options.every, tuple(options.commands.split(",")), tuple(options.faults.split(",")), not options.no_disks, say
    )
    if options.output and options.output.exists():
        table = together(json.loads(options.output.read_text()), table)
    if options.output:
        write_text(options.output, json.dumps(table, indent=1) + "\n")
    return 1 if table["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
