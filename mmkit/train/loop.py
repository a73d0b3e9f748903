"""One plain loop: samples of a step, losses, gradients, a step of the optimizers; a log, samples and checkpoints on the way."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmkit import checkpoint
from mmkit.compose import render
from mmkit.compose.recipe import Recipe
from mmkit.contracts.part import Part
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.data.mixture import Mixture
from mmkit.data.prefetch import prefetch
from mmkit.errors import TrainError
from mmkit.model import UnifiedModel
from mmkit.objectives import Objective, Share
from mmkit.progress import Progress, show_table
from mmkit.samples import draw_samples
from mmkit.train.memory import peak_memory
from mmkit.train.optimizers import make_optimizers, matrices_of
from mmkit.train.stopping import stop_signals
from mmkit.train.tokenizers import fit_tokenizers


class Loop:
    """The state of one run: what is trained, how far it is, and what it writes."""

    def __init__(
        self, recipe: Recipe, run: Path, mixture: Mixture, objective: Objective, model: UnifiedModel | None,
        device: torch.device, quiet: bool,
    ) -> None:  # fmt: skip
        self.recipe, self.run, self.mixture, self.objective = recipe, run, mixture, objective
        self.model, self.device, self.quiet = model, device, quiet
        self.options = recipe.train
        self.named = {
            f"{prefix}.{name}" if prefix else name: p
            for prefix, module in objective.modules().items()
            for name, p in module.named_parameters()
        }
        self.trained = {name: p for name, p in self.named.items() if p.requires_grad}
        self.optimizers = self._optimizers()
        self.ema = self._buffers(copy.deepcopy) if self.options.ema else None
        self.step = 0
        self.started = 0.0
        self.log_path = run / "log.jsonl"
        self.board = _board(run) if "tensorboard" in self.options.trackers else None

    def _optimizers(self) -> list[Optimizer]:
        """Each part's learning rate is scaled by its `lr_scale`."""
        if not self.trained:
            raise TrainError(
                "train", "nothing is trained: every part is frozen, or has nothing to learn", "unfreeze one"
            )
        inside = set() if self.model is None else {f"backbone.{name}" for name in matrices_of(self.model.backbone)}
        if self.options.optimizer == "muon" and not inside & self.trained.keys():
            raise TrainError(
                "train.optimizer", "muon moves the matrices inside a backbone, and none of those is trained here",
                "write `optimizer: adamw`",
            )  # fmt: skip
        return make_optimizers(self.options, self.trained, inside, self._scale)

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimizer in self.optimizers for group in optimizer.param_groups)

    def _rates(self) -> dict[str, float]:
        """The full learning rate of every parameter that is trained."""
        names = {parameter: name for name, parameter in self.trained.items()}
        return {names[p]: group["peak"] for group in self._groups() for p in group["params"]}

    def _scale(self, name: str) -> float:
        specs = self.recipe.model.specs()
        return next((spec.lr_scale for path, spec in specs.items() if name.startswith(path + ".")), 1.0)

    def _buffers(self, change: Any) -> dict[str, Tensor]:
        return {name: change(value.detach()) for name, value in self.state().items()}

    def state(self) -> dict[str, Tensor]:
        """Every tensor that must be remembered, by path."""
        return {
            f"{prefix}.{name}" if prefix else name: value
            for prefix, module in self.objective.modules().items()
            for name, value in module.state_dict().items()
        }

    # The run

    def run_all(self) -> Path:
        """From wherever the run stands to its last step."""
        self._resume()
        self.started = time.monotonic() - self._spent()
        if not self.quiet:
            show_table(self.recipe, self.named, self._rates())
        last = checkpoint.latest(self.run)
        with stop_signals() as stop, Progress(self.options.steps, self.step, quiet=self.quiet) as progress:
            coming = self._coming()
            while self.step < self.options.steps:
                figures = self._train_step(*next(coming))
                self.step += 1
                progress.update(self.step, figures)
                if self.step % self.options.log_every == 0 or self.step == self.options.steps:
                    self._log(figures)
                if self._due(self.options.sample_every) and self.model is not None:
                    with self._averaged():
                        draw_samples(self.model, self.mixture, self.run / "samples" / f"step-{self.step:08d}")
                if self._due(self.options.save_every) or stop.signal or self.step == self.options.steps:
                    if self.step == self.options.steps:
                        self._finish()
                    last = self._save()
                if stop.signal:
                    break
        if stop.signal:
            raise TrainError(
                str(self.run), f"stopped by {stop.name} after step {self.step} of {self.options.steps}; saved {last}",
                "the same command continues from there",
            )  # fmt: skip
        assert last is not None
        return last

    def time_steps(self, count: int) -> list[float]:
        """Takes so many steps for the seconds of each, what it trains on included; nothing is logged or kept."""
        seconds, coming = [], self._coming()
        for _ in range(count):
            started = time.perf_counter()
            self._train_step(*next(coming))
            self.step += 1
            seconds.append(time.perf_counter() - started)
        return seconds

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0 and self.step < self.options.steps

    def _coming(self) -> Iterator[tuple[list[str], Any]]:
        """What each step from here trains on."""
        steps = range(self.step, self.options.steps)
        # On the CPU a thread beside torch's own takes a core from them: one step then costs 7 % more instead of less.
        return map(self._prepare, steps) if self.device.type == "cpu" else prefetch(self._prepare, steps)

    def _prepare(self, step: int) -> tuple[list[str], Any]:
        """What a step trains on, and the ids of its samples; depends on nothing that training changes."""
        samples = self.mixture.draw(step, self.options.batch_samples)
        return [sample.id for sample in samples], self.objective.prepare(samples, step)

    def _train_step(self, samples: Sequence[str], work: Any) -> dict[str, float]:
        started = time.perf_counter()
        for module in self.objective.modules().values():
            module.train()
        rate = self._rate(self.step)
        for group in self._groups():
            group["lr"] = group["peak"] * rate
        totals: dict[str, list[float]] = {}
        tokens = 0
        for share in self._shares(work):
            if not math.isfinite(float(share.loss.detach())):
                self._refuse(share.samples, share.figures)
            share.loss.backward()
            tokens += share.tokens
            for name, (value, weight) in share.figures.items():
                total = totals.setdefault(name, [0.0, 0.0])
                total[0] += value
                total[1] += weight
        norm = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), self.options.clip or math.inf)
        if not math.isfinite(float(norm)):
            self._refuse(samples, {"gradient norm": (float(norm), 1.0)})
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for module in self.objective.modules().values():
            for part in module.modules():
                if isinstance(part, Part):
                    part.after_step()
        self._average()
        figures = {name: value / max(weight, 1e-12) for name, (value, weight) in totals.items()}
        seconds = time.perf_counter() - started
        return {**figures, "grad_norm": float(norm), "lr": self.options.lr * rate, "tokens": tokens, "seconds": seconds}

    def _shares(self, work: Any) -> Iterator[Share]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16()):
            yield from self.objective.shares(work, self.step)

    def _bf16(self) -> bool:
        """bf16 where asked for; `auto` takes it on GPUs, since CPUs without native bf16 are several times slower with it."""
        return self.options.precision == "bf16" or (self.options.precision == "auto" and self.device.type == "cuda")

    def _rate(self, step: int) -> float:
        options = self.options
        if step < options.warmup:
            return (step + 1) / options.warmup
        if options.schedule == "constant":
            return 1.0
        done = (step - options.warmup) / max(1, options.steps - options.warmup)
        falling = 0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1 - done
        return options.lr_end + (1 - options.lr_end) * falling

    @torch.no_grad()
    def _average(self) -> None:
        """The moving average, its decay warmed up so that the first steps do not linger (as in Polyak averaging of EDM2)."""
        if self.ema is None:
            return
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.state().items():
            kept = self.ema[name]
            if kept.shape == value.shape and value.is_floating_point():
                kept.lerp_(value, 1 - decay)
            else:
                self.ema[name] = value.detach().clone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, for as long as samples are drawn."""
        if self.ema is None:
            yield
            return
        live = self._buffers(torch.clone)
        self._load(self.ema)
        try:
            yield
        finally:
            self._load(live)

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        for prefix, module in self.objective.modules().items():
            start = f"{prefix}." if prefix else ""
            own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            module.load_state_dict(own)

    def _finish(self) -> None:
        """A trained tokenizer learns its statistics (latent scale) once its weights stand still."""
        if self.model is not None:
            return
        for module in self.objective.modules().values():
            if isinstance(module, Tokenizer):
                module.eval()
                fit_tokenizers({"": module}, self.mixture)
        if self.ema is not None:
            for name, value in self.state().items():
                if name not in self.named:
                    self.ema[name] = value.detach().clone()

    def _refuse(self, samples: Sequence[str], figures: Mapping[str, Any]) -> None:
        record = {"step": self.step, "samples": list(samples), "figures": {k: str(v) for k, v in figures.items()}}
        path = self.run / "not-a-number.json"
        path.write_text(json.dumps(record, indent=1))
        bad = ", ".join(name for name, (value, _) in figures.items() if not math.isfinite(value))
        raise TrainError(
            f"step {self.step}", f"the loss is not a number ({bad or 'total'}); its {len(samples)} samples are named in {path}",
            "lower train.lr or raise train.warmup; the last checkpoint is untouched",
        )  # fmt: skip

    # What is kept

    def _save(self) -> Path:
        trainer = {
            "step": self.step,
            "sizes": {name: list(size) for name, size in self.mixture.sizes().items()},
            "rng": checkpoint.capture_random(),
        }
        return checkpoint.write(
            self.run, self.step, model=self.state(), ema=self.ema,
            optimizer=checkpoint.flatten_optimizers(self.optimizers, self.trained.items()), trainer=trainer,
            recipe=render(self.recipe), plugins=checkpoint.used(self.recipe), keep=self.options.keep,
        )  # fmt: skip

    def _resume(self) -> None:
        path = checkpoint.latest(self.run)
        if path is None:
            self._trim_log()
            return
        kept = checkpoint.read(path)
        self._load(kept.model())
        checkpoint.restore_optimizers(self.optimizers, self.trained.items(), kept.optimizer())
        if self.ema is not None:
            self.ema = {name: value.to(self.device) for name, value in (kept.ema() or {}).items()}
        checkpoint.restore_random(kept.trainer["rng"])
        self.step = kept.step
        self._trim_log()
        if not self.quiet:
            print(f"continuing {self.run} from step {self.step}")

    def _trim_log(self) -> None:
        """Log lines past the checkpoint will be written again."""
        if self.log_path.is_file():
            lines = [line for line in self.log_path.read_text().splitlines() if _step_of(line) <= self.step]
            checkpoint.write_text(self.log_path, "".join(f"{line}\n" for line in lines))

    def _spent(self) -> float:
        """Seconds of earlier sittings, up to the last line that the log keeps of them."""
        lines = self.log_path.read_text().splitlines() if self.log_path.is_file() else []
        return json.loads(lines[-1]).get("elapsed", 0.0) if lines else 0.0

    def _log(self, figures: Mapping[str, float]) -> None:
        figures = {**figures, "elapsed": time.monotonic() - self.started, "peak_memory": peak_memory(self.device)}
        with self.log_path.open("a") as file:
            file.write(json.dumps({"step": self.step, **figures}) + "\n")
        for name, value in figures.items() if self.board is not None else ():
            self.board.add_scalar(name, value, self.step)


def _board(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainError(
            "train.trackers", "tensorboard is not installed", "pip install 'mmkit[tensorboard]', or leave it out"
        ) from error
    return SummaryWriter(str(run / "tensorboard"))


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62
