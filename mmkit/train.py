"""One plain loop: samples of a step, losses, gradients, a step of AdamW; a log, samples and checkpoints on the way."""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmkit import checkpoint
from mmkit.compose import check, render
from mmkit.compose.recipe import Recipe, Reconstruction, Train
from mmkit.compose.wiring import seeded
from mmkit.contracts.part import Part
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.data.mixture import Mixture
from mmkit.data.prefetch import prefetch
from mmkit.errors import CheckpointError, DataError, MmkitError
from mmkit.model import UnifiedModel, load_weights
from mmkit.objectives import Joint, Objective, Reconstruct, Share
from mmkit.progress import Progress, show_table
from mmkit.samples import draw_samples

FIT_SAMPLES = 2000


class TrainError(MmkitError):
    """Training cannot go on; what was reached is kept."""


def train(recipe: Recipe, run: Path, *, overwrite: bool = False, device: str = "auto", quiet: bool = False) -> Path:
    """Trains a recipe into a run folder and gives its last checkpoint.

    A run of the same recipe that was cut short continues where its last checkpoint stands, to the same result, bit for bit
    on one machine. Ctrl-C and SIGTERM save first. Raises `RecipeError` on a recipe that does not compose,
    `CheckpointError` where the folder holds another run, `TrainError` where the loss stops being a number.
    """
    check(recipe)
    run = Path(run)
    mixture = Mixture([(m.source.build(), m.weight) for m in recipe.data], recipe.train.seed)
    with checkpoint.lock(run):
        _claim(run, recipe, overwrite)
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.manual_seed(recipe.train.seed)
        objective, model = _objective(recipe, run, mixture, place, quiet)
        return _Loop(recipe, run, mixture, objective, model, place, quiet).run_all()


def _claim(run: Path, recipe: Recipe, overwrite: bool) -> None:
    """Makes the folder this recipe's, or refuses one that is another's."""
    kept = run / "recipe.yaml"
    if overwrite:
        for name in ("checkpoints", "samples", "tokenizers"):
            shutil.rmtree(run / name, ignore_errors=True)
        for name in ("log.jsonl", "recipe.yaml", "not-a-number.json"):
            (run / name).unlink(missing_ok=True)
    if kept.is_file() and kept.read_text() != render(recipe):
        theirs, ours = kept.read_text().splitlines(), render(recipe).splitlines()
        differing = next(
            (f"{a.strip()!r} there, {b.strip()!r} here" for a, b in zip(theirs, ours, strict=False) if a != b), ""
        )
        raise CheckpointError(
            str(run), f"this folder holds a run of another recipe ({differing or 'of another length'})",
            "name another folder with --run, or start it over with --overwrite",
        )  # fmt: skip
    checkpoint.write_text(kept, render(recipe))


def _objective(
    recipe: Recipe, run: Path, mixture: Mixture, device: torch.device, quiet: bool
) -> tuple[Objective, UnifiedModel | None]:
    if recipe.model.backbone is None:
        return _reconstruction(recipe, device), None
    fresh = checkpoint.latest(run) is None
    model = UnifiedModel(recipe)
    if fresh:
        load_weights(model)
        for name, tokenizer in model.tokenizers.items():
            if recipe.model.tokenizers[name].weights is None and tokenizer.port.trained_by_reconstruction:
                _pretrain(recipe, run, name, tokenizer, device, quiet)
        fit_tokenizers(model.tokenizers, mixture)
    model.sizes = mixture.sizes()
    model.backbone.recompute = recipe.train.recompute
    return Joint(model.to(device)), model


def _reconstruction(recipe: Recipe, device: torch.device) -> Reconstruct:
    tokenizers = nn.ModuleDict()
    for name, spec in recipe.model.tokenizers.items():
        with seeded(recipe.train.seed, f"tokenizers.{name}"):
            tokenizers[name] = spec.build()
        if spec.weights:
            checkpoint.load_part(tokenizers[name], spec.weights, f"tokenizers.{name}")
        tokenizers[name].requires_grad_(not spec.frozen)
    with seeded(recipe.train.seed, "discriminator"):
        objective = Reconstruct(recipe, tokenizers, _features(recipe.train.reconstruction, device))
    for module in objective.modules().values():
        module.to(device)
    return objective


def _features(options: Reconstruction, device: torch.device) -> nn.Module | None:
    """The frozen encoder that a perceptual loss compares features of. Raises `TrainError` where none is named."""
    if not options.perceptual:
        return None
    if options.features is None or not options.features.weights:
        raise TrainError(
            "train.reconstruction.features", "a perceptual loss needs a trained network to look through, and none is named",
            "write features: {type: timm, name: ..., weights: ...}, or set perceptual to 0",
        )  # fmt: skip
    encoder = options.features.build()
    checkpoint.load_part(encoder, options.features.weights, "train.reconstruction.features")
    return encoder.to(device).eval().requires_grad_(False)


