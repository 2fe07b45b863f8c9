"""The training loop: data in, checkpoints and metrics out, resumable at any moment."""

import contextlib
import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from subq_jax.data import DataConfig, data_info, make_train_iterator
from subq_jax.evaluation import evaluate, held_out_routing
from subq_jax.model.decoder import Decoder
from subq_jax.model.flops import training_flops
from subq_jax.parallel import batch_divisor, parse_mesh, put_batch
from subq_jax.training.checkpoints import Checkpoints
from subq_jax.training.config import RunConfig, check_config
from subq_jax.training.metrics import MetricsLog, StepProgress
from subq_jax.training.optimizer import make_optimizer, make_schedule
from subq_jax.training.step import StepMetrics, TrainState, abstract_state, make_train_step
from subq_jax.training.throughput import Throughput, peak_flops
from subq_jax.training.workdir import claim_workdir, only_process_in

logger = logging.getLogger(__name__)

EVAL_BATCHES = 4  # a glance during training; experiments score finished models on more


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A finished run: the model, the steps it took, and every row of `metrics.jsonl`."""

    model: nnx.Module
    step: int
    metrics: list[dict[str, Any]]


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    mesh: Mesh | None = None,
    show_progress: bool = True,
    device_peak_flops: float | None = None,
) -> TrainingResult:
    """Trains the config's model in `workdir`, or finishes a run that was cut off there.

    A run killed at any moment and started again gives the same bits as one that was not, on the same machine, mesh and
    versions. `workdir` holds `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/`.

    Args:
      config: sections `data`, `model`, `optimizer`, `training` and an integer `seed`.
      workdir: the run's folder.
      mesh: devices to train on, see `parse_mesh`; one device by default.
      show_progress: whether to draw a progress bar.
      device_peak_flops: FLOP/s of one device, for MFU; from a table of known devices by default.

    Raises:
      ValueError: for a wrong config, a batch that the mesh cannot share evenly, a workdir that belongs to another
        config, is in use or damaged, or checkpoints none of which can be read. All before any compute.
      FloatingPointError: when the loss or gradient stops being finite, naming the step; the last good checkpoint stays.
    """
    workdir = Path(workdir).absolute()
    mesh = parse_mesh("") if mesh is None else mesh
    checked = check_config(config)
    _check_batches(checked.data, batch_divisor(mesh), checked.training.microbatches)
    info = data_info(config.data)
    run = check_config(config, vocab_size=info.vocab_size)
    is_main = jax.process_index() == 0
    with only_process_in(workdir) if is_main else contextlib.nullcontext():
        claim_workdir(workdir, config, info.fingerprint, write=is_main)
        return _run(run, workdir, mesh, is_main, show_progress, device_peak_flops)


def _run(run: RunConfig, workdir: Path, mesh: Mesh, is_main: bool, show_progress: bool,
         device_peak_flops: float | None) -> TrainingResult:
    optimizer = make_optimizer(run.optimizer, run.training.steps, routers_apart=bool(run.model.distillation_phases))
    graphdef, abstract, initial_state = abstract_state(
        lambda: Decoder(run.model, rngs=nnx.Rngs(run.seed)), optimizer, mesh
    )
    batches = make_train_iterator(
        run.data,
        seed=run.seed,
        block_size=run.model.block_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    peak = device_peak_flops or peak_flops(mesh.devices.flat[0])
    with Checkpoints(workdir / "checkpoints", keep=run.training.keep_checkpoints) as checkpoints:
        restored = checkpoints.restore_latest(abstract)
        if restored is None:
            state, start = initial_state(), 0
        else:
            state, data_state, start = restored
            batches.set_state(data_state)
            logger.info("resuming at step %d of %d", start, run.training.steps)
        with (
            MetricsLog(workdir, restored_step=start, write=is_main) as log,
            StepProgress(run.training.steps, start, shown=show_progress and is_main) as progress,
        ):
            take_step = make_train_step(graphdef, optimizer, abstract, mesh, packed=run.data.packs_documents,
                                        distillation_phases=run.model.distillation_phases,
                                        microbatches=run.training.microbatches)
            throughput = Throughput(peak and peak * mesh.devices.size)
            loop = _Loop(run, mesh, graphdef, take_step, batches, checkpoints, log, progress, throughput)
            state = loop.run(state, start)
            return TrainingResult(nnx.merge(graphdef, state.params), run.training.steps, log.rows)


class _Loop:
    """The steps of a run. Every loss is read before the state it led to is saved or reported."""

    def __init__(self, run: RunConfig, mesh, graphdef, take_step, batches, checkpoints, log, progress, throughput):
        self._config, self._mesh, self._graphdef, self._take_step = run, mesh, graphdef, take_step
        self._batches, self._checkpoints = batches, checkpoints
        self._log, self._progress, self._throughput = log, progress, throughput
        self._schedule = make_schedule(run.optimizer, run.training.steps)
        self._compiled: set[Any] = set()

    def run(self, state: TrainState, start: int) -> TrainState:
        training = self._config.training
        unread: tuple[int, StepMetrics] | None = None
        for step in range(start + 1, training.steps + 1):
            state, metrics = self._dispatch(state, step)
            # Reading one step late keeps the device busy: it already works on this step while the host waits.
            if unread:
                self._read(*unread)
            unread = (step, metrics)
            last = step == training.steps
            logs = last or step % training.log_every == 0
            evaluates = training.eval_every > 0 and step % training.eval_every == 0
            saves = last or step % training.checkpoint_every == 0
            if logs or evaluates or saves:
                scalars = self._read(*unread)
                unread = None
                if logs:
                    self._report(step, scalars)
                # Before saving: a run killed between the two evaluates again, instead of never.
                paused = time.perf_counter()
                if evaluates:
                    self._evaluate(state, step)
                if saves:
                    self._log.sync()
                    self._checkpoints.save(state, self._batches.get_state(), step=step)
                self._throughput.pause(time.perf_counter() - paused)
            self._progress.update(step)
        return state

    def _dispatch(self, state: TrainState, step: int) -> tuple[TrainState, StepMetrics]:
        config = self._config
        phase = config.phase(step)
        batch = put_batch(next(self._batches), self._mesh)
        rows, length = batch["inputs"].shape
        began = time.perf_counter()
        state, metrics = self._take_step(state, batch, phase)
        if (rows, length, phase) not in self._compiled:
            self._compiled.add((rows, length, phase))
            self._throughput.pause(time.perf_counter() - began)
        # The analytic count is of the sparse model; dense warm-up does more work than that.
        flops = None if phase != "sparse" else rows * training_flops(config.model, length)
        self._throughput.count(rows * length, flops)
        return state, metrics

    def _read(self, step: int, metrics: StepMetrics) -> dict[str, float]:
        """Waits for a step's loss, gradient norm and, with distillation, divergence.

        Raises:
          FloatingPointError: when they, or what the step made of the parameters, are not finite.
        """
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm) and metrics.finite):
            good = self._checkpoints.latest_step
            kept = "no checkpoint was saved before it" if good is None else f"the checkpoint of step {good} is kept"
            after = "finite" if metrics.finite else "not finite"
            raise FloatingPointError(
                f"loss is {loss}, gradient norm {grad_norm} and the state after it {after} at step {step}; {kept}")
        scalars = {"loss": loss, "grad_norm": grad_norm}
        distilled = self._config.phase(step) in self._config.model.distillation_phases
        return scalars | ({"divergence": float(metrics.divergence)} if distilled else {})

    def _report(self, step: int, scalars: dict[str, float]) -> None:
        learning_rate = float(self._schedule(step - 1))  # the rate that this step used
        row = {"step": step, **scalars, "learning_rate": learning_rate}
        row |= self._throughput.read()
        self._log.write(row)
        self._progress.describe(row)

    def _evaluate(self, state: TrainState, step: int) -> None:
        data, model = self._config.data, nnx.merge(self._graphdef, state.params)
        (scores,) = evaluate(
            model,
            data,
            lengths=[data.seq_len],
            num_batches=EVAL_BATCHES,
            batch_size=data.batch_size,
            seed=self._config.seed,
        )
        named = {f"eval_{name}": scores[name] for name in ("loss", "accuracy", "bits_per_byte")}
        named |= held_out_routing(model, data, length=data.seq_len, batch_size=1, seed=self._config.seed)
        self._log.write({"step": step} | {name: value for name, value in named.items() if value is not None})


def _check_batches(data: DataConfig, divisor: int, microbatches: int) -> None:
    """Raises `ValueError` unless the batches of every curriculum stage spread evenly over mesh and microbatches."""
    lengths = [data.seq_len, *(entry[1] for entry in data.curriculum)]
    for length in lengths:
        rows = data.batch_size * data.seq_len // length
        if rows % (divisor * microbatches):
            raise ValueError(
                f"data.batch_size must give a multiple of data*fsdp={divisor} times training.microbatches="
                f"{microbatches} sequences at length {length}, got {rows}")
