"""Training: one recipe for every task. It sees the description of the task and the train and validation splits.

1. Teachers (`models.teacher`) are trained on the training split with augmentation.
2. A pool of augmented views of the training split is made, each with a soft label: a mixture of the true label and
   of the teachers' probabilities.
3. For each lowering, `RESTARTS` students are trained on the pool; the one with the lowest validation loss is kept.
4. Logit adjustment: the prior that the network learnt from its training set is taken back, ``τ · log(prior)`` less in
   each output's bias (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021), because prevalence differs
   between hospitals, while validation is a sample of the same one as training. τ = 1 takes all of it back; chosen is
   the largest τ whose validation accuracy is within one standard error of the best (the one-standard-error rule of
   Breiman et al., "Classification and regression trees", 1984, section 3.4.3), or within `ADJUSTMENT_LOSS` where the split
   is so small that a standard error would hide real harm.

With ``--effort quick`` there is one teacher and one student, and they see a fifth of the images.

"Validation" in 3 and 4 means the validation images and augmented views of them, since some splits are small.
The test split is evaluated once, for the provenance.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models import fcnn, inputs, latentcnn, polycnn, ptq, unfinished
from models.augment import augment
from models.catalogue import LOWERINGS, base, integer_network
from models.encoder import Encoder
from models.network import IMAGE, Gemm, Input, Network, Node, chained
from models.presets import PRESETS, Preset
from models.quantised import fine_tune
from models.tasks import MULTI_LABEL, Dataset, Split, Task, normalise, scores
from models.teacher import Teacher
from models.unfinished import Unfinished


@dataclass(frozen=True)
class Architecture:
    """build: makes, of (input_shape, outputs, lowering), a torch module that has `export()`: the nodes of a graph, or the
    operators of a chain.

    images: how many are seen in the training of a student; rate: the peak of its learning rate.
    """

    build: Callable[..., nn.Module]
    images: int
    rate: float


# The names are those of `models.catalogue.MODELS`.
ARCHITECTURES = {
    "fcnn": Architecture(fcnn.Fcnn, 400_000, 2e-3),
    "polycnn": Architecture(functools.partial(polycnn.PolyCnn, polycnn.DEEP), 150_000, 5e-3),
    "polycnn-s": Architecture(functools.partial(polycnn.PolyCnn, polycnn.SHALLOW), 150_000, 5e-3),
    **{
        f"latentcnn{gate}{reads}": Architecture(
            functools.partial(latentcnn.LatentCnn, latentcnn.small(bool(gate), reads == "@image")), 150_000, 5e-3
        )
        for gate in ("", "-se")
        for reads in ("", "@quantised", "@image")
    },
    **{
        f"hefnet{gate}": Architecture(functools.partial(latentcnn.LatentCnn, latentcnn.hefnet(bool(gate))), 12_000, 2e-3)
        for gate in ("", "-se")
    },
}


@dataclass(frozen=True)
class Effort:
    """share: of the recipe's images. single: one teacher and one student of each lowering, instead of several."""

    name: str
    share: float = 1.0
    single: bool = False


EFFORTS = {effort.name: effort for effort in (Effort("full"), Effort("quick", 0.2, single=True))}

Progress = Callable[[float, str], None]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

TEACHERS = 2
RESTARTS = 3
BATCH = 128
TEACHER_IMAGES = 60_000  # images seen in the training of a teacher, if the training split is not larger
POOL_IMAGES = 60_000
POOL_BYTES = 2**30  # of views, where images are so large that there would be more
QUANTISED_IMAGES = 100_000
QUANTISATION_IMAGES = 1000  # from which quantisation after training takes its ranges
VALIDATION_IMAGES = 2_000
RANGE_PENALTY = 1.0  # for inputs of polynomial activations beyond their range
HARD = 0.3  # share of the true label in a soft label
ADJUSTMENTS = np.linspace(0, 1, 11)  # τ
ADJUSTMENT_LOSS = 0.01  # of validation accuracy, at most
PROBE_STEPS = 3  # of which the first warms up


