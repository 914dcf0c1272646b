"""Train the bundled checkpoint from scratch: resumes exactly, logs as it goes, uses a GPU if there is one."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .evaluation import Score, evaluate
from .files import new_folder, write_text
from .publishing import save_checkpoint
from .recipes import TinyRecipe
from .tiny import CellReader, TinyStream, batch_loss, build_model, build_processor, fit_projector

Log = Callable[[dict[str, Any]], None]


def learning_rate(recipe: TinyRecipe, step: int) -> float:
    """Linear warm-up, then a cosine from the peak to the final rate.

    Args:
        recipe: gives rates and step counts.
        step: from 0.

    Returns:
        The rate of that step.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    span = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2


class TinyTrainer:
    """Holds a run: model, averaged weights, optimiser and the step it is at.

    Args:
        recipe: what to train.
        folder: where the state and the log of the run are kept; a state found there is continued.
    """

    def __init__(self, recipe: TinyRecipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = build_processor(recipe)
        self.model = build_model(recipe, self.processor).to(self.device)
        self.stream = TinyStream(recipe, self.processor)
        torch.manual_seed(recipe.seed + 1)
        self.reader = CellReader(recipe.vision_hidden).to(self.device)
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), betas=(0.9, 0.98))
        self.average = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        self.step = 0
        self.seconds = 0.0
        if (folder / "status.json").exists():
            self._resume()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Tower and rest, each as matrices, which decay, and the others, which do not."""
        groups = []
        for part in ("tower", "rest"):
            for decayed in (True, False):
                chosen = [
                    weight
                    for name, weight in self.weights()
                    if (part == "tower") == ("vision_tower" in name) and decayed == (weight.ndim > 1)
                ]
                decay = self.recipe.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "part": part})
        return groups

    def weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """All that is trained, by name: the model's parameters and the cell reader's."""
        yield from self.model.named_parameters()
        yield from ((f"reader.{name}", weight) for name, weight in self.reader.named_parameters())

    def _resume(self) -> None:
        status = json.loads((self.folder / "status.json").read_text())
        if status["recipe"] != json.loads(self.recipe.to_json()):
            raise ValueError(
                f"{self.folder} holds a run of another recipe; choose another --run folder, or remove this one"
            )
        tensors = load_file(self.folder / f"state-{status['step']}.safetensors")
        self.step, self.seconds = status["step"], status["seconds"]
        for name, weight in self.weights():
            weight.data.copy_(tensors[f"weight.{name}"])
            if name in self.average:
                self.average[name].copy_(tensors[f"average.{name}"])
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[weight] = {
                    "step": tensors[f"step.{name}"],
                    "exp_avg": tensors[f"exp_avg.{name}"].to(self.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self.device),
                }

    def save_state(self) -> None:
        """Write everything a later run continues from; a crash in between leaves the previous state."""
        tensors = {}
        for name, weight in self.weights():
            tensors[f"weight.{name}"] = weight.data
            if name in self.average:
                tensors[f"average.{name}"] = self.average[name]
            state = self.optimizer.state.get(weight, {})  # empty for the tower's final norm, which nothing reads
            tensors.update({f"{moment}.{name}": value for moment, value in state.items()})
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / f"state-{self.step}.safetensors"
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, kept)
        status = {"step": self.step, "seconds": round(self.seconds, 1), "recipe": json.loads(self.recipe.to_json())}
        write_text(self.folder / "status.json", json.dumps(status, indent=2) + "\n")
        for old in self.folder.glob("state-*.safetensors"):
            if old != kept:
                old.unlink()

    def train_step(self) -> float:
        """One optimiser step.

        Returns:
            The loss.

        Raises:
            FloatingPointError: if the loss is not finite; the last saved state stays.
        """
        self.model.train()
        rate = learning_rate(self.recipe, self.step)
        tower_alone = self.step < self.recipe.tower_steps
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (self.recipe.tower_rate if group["part"] == "tower" and not tower_alone else 1.0)
        loss = self._tower_loss() if tower_alone else self._answer_loss()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; lower learning_rate={rate:g}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.recipe.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                self.average[name].lerp_(weight, 1 - decay)
        self.step += 1
        return loss.item()

    def _tower_loss(self) -> torch.Tensor:
        pixels, labels = self.stream.cells(self.step)
        return self.reader.loss(self.model.model.encode_tiles(pixels.to(self.device)), labels.to(self.device))

    def _answer_loss(self) -> torch.Tensor:
        if self.step == self.recipe.tower_steps:
            fit_projector(self.model, self.stream.cells(self.step)[0].to(self.device))
        return batch_loss(self.model, self.stream.batch(self.step).to(self.device))

    def averaged_model(self) -> Any:
        """A copy of the model with the averaged weights, in evaluation mode."""
        model = build_model(self.recipe, self.processor).to(self.device)
        model.load_state_dict(self.average, strict=True)
        return model.eval()

    def run(self, log: Log, evaluate_every: int = 1000, questions: int = 140, save_every: int = 250) -> None:
        """Train to the recipe's last step.

        Args:
            log: gets a record about every 50 steps and after every evaluation.
            evaluate_every: steps between evaluations on the validation split; the blind baseline is part of each.
            questions: asked in each.
            save_every: steps between saved states.
        """
        started, losses = time.monotonic(), []
        while self.step < self.recipe.steps:
            losses.append(self.train_step())
            self.seconds += time.monotonic() - started
            started = time.monotonic()
            if self.step % 50 == 0:
                log({"step": self.step, "loss": sum(losses) / len(losses), "seconds": round(self.seconds, 1)})
                losses = []
            if self.step % evaluate_every == 0 or self.step == self.recipe.steps:
                scores = evaluate(self.averaged_model(), self.processor, "validation", questions)
                log({"step": self.step, "seconds": round(self.seconds, 1), "validation": _shares(scores)})
            if self.step % save_every == 0 or self.step == self.recipe.steps:
                self.save_state()


def _shares(scores: list[Score]) -> dict[str, list[float]]:
    return {score.kind: [score.accuracy, score.blind_correct / score.questions] for score in scores}


def export(trainer: TinyTrainer, folder: Path) -> None:
    """Write the averaged weights as a complete checkpoint in bfloat16, with processor, code files and recipe.

    Args:
        trainer: a finished run.
        folder: where; an older checkpoint there is replaced when the new one is complete.
    """
    model = trainer.averaged_model().to(torch.bfloat16)
    with new_folder(folder, replace=True) as scratch:
        save_checkpoint(model, trainer.processor, scratch)
        write_text(scratch / "recipe.json", trainer.recipe.to_json())
