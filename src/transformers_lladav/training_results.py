"""What a run leaves: an adapter or a complete checkpoint, with recipe, figures and card, whole or not at all."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .adapter_fit import write_base
from .cards import render_card
from .files import new_folder, write_text
from .publishing import save_checkpoint, write_config
from .recipes import Recipe
from .trainer import DiffusionTrainer
from .training_model import Prepared

ADAPTER, MODEL = "adapter", "model"
RECIPE, METRICS = "recipe.json", "metrics.json"


def final_metrics(history: list[dict[str, Any]], best_step: int | None) -> dict[str, Any]:
    """The figures of what a run ends with.

    Args:
        history: all that Trainer logged.
        best_step: of the checkpoint that is kept; the last figures by default.

    Returns:
        Held-out loss and exact match with their step, if there were held-out data, and the loss that was logged last
        in training, as a mean over ten records.
    """
    losses = [record["loss"] for record in history if "loss" in record][-10:]
    metrics: dict[str, Any] = {"train_loss": sum(losses) / len(losses)} if losses else {}
    for record in history:
        if "eval_loss" in record and best_step in (None, record["step"]):
            metrics |= {"step": record["step"], "eval_loss": record["eval_loss"]}
            if "eval_exact_match" in record:
                metrics["eval_exact_match"] = record["eval_exact_match"]
    return metrics


def write_result(
    folder: Path, trainer: DiffusionTrainer, prepared: Prepared, recipe: Recipe, metrics: dict[str, Any]
) -> None:
    """Write the product of a run; all processes of it have to call this.

    Args:
        folder: where; what an earlier run left there is replaced when the new one is complete.
        trainer: holds the trained model.
        prepared: the model as it was loaded.
        recipe: written beside the weights.
        metrics: written beside the weights.

    Raises:
        OSError: if it cannot be written; the checkpoints stay.
    """
    state = _gathered(trainer, recipe) if trainer.sharded else None
    if trainer.is_world_process_zero():
        try:
            _write(folder, trainer, prepared, recipe, state, metrics)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"{folder} could not be written: {error}. The checkpoints stay; make room and repeat the command, "
                "which will go on from there"
            ) from error
    trainer.accelerator.wait_for_everyone()


def _write(
    folder: Path,
    trainer: DiffusionTrainer,
    prepared: Prepared,
    recipe: Recipe,
    state: dict[str, Any] | None,
    metrics: dict[str, Any],
) -> None:
    """Adapter or model with all that goes beside it."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    with new_folder(folder, replace=True) as scratch:
        if recipe.lora is not None:
            model.peft_config[model.active_adapter].base_model_name_or_path = _lasting(prepared.source)
            model.save_pretrained(scratch, state_dict=state)
            write_base(prepared.base, scratch)
        else:
            _write_model(model, prepared, state, scratch)
        write_text(scratch / RECIPE, recipe.to_json())
        write_text(scratch / METRICS, json.dumps(metrics, indent=2) + "\n")
    write_text(folder / "README.md", str(render_card(folder)))


def _gathered(trainer: DiffusionTrainer, recipe: Recipe) -> dict[str, Any]:
    """The tensors of a sharded model on the first process; of one with adapters only what was trained."""
    if recipe.lora is None or not trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(trainer.model_wrapped, options=options)


def _write_model(model: Any, prepared: Prepared, state: dict[str, Any] | None, folder: Path) -> None:
    """A complete checkpoint, in the type it was loaded from."""
    state = model.state_dict() if state is None else state
    stored = {name: tensor.to(prepared.stored_dtype) for name, tensor in state.items()}
    save_checkpoint(model, prepared.processor, folder, state_dict=stored)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config.dtype = prepared.stored_dtype  # save_pretrained names the type in memory
    write_config(model.config, folder)


def _lasting(source: str) -> str:
    """A source that means the same from another working folder."""
    return str(Path(source).resolve()) if Path(source).is_dir() else source