def _pretrain(recipe: Recipe, run: Path, name: str, tokenizer: nn.Module, device: torch.device, quiet: bool) -> None:
    """A tokenizer that needs training and names no weights is trained first, by reconstruction, in a run of its own."""
    options = recipe.train
    alone = replace(
        recipe,
        model=replace(recipe.model, tokenizers={name: recipe.model.tokenizers[name]}, encoders={}, backbone=None, heads={},
                      streams={}, reads={}),
        train=replace(Train(), steps=options.reconstruction.steps, batch_samples=options.batch_samples, seed=options.seed,
                      lr=options.reconstruction.lr, reconstruction=options.reconstruction),
    )  # fmt: skip
    folder = run / "tokenizers" / name
    if not quiet:
        print(
            f"tokenizers.{name} names no weights: training it first, {options.reconstruction.steps} steps into {folder}"
        )
    train(alone, folder, device=str(device), quiet=quiet)
    checkpoint.load_part(tokenizer, f"{folder}#tokenizers.{name}", f"tokenizers.{name}")


def fit_tokenizers(tokenizers: Mapping[str, nn.Module] | nn.ModuleDict, mixture: Mixture) -> None:
    """Lets every tokenizer that must still see data (an untrained sentencepiece, latent statistics) learn from it."""
    for tokenizer in tokenizers.values():
        if not tokenizer.fitted:
            tokenizer.fit(_contents(mixture, tokenizer.port.modality))


def _contents(mixture: Mixture, modality: str) -> Iterator[Any]:
    """Contents of one modality from the first samples, in training's own order."""
    for place in mixture.places(0, FIT_SAMPLES):
        yield from (s.content for s in mixture.load(place).segments if s.modality == modality)


class _Loop:
    """The state of one run: what is trained, how far it is, and what it writes."""

    def __init__(
        self, recipe: Recipe, run: Path, mixture: Mixture, objective: Objective, model: UnifiedModel | None,
        device: torch.device, quiet: bool,
    ) -> None:  # fmt: skip
        self.recipe, self.run, self.mixture, self.objective = recipe, run, mixture, objective
        self.model, self.device, self.quiet = model, device, quiet
        self.options = recipe.train
        self.modules = nn.ModuleDict()
        self.named = {
            f"{prefix}.{name}" if prefix else name: p
            for prefix, module in objective.modules().items()
            for name, p in module.named_parameters()
        }
        self.trained = {name: p for name, p in self.named.items() if p.requires_grad}
        self.optimizer = self._optimizer()
        self.ema = self._buffers(copy.deepcopy) if self.options.ema else None
        self.step = 0
        self.stop_signal = 0
        self.log_path = run / "log.jsonl"
        self.board = _board(run) if "tensorboard" in self.options.trackers else None

    def _optimizer(self) -> torch.optim.AdamW:
        """AdamW; matrices decay, what scales or shifts does not. Each part's learning rate is scaled by its `lr_scale`."""
        if not self.trained:
            raise TrainError(
                "train", "nothing is trained: every part is frozen, or has nothing to learn", "unfreeze one"
            )
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.trained.items():
            decay = self.options.weight_decay if parameter.ndim >= 2 and not name.startswith("marks") else 0.0
            groups.setdefault((self._scale(name), decay), []).append(parameter)
        return torch.optim.AdamW(
            [{"params": ps, "scale": s, "weight_decay": d, "lr": self.options.lr * s} for (s, d), ps in groups.items()],
            lr=self.options.lr, betas=tuple(self.options.betas), eps=1e-8,
        )  # fmt: skip

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
        if not self.quiet:
            show_table(self.recipe, self.named, self._scale, self.options.lr)
        last = checkpoint.latest(self.run)
        with _signals(self), Progress(self.options.steps, self.step, quiet=self.quiet) as progress:
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
                if self._due(self.options.save_every) or self.stop_signal or self.step == self.options.steps:
                    if self.step == self.options.steps:
                        self._finish()
                    last = self._save()
                if self.stop_signal:
                    break
        if self.stop_signal:
            name = signal.Signals(self.stop_signal).name
            raise TrainError(
                str(self.run), f"stopped by {name} after step {self.step} of {self.options.steps}; saved {last}",
                "the same command continues from there",
            )  # fmt: skip
        assert last is not None
        return last

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
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * rate * group["scale"]
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
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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
            optimizer=checkpoint.flatten_optimizer(self.optimizer, self.trained.items()), trainer=trainer,
            recipe=render(self.recipe), keep=self.options.keep,
        )  # fmt: skip

    def _resume(self) -> None:
        path = checkpoint.latest(self.run)
        if path is None:
            self._trim_log()
            return
        kept = checkpoint.read(path)
        self._load(kept.model())
        checkpoint.restore_optimizer(self.optimizer, self.trained.items(), kept.optimizer())
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

    def _log(self, figures: Mapping[str, float]) -> None:
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


@contextmanager
def _signals(loop: _Loop) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets the step end and saves; a second one acts at once."""
    before = {}

    def ask(number: int, frame: Any) -> None:
        loop.stop_signal = number
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, ask)
        except ValueError:  # only the main thread may take signals
            break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["DataError", "TrainError", "train"]
