"""transformers' Trainer for masked diffusion: batches, optimiser groups, held-out answers, checkpoints that are whole.

What Trainer does well is left to it: the loop, accumulation, mixed precision, FSDP2 and ZeRO-3, resuming, early stop.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from .batches import TrainingBatches
from .collation import Collator
from .files import write_text
from .held_out import HeldOutQuestion, answer_questions
from .processes import worker_options
from .recipes import Recipe
from .samples import Numbered
from .trainable import parameter_groups

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
COMPLETE = "complete"
GENERATION_BATCH = 8
# Fields of a recipe that say what is learned of a sample, in training and evaluation alike.
COLLATED = (
    "max_length", "image_separator", "prompt", "chat_share", "answers_only", "answer_canvas", "canvas_turns",
    "block_noise", "holes", "sparse_noise", "conversation_mask", "seed",
)  # fmt: skip


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoints count once they are whole; the older ones go only after that.

    Attributes:
        keep_checkpoints: how many of the latest stay, beside the best.
    """

    keep_checkpoints = 2

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer does it, but a checkpoint counts only once it is whole, and older ones go only after that."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        # Processes look for the folder of the best checkpoint, each for itself, before sharded weights make it.
        folder.mkdir(parents=True, exist_ok=True)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            last = last_checkpoint(Path(self.args.output_dir))
            kept = f"{last} is the last one" if last else "there is no earlier one"
            raise OSError(
                f"{folder} could not be written and was removed: {error}. {kept}; make room and repeat the command to "
                "go on"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
            write_text(folder / COMPLETE, f"step {self.state.global_step}\n")
            best = self.state.best_model_checkpoint
            prune_checkpoints(folder.parent, self.keep_checkpoints, Path(best) if best else None)


class DiffusionTrainer(WholeCheckpoints):
    """Trains a LLaDA-V by a recipe.

    Args:
        recipe: what to do.
        prepared: model and processor, from `training_model.load_for_training`.
        args: from `run_settings.training_arguments`.
        train_data: samples with numbers, or a stream of them.
        held_out: samples with numbers that the loss at fixed noise is measured on, if there are some.
        questions: held-out conversations that are answered by generation.
        lengths: tokens of each sample of the training data, to group them by.
        callbacks: more of them.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: Any,
        args: TrainingArguments,
        train_data: Any,
        held_out: Numbered | None = None,
        questions: Sequence[HeldOutQuestion] = (),
        lengths: Sequence[int] | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.recipe, self.processor = recipe, prepared.processor
        self.keep_checkpoints = recipe.keep_checkpoints
        self.questions, self.lengths = questions, lengths
        options = {name: getattr(recipe, name) for name in COLLATED}
        collator = Collator(
            prepared.processor,
            train_on_padding=recipe.train_on_padding,
            complementary=recipe.complementary,
            packing=recipe.packing,
            too_long="drop",  # those that cannot be cut were found before
            sample_numbers=True,
            **options,
        )
        self.eval_collator = Collator(prepared.processor, fixed_noise=True, sample_numbers=True, **options)
        super().__init__(
            model=prepared.model,
            args=args,
            data_collator=collator,
            train_dataset=train_data,
            eval_dataset=held_out,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # figures go to `training_callbacks.Report`
        # Processes wait for one another's gradients and shards: all of them have to run the tower in every step.
        collator.fill_in_picture = self.eval_collator.fill_in_picture = self.args.world_size > 1
        self.sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.is_fsdp_enabled:
            _keep_losses_precise(self.accelerator.state.fsdp_plugin)

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches whose order depends on seed and epoch, not on the number of devices."""
        options = {
            "collate_fn": self.data_collator,
            "persistent_workers": self.args.dataloader_num_workers > 0,
            **worker_options(self.args.dataloader_num_workers),
            "pin_memory": self.args.dataloader_pin_memory,
            # Its own: workers that outlive an epoch draw no seed for the next one, but those of a resumed run do.
            "generator": torch.Generator().manual_seed(self.recipe.seed),
        }
        if isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            loader = DataLoader(self.train_dataset, batch_size=self.recipe.device_batch_size, **options)
        else:
            batches = TrainingBatches(
                self.train_dataset,
                self.recipe.global_batch_size,
                self.recipe.device_batch_size,
                seed=self.recipe.seed,
                lengths=self.lengths,
            )
            loader = DataLoader(self.train_dataset, batch_sampler=batches, **options)
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The held-out samples in order, with noise that is the same every time."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.accelerator.prepare(
            DataLoader(
                data,
                batch_size=self.args.per_device_eval_batch_size,
                sampler=SequentialSampler(data),
                collate_fn=self.eval_collator,
                **worker_options(self.args.dataloader_num_workers),
            )
        )

    # Steps

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a rate of its own for the tower, and decay for matrices only."""
        if self.optimizer is None:
            groups = parameter_groups(self.model if model is None else model, self.recipe)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer: Any = kind(groups, **options)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss; one that is no number stops the run before it does harm."""
        numbers = inputs.pop("sample_numbers", None)
        outputs = model(**inputs)
        if not torch.isfinite(outputs.loss):
            raise FloatingPointError(self._explain_loss(outputs.loss.item(), numbers))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _explain_loss(self, loss: float, numbers: torch.Tensor | None) -> str:
        data = self.train_dataset if self.model.training else self.eval_dataset
        counted = not isinstance(data, torch.utils.data.IterableDataset)
        names = [
            data[number].source if counted and number >= 0 else f"sample {number}"
            for number in ([] if numbers is None else numbers.tolist())
        ]
        last = last_checkpoint(Path(self.args.output_dir))
        kept = f"{last} stays" if last else "no checkpoint was written before"
        samples = ", ".join(names) or "unnumbered samples"
        return (
            f"the loss is {loss} at step {self.state.global_step + 1}, with {samples}; {kept}. Look at these samples "
            f"(lladav data preview), lower learning_rate={self.recipe.learning_rate:g}, or compute in another "
            "precision (--set precision=fp32)"
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer does it, but a run that is taken up makes up for an evaluation, and goes no step too far."""
        if self._evaluation_is_missing():
            self._determine_best_metric(metrics=self.evaluate(), trial=None)
        stops = [call for call in self.callback_handler.callbacks if isinstance(call, EarlyStoppingCallback)]
        out_of_patience = any(call.early_stopping_patience_counter >= call.early_stopping_patience for call in stops)
        if self.state.global_step >= self.state.max_steps or out_of_patience:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _evaluation_is_missing(self) -> bool:
        """Whether a signal came when there should have been an evaluation."""
        step = self.state.global_step
        if self.args.eval_strategy == "no" or step == 0 or step % self.args.eval_steps:
            return False
        return not any("eval_loss" in record and record["step"] == step for record in self.state.log_history)

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The loss, as ever, and the share of held-out answers that are right to the letter.

        Training goes on as if there had been no evaluation: what is drawn here is not missing there.
        """
        prefix = kwargs.get("metric_key_prefix", "eval")
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            output = super().evaluation_loop(*args, **{**kwargs, "prediction_loss_only": True})
            if self.questions:  # every process answers all of them, so that sharded ones take the same steps
                model = self.accelerator.unwrap_model(self.model)
                with self.accelerator.autocast():
                    together = max(GENERATION_BATCH, self.recipe.device_batch_size)
                    replies = answer_questions(model, self.processor, self.questions, together)
                output.metrics[f"{prefix}_exact_match"] = sum(reply.right for reply in replies) / len(replies)
        return output


def _keep_losses_precise(plugin: Any) -> None:
    """Sum gradients in float32, and leave inputs as they are: autocast computes in half precision where it may.

    accelerate's policy for FSDP2 casts all inputs and outputs, so that loss weights and losses lose their digits.
    """
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin.fsdp_version == 2 and policy is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=policy.param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run that were written to the end.

    Args:
        folder: of the checkpoints.

    Returns:
        Their folders, oldest first.
    """
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return sorted((path for path in found if CHECKPOINT.fullmatch(path.name)), key=_step)


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to the end.

    Args:
        folder: of the checkpoints.

    Returns:
        Its folder, None if there is none.
    """
    whole = whole_checkpoints(folder)
    return whole[-1] if whole else None


def remove_broken_checkpoints(folder: Path) -> list[Path]:
    """Remove what a killed run left half-written.

    Args:
        folder: of the checkpoints.

    Returns:
        What was removed.
    """
    whole = set(whole_checkpoints(folder))
    broken = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path not in whole]
    for path in broken:
        shutil.rmtree(path)
    return broken


def prune_checkpoints(folder: Path, keep: int, best: Path | None) -> None:
    """Remove all but the latest checkpoints and the best one.

    Args:
        folder: of the checkpoints.
        keep: how many of the latest stay.
        best: stays as well.
    """
    for path in whole_checkpoints(folder)[:-keep]:
        if best is None or path.name != best.name:
            (path / COMPLETE).unlink()  # from here on it is no checkpoint, however far the removal gets
            shutil.rmtree(path)


def _step(path: Path) -> int:
    match = CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else -1
