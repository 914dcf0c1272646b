"""Python processes for tests, forked from ones that have imported the libraries: that takes a new one four seconds.

`run` and `start` are `subprocess.run` and `subprocess.Popen` for command lines `python SCRIPT`, `python -c CODE` and
`python -m MODULE`. What the processes find loaded is torch and small libraries, and transformers as well where their
environment has nothing of its own to say to Hugging Face's libraries; this package they always import themselves.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

TORCH = (
    "torch", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor",
    "torch.nn.attention.flex_attention", "sympy", "numpy", "PIL.Image", "tokenizers", "safetensors.torch", "jinja2",
    "yaml", "regex", "rich.console", "typer", "unittest.mock", "anyio", "psutil",
)  # fmt: skip
TRANSFORMERS = (
    "transformers.modeling_utils", "transformers.pipelines", "transformers.processing_utils",
    "transformers.models.llama.modeling_llama", "transformers.models.siglip.modeling_siglip",
)  # fmt: skip
_PARENTS = {}


# The side of the tests


class Process:
    """A process, with the part of `subprocess.Popen` that tests use; both streams are pipes of text.

    Args:
        arguments: of the interpreter, such as `["-m", "transformers_lladav", "ask"]`.
        env: the whole environment; the one of the tests by default.
        cwd: working folder.
        loaded: modules that it finds loaded; by default as many as the environment allows.
    """

    def __init__(self, arguments, env=None, cwd=None, loaded=None):
        self.args, self.returncode = [str(argument) for argument in arguments], None
        if loaded is None:
            loaded = TORCH + TRANSFORMERS if env is None or _to_libraries(env) == _to_libraries(os.environ) else TORCH
        out, err = os.pipe(), os.pipe()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_parent(loaded))
        wanted = {"argv": self.args, "env": dict(os.environ if env is None else env), "cwd": str(cwd or os.getcwd())}
        content = json.dumps(wanted).encode()
        socket.send_fds(self._connection, [len(content).to_bytes(8, "big")], [out[1], err[1]])
        self._connection.sendall(content)
        os.close(out[1])
        os.close(err[1])
        self.stdout, self.stderr = open(out[0], encoding="utf-8"), open(err[0], encoding="utf-8")  # noqa: SIM115
        self.pid = self._number()

    def _number(self):
        """The next number that the keeper of the process tells."""
        digits = b""
        while not digits.endswith(b"\n"):
            digits += self._connection.recv(1)
        return int(digits)

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._number()
            self._connection.close()
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout=None):
        texts = {}
        readers = [
            threading.Thread(target=lambda name=name: texts.update({name: getattr(self, name).read()}), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts.get("stdout", ""), texts.get("stderr", "")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stdout.close()
        self.stderr.close()
        self.wait()


def start(arguments, **options):
    """Start `python ARGUMENTS`."""
    return Process(arguments, **options)


def run(arguments, timeout=180, **options):
    """Run `python ARGUMENTS` to its end; what it printed is in the result."""
    process = Process(arguments, **options)
    try:
        printed = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def _to_libraries(environment):
    """What Hugging Face's libraries read when they are imported."""
    return {name: value for name, value in environment.items() if name.startswith(("HF_", "TRANSFORMERS_", "HUGGING"))}


def end():
    """End the processes that others are forked from."""
    for process, address in _PARENTS.values():
        process.stdin.close()
        process.wait()
        shutil.rmtree(Path(address).parent, ignore_errors=True)
    _PARENTS.clear()


def _parent(loaded):
    """Address of the process that others are forked from; each process of a parallel test run has its own."""
    key = os.getpid(), loaded
    if key not in _PARENTS:
        address = str(Path(tempfile.mkdtemp(prefix="lladav-python-")) / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        command = [sys.executable, __file__, str(listener.fileno()), *loaded]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # It ends when its standard input does, with the tests, however they end.
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], env=environment, stdin=subprocess.PIPE, start_new_session=True
        )
        listener.close()
        _PARENTS[key] = process, address
    return _PARENTS[key][1]


# The side of the processes


def _serve(listener):
    """Fork a keeper for each connection, which forks the process, waits for it and tells its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            sys.exit()
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        size, streams, _, _ = socket.recv_fds(connection, 8, 2)
        wanted = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        pid = os.fork()
        if not pid:
            connection.close()
            return wanted, streams
        for stream in streams:
            os.close(stream)
        connection.sendall(f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            connection.sendall(f"{code}\n".encode())
        finally:
            os._exit(0)


def _become(wanted, streams, search_path):
    """Set this process up as the interpreter would; return what is to be run."""
    for stream, place in zip(streams, (1, 2), strict=True):
        os.dup2(stream, place)
        os.close(stream)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    arguments = wanted["argv"]
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        arguments = arguments[1:]
    mode = arguments.pop(0) if arguments[0] in ("-c", "-m") else None
    what, *rest = arguments
    sys.argv = ["-c" if mode == "-c" else what, *rest]
    first = {"-c": "", "-m": wanted["cwd"], None: str(Path(what).resolve().parent)}[mode]
    sys.path[:] = [first, *filter(None, wanted["env"].get("PYTHONPATH", "").split(os.pathsep)), *search_path]
    sys.modules["__main__"] = types.ModuleType("__main__")
    return mode, what


def _go(mode, what):
    """Run it, and end as the interpreter ends, but for taking a thousand modules apart."""
    code = 0
    try:
        if mode == "-c":
            exec(compile(what, "<string>", "exec"), sys.modules["__main__"].__dict__)
        elif mode == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(what, run_name="__main__")
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def main():
    own = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    search_path = [path for path in sys.path if path not in own]
    descriptor, *loaded = sys.argv[1:]
    for name in loaded:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    _go(*_become(*_serve(socket.socket(fileno=int(descriptor))), search_path))


if __name__ == "__main__":
    main()