@dataclass(frozen=True)
class Labelled:
    """images: (n, channels, height, width) uint8, or float32 latents as the network reads them. targets: (n, outputs)
    probabilities."""

    images: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def read(self, chosen: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """What the network reads of the chosen ones, float32."""
        return self.images[chosen] / 255 if self.images.dtype == torch.uint8 else self.images[chosen]


def train(
    model: str,
    task: Task,
    dataset: Dataset,
    lowerings: Sequence[str] = LOWERINGS,
    seed: int = 0,
    progress: Progress | None = None,
    budget: float = 1.0,
    effort: str = "full",
    keep: bool = False,
    encoder: Encoder | None = None,
) -> dict[str, Network]:
    """One trained network for each lowering.

    progress: called with the fraction done (0 … 1) and a line that says what is being done; first with what it will cost.
    budget: scales how many images are seen in training; 1 is the recipe, less is for tests.
    effort: one of `EFFORTS`. keep: keep in the user cache what is done so far, for the next call, until all is done.
    encoder: of a model that reads latents (`models.inputs`).
    """
    preset = PRESETS[integer_network(model)]
    title = f"{model} · {task.name}"
    report = progress or (lambda fraction, text: None)

    def part(start: float, end: float, name: str) -> Progress:
        return lambda fraction, text: report(start + fraction * (end - start), f"{title} · {name}: {text}")

    chosen = EFFORTS[effort]
    about = {"model": model, "task": task.name, "kind": task.kind, "seed": seed, "budget": budget, "effort": effort}
    about |= {"encoder": encoder.sha256} if encoder else {}
    kept = Unfinished(unfinished.of(dataset, about) if keep else None)
    recipe = Recipe(task, seed, budget * chosen.share, chosen, kept, encoder)
    minutes = recipe.seconds(model, dataset.train, lowerings, preset) / 60
    quick = "" if chosen.single else "; --effort quick takes a fifteenth or so"
    report(0.0, f"{title}: about {max(minutes, 1):.0f} min in all, judged by a few steps{quick}")
    teachers = recipe.teachers(dataset.train, part(0, 0.4, "teacher"))
    report(0.4, f"{title}: augmented views")
    views = POOL_IMAGES if encoder is None else min(POOL_IMAGES, ARCHITECTURES[base(model)].images)
    pool = recipe.encoded(recipe.views(dataset.train, views, teachers))
    validation = recipe.encoded(recipe.views(dataset.val, VALIDATION_IMAGES))
    networks: dict[str, Network] = {}
    adjustment = 0.0
    for index, lowering in enumerate(lowerings):
        start, end = (0.5 + 0.5 * i / len(lowerings) for i in (index, index + 1))
        step = part(start, end, lowering)
        if lowering == "integer" and not preset.fine_tuned:
            networks[lowering] = quantised(networks[preset.real], dataset, recipe, adjustment)  # adjusted already
            continue
        elif lowering == "integer":
            network = recipe.integer(integer_network(model), preset, pool, validation, step)
        else:
            network = recipe.student(model, lowering, pool, validation, step)
        network, adjustment = adjusted(network, dataset, validation)
        networks[lowering] = _described(network, task, dataset, recipe, adjustment)
    kept.finished()
    report(1.0, f"{title}: trained")
    return networks


@dataclass(frozen=True)
class Recipe:
    """Steps 1 to 3 for one task and seed; `budget` scales how many images are seen. kept: the parts that are done.

    encoder: makes what the students read of images, which the teachers see as they are.
    """

    task: Task
    seed: int
    budget: float
    effort: Effort = EFFORTS["full"]
    kept: Unfinished = dataclasses.field(default_factory=Unfinished)
    encoder: Encoder | None = None

    @property
    def teacher_count(self) -> int:
        return 1 if self.effort.single else TEACHERS

    @property
    def restarts(self) -> int:
        return 1 if self.effort.single else RESTARTS

    def generator(self, use: int) -> torch.Generator:
        """Random numbers of their own for each use, so that one more lowering or restart changes no other."""
        return torch.Generator().manual_seed(self.seed * 1000 + use)

    def teachers(self, split: Split, progress: Progress) -> list[nn.Module]:
        data = Labelled(torch.from_numpy(split.images), _one_hot(self.task, split.labels))

        def build() -> nn.Module:
            return Teacher(self.task.channels, self.task.outputs)

        def teacher(index: int) -> nn.Module:
            return self.fit(
                build,
                data,
                images=TEACHER_IMAGES,
                rate=4e-3,
                decay=0.05,
                use=index,
                augmented=True,
                progress=_part(progress, index, self.teacher_count),
            )

        return [
            self.kept.module(f"teacher-{index}", build, functools.partial(teacher, index))
            for index in range(self.teacher_count)
        ]

    def views(self, split: Split, images: int, teachers: Sequence[nn.Module] = ()) -> Labelled:
        """The split itself and as many augmented copies as `images` allows, softly labelled if there are teachers."""
        generator = self.generator(100 + len(teachers))
        original, labels = torch.from_numpy(split.images), _one_hot(self.task, split.labels)
        copies = [original]
        for _ in range(self.pool_size(split, images) // len(split) - 1):
            views = [augment(part / 255, generator) for part in original.split(BATCH)]
            copies.append((torch.cat(views) * 255).round().to(torch.uint8))
        pool, targets = torch.cat(copies), labels.repeat(len(copies), 1)
        if teachers:
            logits = torch.cat([_logits(teachers, part / 255) for part in pool.split(BATCH)])
            opinions = logits.sigmoid() if self.task.multi_label else logits.softmax(1)
            targets = HARD * targets + (1 - HARD) * opinions
        return Labelled(pool, targets)

    def encoded(self, views: Labelled) -> Labelled:
        """What the students read of these images: latents, where there is an encoder."""
        if self.encoder is None:
            return views
        parts = [self.encoder.read(part.numpy()) for part in views.images.split(BATCH)]
        return Labelled(torch.from_numpy(np.concatenate(parts)), views.targets)

    def pool_size(self, split: Split, images: int) -> int:
        """How many views there are, the split itself included."""
        images = int(min(images, POOL_BYTES // math.prod(split.images.shape[1:])) * self.budget)
        return max(images // len(split), 1) * len(split)

    def student(self, model: str, lowering: str, pool: Labelled, validation: Labelled, progress: Progress) -> Network:
        """The float or polynomial network."""

        def restart(index: int, progress: Progress) -> Network:
            return self.one_student(model, lowering, {}, pool, index, progress)

        return self.best(lowering, restart, validation, progress)

    def integer(self, model: str, preset: Preset, pool: Labelled, validation: Labelled, progress: Progress) -> Network:
        """Students of the preset's real lowering, fine-tuned behind quantisers on what they answer themselves."""

        def restart(index: int, progress: Progress) -> Network:
            return self.one_integer(model, preset, pool, index, progress)

        return self.best("integer", restart, validation, progress)

    def one_integer(self, model: str, preset: Preset, pool: Labelled, restart: int, progress: Progress) -> Network:
        student = self.one_student(
            model, preset.real, preset.architecture, pool, restart, lambda f, text: progress(0.7 * f, text)
        )
        logits = np.concatenate([student.forward(part.numpy()) for part in pool.read().split(BATCH)])
        return fine_tune(
            student,
            preset.bits,
            (pool.images, torch.from_numpy(scores(self.task.kind, logits)).float()),
            loss_of(self.task),
            seed=self.seed * 1000 + restart,
            images=int(QUANTISED_IMAGES * self.budget),
            progress=lambda f, text: progress(0.7 + 0.3 * f, text),
        )

    def one_student(
        self,
        model: str,
        lowering: str,
        options: dict[str, Any],
        pool: Labelled,
        restart: int,
        progress: Progress,
    ) -> Network:
        """options: further arguments of the model's class."""
        architecture = ARCHITECTURES[base(model)]
        shape = inputs.shape(model, self.task)
        module = self.fit(
            lambda: architecture.build(shape, self.task.outputs, lowering, **options),
            pool,
            images=architecture.images,
            rate=architecture.rate,
            decay=0.5,
            use=200 + restart,
            augmented=False,
            progress=progress,
        )
        exported = module.export()
        nodes = exported if isinstance(exported[0], Node) else chained(exported)
        return Network(model, self.task.name, lowering, (Input(IMAGE, shape),), nodes, (nodes[-1].output,))

    def best(
        self, name: str, make: Callable[[int, Progress], Network], validation: Labelled, progress: Progress
    ) -> Network:
        """Of `restarts` networks, the one with the lowest loss on the validation images. name: of their lowering."""
        best: tuple[float, Network | None] = (math.inf, None)
        for index in range(self.restarts):
            told = _part(progress, index, self.restarts)
            network = self.kept.network(f"{name}.{index}", functools.partial(make, index, told))
            if (score := self.loss_on(validation, network)) < best[0]:
                best = score, network
        assert best[1] is not None
        return best[1]

    def loss_on(self, validation: Labelled, network: Network) -> float:
        logits = torch.from_numpy(network.forward(validation.read().numpy()))
        return loss_of(self.task)(logits, validation.targets.double()).item()

    def fit(
        self,
        build: Callable[[], nn.Module],
        data: Labelled,
        *,
        images: int,
        rate: float,
        decay: float,
        use: int,
        augmented: bool,
        progress: Progress,
    ) -> nn.Module:
        """AdamW with a one-cycle schedule (Smith and Topin 2019), to its end: no epoch is picked."""
        torch.manual_seed(self.seed * 1000 + use)  # initial weights, dropout
        module, generator, loss = build().train(), self.generator(use), loss_of(self.task)
        steps = self.steps(images, len(data))
        optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
        for step, batch in zip(range(steps), _batches(len(data), generator), strict=False):
            views = data.read(batch)
            value = loss(module(augment(views, generator) if augmented else views), data.targets[batch])
            excess = [layer.excess for layer in module.modules() if hasattr(layer, "excess")]
            optimiser.zero_grad()
            (value + RANGE_PENALTY * sum(excess)).backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 0:
                progress(step / steps, f"step {step} of {steps}, loss {value.item():.3f}")
        return module.eval()

    def steps(self, images: int, available: int) -> int:
        """Of `fit`: each of the available images is seen at least once."""
        return max(int(images * self.budget), available) // min(BATCH, available)

    # -- what it will cost ---------------------------------------------------------------------------------------------

    def seconds(self, model: str, split: Split, lowerings: Sequence[str], preset: Preset) -> float:
        """Of the whole training, judged by a few steps of each kind on this machine, now."""
        architecture, size = ARCHITECTURES[base(model)], min(BATCH, len(split))
        shape = inputs.shape(model, self.task)
        batch = torch.from_numpy(split.images[:size]) / 255
        per_pool = self.pool_size(split, POOL_IMAGES)
        teacher = self.step_seconds(Teacher(self.task.channels, self.task.outputs), batch, True)
        total = self.teacher_count * self.steps(TEACHER_IMAGES, len(split)) * teacher
        total += 0.7 * per_pool / size * teacher  # views, and what the teachers say of them
        if self.encoder is not None:
            start = time.perf_counter()
            batch = torch.from_numpy(self.encoder(batch.numpy()))
            total += per_pool / size * (time.perf_counter() - start)
        for lowering in lowerings:
            if lowering == "integer" and not preset.fine_tuned:
                continue
            real, options = (preset.real, preset.architecture) if lowering == "integer" else (lowering, {})
            student = architecture.build(shape, self.task.outputs, real, **options)
            one = self.step_seconds(student, batch, False)
            steps = self.steps(architecture.images, per_pool)
            if lowering == "integer":  # each step behind quantisers is about two of a plain student
                steps += 2 * int(QUANTISED_IMAGES * self.budget) // size
            total += self.restarts * steps * one
        return total

    def step_seconds(self, module: nn.Module, batch: torch.Tensor, augmented: bool) -> float:
        """Of a step of training; changes the module."""
        optimiser, generator = torch.optim.AdamW(module.parameters()), self.generator(0)
        times = []
        for _ in range(PROBE_STEPS):
            start = time.perf_counter()
            loss = module(augment(batch, generator) if augmented else batch).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))


def adjusted(network: Network, dataset: Dataset, validation: Labelled) -> tuple[Network, float]:
    """The network with its output bias adjusted for the classes' frequencies, and the τ that was chosen (step 4).

    validation: the validation split and views of it. The standard error is that of the split: views are no new images.
    """
    task, images = dataset.task, len(dataset.val)
    if task.multi_label:  # each label has an answer of its own; no class competes with another
        return network, 0.0
    *body, last = network.nodes
    assert isinstance(last.operator, Gemm)
    logits = network.forward(validation.read().numpy())
    labels = validation.targets.argmax(1).numpy()
    counts = np.bincount(dataset.train.labels[:, 0], minlength=task.outputs) + 1.0
    shift = -np.log(counts / counts.sum())
    shift -= shift.mean()
    accuracy = np.array([np.mean((logits + tau * shift).argmax(1) == labels) for tau in ADJUSTMENTS])
    best = accuracy.max()
    tau = float(ADJUSTMENTS[accuracy >= best - min(np.sqrt(best * (1 - best) / images), ADJUSTMENT_LOSS)].max())
    bias = (last.operator.bias + tau * shift).astype(np.float32)
    last = dataclasses.replace(last, operator=dataclasses.replace(last.operator, bias=bias))
    return dataclasses.replace(network, nodes=(*body, last)), tau


def quantised(network: Network, dataset: Dataset, recipe: Recipe, adjustment: float) -> Network:
    """The integer network of one that is trained, without further training. adjustment: τ of the trained one."""
    images = dataset.train.images[:QUANTISATION_IMAGES]
    read = recipe.encoder.read(images) if recipe.encoder else images
    integer = ptq.quantise(dataclasses.replace(network, provenance={}), read)
    return _described(integer, recipe.task, dataset, recipe, adjustment)


def _described(network: Network, task: Task, dataset: Dataset, recipe: Recipe, adjustment: float) -> Network:
    """The network with its provenance: what a person needs to make it again, and how good it was."""
    provenance = {
        "recipe": "distillation from convolutional teachers on augmented views: see models/train.py",
        "seed": recipe.seed,
        "effort": recipe.effort.name,
        "budget": recipe.budget,
        "teachers": recipe.teacher_count,
        "restarts": recipe.restarts,
        "teacher_images": TEACHER_IMAGES,
        "images": ARCHITECTURES[base(network.model)].images,
        "selection": "lowest loss on the validation split and augmented views of it",
        "logit_adjustment": round(adjustment, 2),
        "validation": evaluate(network, dataset.val, task.kind, recipe.encoder),
        "test": evaluate(network, dataset.test, task.kind, recipe.encoder),
        **({"encoder": recipe.encoder.described()} if recipe.encoder else {}),
        "data_md5": dataset.md5,
        "threads": torch.get_num_threads(),  # the order of sums, and so the last bits, depend on it
        "versions": {name: version(name) for name in ("torch", "numpy", "medmnist", "scikit-learn")},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    return dataclasses.replace(network, provenance=provenance | network.provenance)


def evaluate(network: Network, split: Split, kind: str, encoder: Encoder | None = None) -> dict[str, float]:
    """MedMNIST's two metrics: ACC, and AUC averaged over classes or labels (absent ones left out)."""
    from sklearn.metrics import roc_auc_score

    logits = network.forward(encoder.read(split.images) if encoder else normalise(split.images))
    if kind == MULTI_LABEL:
        truth, correct = split.labels, (logits > 0) == split.labels
    else:
        truth, correct = np.eye(network.outputs, dtype=int)[split.labels[:, 0]], logits.argmax(1) == split.labels[:, 0]
    given = scores(kind, logits)
    areas = [roc_auc_score(t, s) for t, s in zip(truth.T, given.T, strict=True) if 0 < t.sum() < len(t)]
    return {"accuracy": float(np.mean(correct)), "auc": float(np.mean(areas)), "images": len(split)}


def _part(progress: Progress, index: int, count: int) -> Progress:
    """Of one of several jobs of about the same length."""
    return lambda fraction, text: progress((index + fraction) / count, text)


def _logits(modules: Sequence[nn.Module], images: torch.Tensor) -> torch.Tensor:
    """Mean logits (n, outputs) of an ensemble; images float in [0, 1]."""
    with torch.no_grad():
        return torch.cat([torch.stack([m(part) for m in modules]).mean(0) for part in images.split(BATCH)])


def _one_hot(task: Task, labels: np.ndarray) -> torch.Tensor:
    if task.multi_label:
        return torch.from_numpy(labels).float()
    return functional.one_hot(torch.from_numpy(labels[:, 0]), task.outputs).float()


def loss_of(task: Task) -> Loss:
    """Cross entropy against probabilities: over classes, or for each label alone."""
    return functional.binary_cross_entropy_with_logits if task.multi_label else functional.cross_entropy


def _batches(count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches of indices, each pass in a new order; a last batch that is not full is left out."""
    while True:
        for batch in torch.randperm(count, generator=generator).split(BATCH):
            if len(batch) == min(BATCH, count):
                yield batch
