"""Settings for `accelerate launch`: read by accelerate itself, key by key, down to what a process is told."""

import os
from dataclasses import fields

import pytest
import torch
import yaml

from transformers_lladav.launching import FOLDER, configs, describe_config, find_config

pytest.importorskip("accelerate")

from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

NAMES = ["eight_gpus_ddp", "eight_gpus_fsdp2", "eight_gpus_zero3", "one_gpu", "two_nodes"]
SHARDED = ["eight_gpus_fsdp2", "two_nodes"]


def launched(name, *options):
    """What `accelerate launch` makes of the settings."""
    command = ["--config_file", str(find_config(name)), *options, "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return args


def test_settings_are_found_by_name():
    assert list(configs()) == NAMES
    assert find_config("two_nodes") == FOLDER / "two_nodes.yaml"


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(ValueError, match=rf"no launch settings 'ten_gpus'; choose one of {', '.join(NAMES)}"):
        find_config("ten_gpus")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_begins_with_what_it_is_for(name):
    described = describe_config(find_config(name))
    assert described.count(". ") >= 1
    assert "#" not in described
    assert "compute_environment" not in described


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key(name):
    """Its loader refuses unknown keys at the top, but takes any inside a section."""
    content = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    assert set(content) <= {field.name for field in fields(ClusterConfig)}
    assert isinstance(load_config_from_file(str(find_config(name))), ClusterConfig)
    options = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(content.get(section, {})) <= options


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_gpu", DistributedType.NO, 1, 1),
        ("eight_gpus_ddp", DistributedType.MULTI_GPU, 1, 8),
        ("eight_gpus_fsdp2", DistributedType.FSDP, 1, 8),
        ("eight_gpus_zero3", DistributedType.DEEPSPEED, 1, 8),
        ("two_nodes", DistributedType.FSDP, 2, 16),
    ],
)
def test_devices_and_precision(name, kind, machines, processes):
    settings = load_config_from_file(str(find_config(name)))
    assert (settings.distributed_type, settings.num_machines, settings.num_processes) == (kind, machines, processes)
    args = launched(name)
    assert (args.num_machines, args.num_processes, args.mixed_precision) == (machines, processes, "bf16")
    assert (args.use_fsdp, args.use_deepspeed, args.multi_gpu) == (
        kind is DistributedType.FSDP,
        kind is DistributedType.DEEPSPEED,
        kind is DistributedType.MULTI_GPU,
    )
    assert launched(name, "--num_processes", "4").num_processes == 4


@pytest.mark.parametrize("name", SHARDED)
def test_processes_are_told_to_shard_with_fsdp2(name, monkeypatch):
    """The plugin that a process builds from its environment, as `accelerate launch` sets it."""
    options = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"] if name == "two_nodes" else []
    environment = prepare_multi_gpu_env(launched(name, *options))
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    for key, value in environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None  # the model's `_no_split_modules` are taken
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.activation_checkpointing is False
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # which offloads nothing
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.param_dtype is torch.bfloat16


def test_two_nodes_meet_at_the_given_address():
    args = launched("two_nodes", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:29500")


def test_processes_are_told_to_shard_with_zero3():
    _, environment = prepare_deepspeed_cmd_env(launched_zero3())
    told = {key.removeprefix("ACCELERATE_"): value for key, value in environment.items()}
    assert told["USE_DEEPSPEED"] == "true"
    assert told["MIXED_PRECISION"] == "bf16"
    assert told["DEEPSPEED_ZERO_STAGE"] == "3"
    assert told["DEEPSPEED_ZERO3_INIT"] == "false"
    # accelerate writes it to stage3_gather_16bit_weights_on_model_save
    assert told["DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert told["DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == told["DEEPSPEED_OFFLOAD_PARAM_DEVICE"] == "none"


def launched_zero3():
    args = launched("eight_gpus_zero3")
    args.deepspeed_fields_from_accelerate_config = ""  # the launcher's own bookkeeping
    return args


def test_the_environment_of_this_process_is_left_alone():
    before = dict(os.environ)
    prepare_multi_gpu_env(launched("eight_gpus_fsdp2"))
    assert dict(os.environ) == before


def test_layers_to_shard_are_all_in_the_model(tiny_model):
    """accelerate looks for every class that `_no_split_modules` names, and stops where one is missing."""
    model = tiny_model()
    names = {type(module).__name__ for module in model.modules()}
    assert {"LladaVDecoderLayer", "SiglipEncoderLayer"} <= model._no_split_modules <= names
