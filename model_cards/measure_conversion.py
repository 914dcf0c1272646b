"""Measure memory and time of a conversion, on a synthetic official checkpoint with the real shapes and fewer layers.

Writes results/conversion.json, from which render_readme.py makes the table. The figures for the whole checkpoint are
arithmetic on its shapes and are labelled so.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from transformers_lladav import LladaVConfig
from transformers_lladav.checkpoint_keys_lladav import official_key
from transformers_lladav.files import write_text
from transformers_lladav.publishing import model_shapes
from transformers_lladav.weights import INDEX, NewTensor, plan_shards

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "model_cards" / "results" / "conversion.json"
TOKENIZER = ROOT / "tests" / "fixtures" / "parity" / "checkpoint-official"
SCRIPT = ROOT / "conversion" / "convert_checkpoint.py"
OFFICIAL_SHARD_BYTES = 4_900_000_000  # as releases are commonly cut
NOISE = 1 << 20


def official_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Shapes of LLaDA-V 8B by official name, with so many layers in the language model."""
    shapes = model_shapes(LladaVConfig(text_config={"num_hidden_layers": layers}))
    return {official_key(name): shape for name, shape in shapes.items()}


def total_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """Size in bfloat16."""
    return sum(2 * torch.Size(shape).numel() for shape in shapes.values())


def shard_sizes(shapes: dict[str, tuple[int, ...]], **limits: int) -> dict[str, list[str]]:
    """How tensors are dealt out to files."""
    meta = {name: NewTensor(torch.empty(shape, dtype=torch.bfloat16, device="meta")) for name, shape in shapes.items()}
    return plan_shards(meta, **limits)


def largest_shard(shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes of the largest file that a conversion writes."""
    return max(total_bytes({name: shapes[name] for name in names}) for names in shard_sizes(shapes).values())


def write_synthetic(folder: Path, layers: int) -> None:
    """Write an official checkpoint of the real shapes in bfloat16.

    Args:
        folder: an existing folder.
        layers: of the language model; the vision tower has all of its own.
    """
    config = json.loads((TOKENIZER / "config.json").read_text())
    text = LladaVConfig().text_config
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    config |= {name: getattr(text, name) for name in sizes} | {"num_hidden_layers": layers, "mm_hidden_size": 1152}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    shapes = official_shapes(layers)
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight_map = {}
    for file, names in shard_sizes(shapes, max_shard_bytes=OFFICIAL_SHARD_BYTES).items():
        save_file({name: _fill(shapes[name], noise) for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(set(weight_map.values())) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _fill(shape: tuple[int, ...], noise: torch.Tensor) -> torch.Tensor:
    entries = torch.Size(shape).numel()
    return noise.repeat(-(-entries // NOISE))[:entries].reshape(shape)


def run_measured(command: list[str]) -> dict[str, float]:
    """Run a command and watch its memory.

    Args:
        command: the command.

    Returns:
        Seconds, peak resident bytes (pages of mapped files included) and peak anonymous bytes (without them).

    Raises:
        RuntimeError: if it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    peaks = {"RssAnon": 0, "VmHWM": 0}
    # Not the peak that the system reports at the end: that one holds this process's memory at the moment of the fork.
    while process.poll() is None:
        for name, size in _memory(process.pid).items():
            peaks[name] = max(peaks[name], size)
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    return {"seconds": seconds, "peak_bytes": peaks["VmHWM"], "peak_anonymous_bytes": peaks["RssAnon"]}


def _memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = (line.split() for line in lines if line.startswith(("RssAnon:", "VmHWM:")))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in found}


def measure(layers: int, repeats: int, scratch: Path) -> dict[str, Any]:
    """Convert a synthetic checkpoint several times, each time after a plain copy of its files.

    Args:
        layers: of its language model.
        repeats: how many times.
        scratch: a folder with room for three times the checkpoint.

    Returns:
        The result document.
    """
    source, copy, output = scratch / "official", scratch / "copy", scratch / "converted"
    source.mkdir()
    write_synthetic(source, layers)
    runs, copies = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        shutil.copytree(source, copy)
        copies.append(time.perf_counter() - start)
        shutil.rmtree(copy)
        runs.append(run_measured([sys.executable, str(SCRIPT), "--source", str(source), "--output", str(output)]))
        shutil.rmtree(output)
    return _document(layers, runs, copies)


def _document(layers: int, runs: list[dict[str, float]], copies: list[float]) -> dict[str, Any]:
    shapes, whole = official_shapes(layers), official_shapes(LladaVConfig().text_config.num_hidden_layers)
    seconds = statistics.median(run["seconds"] for run in runs)
    peak = max(run["peak_bytes"] for run in runs)
    growth = total_bytes(whole) / total_bytes(shapes)
    return {
        "command": f"python model_cards/measure_conversion.py --layers {layers} --repeats {len(runs)}",
        "measured": {
            "language_layers": layers,
            "checkpoint_bytes": total_bytes(shapes),
            "largest_output_file_bytes": largest_shard(shapes),
            "peak_bytes": peak,
            "peak_anonymous_bytes": max(run["peak_anonymous_bytes"] for run in runs),
            "seconds": seconds,
            "plain_copy_seconds": statistics.median(copies),
            "runs": runs,
        },
        "extrapolated": {
            "language_layers": LladaVConfig().text_config.num_hidden_layers,
            "checkpoint_bytes": total_bytes(whole),
            "largest_output_file_bytes": largest_shard(whole),
            "peak_bytes": round(peak + largest_shard(whole) - largest_shard(shapes)),
            "seconds": seconds * growth,
        },
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": version("torch"),
            "safetensors": version("safetensors"),
        },
    }


def main(argv: list[str] | None = None) -> None:
    """The command line.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=4, help="layers of the language model (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="conversions (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        document = measure(arguments.layers, arguments.repeats, Path(scratch))
    write_text(arguments.output, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
