"""A monitor as a callback of Lightning's Trainer and of transformers'.

Neither package is imported before its callback is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Collection
from typing import Any

from eigendet.errors import UserError, lacking
from eigendet.monitoring.monitor import Monitor, monitor
from eigendet.monitoring.writers import Measurement
from eigendet.observe.keys import Point


def lightning_callback(points: Point | Collection[Point] = "act", *, writer: Any = None, **settings: Any) -> Any:
    """Return a callback for Lightning's Trainer that monitors the LightningModule.

    Steps are those of `trainer.global_step`, of the optimizer. Each `fit` is monitored from where it begins, also from
    a checkpoint; validation is left out.

    Args:
        points: see `eigendet.monitor`, as all that follows.
        writer: None: the trainer's loggers, at the step of the first batch that was seen.
        **settings: every further argument of `eigendet.monitor` but `start`.

    Raises:
        UserError: Lightning is not installed; when training begins: what `eigendet.monitor` raises.
    """
    callback: Any = _lightning().Callback

    class LightningMonitor(callback):
        """Watch the spectra of layers."""

        monitor: Monitor | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            def log(measurements: list[Measurement]) -> None:
                scalars = {name: value for one in measurements for name, value in one.scalars().items()}
                for logger in trainer.loggers:
                    logger.log_metrics(scalars, step=measurements[0].step)

            if getattr(pl_module, "_compiler_ctx", None) is not None:
                raise UserError(_COMPILED)
            target = log if writer is None else writer
            self.monitor = monitor(pl_module, points, writer=target, start=trainer.global_step, **settings)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if self.monitor is not None:
                self.monitor.step(trainer.global_step)

        def on_train_end(self, *_: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

        def on_exception(self, *_: Any) -> None:
            if self.monitor is not None:
                self.monitor.discard()

    return LightningMonitor()


def transformers_callback(points: Point | Collection[Point] = "act", *, writer: Any, **settings: Any) -> Any:
    """Return a callback for transformers' Trainer that monitors its model.

    Steps are those of `state.global_step`, of the optimizer. Each `train` is monitored from where it begins, also from
    a checkpoint; evaluation is left out. Should `train` raise, the next one ends what it left.

    Args:
        points: see `eigendet.monitor`, as all that follows.
        writer: the path of a CSV file, an object with `add_scalar`, or a function.
        **settings: every further argument of `eigendet.monitor` but `start`.

    Raises:
        UserError: transformers is not installed; when training begins: what `eigendet.monitor` raises.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise UserError(lacking(["transformers"])) from None

    class TransformersMonitor(TrainerCallback):
        """Watch the spectra of layers."""

        monitor: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if args.torch_compile:
                raise UserError(_COMPILED)
            if self.monitor is not None:
                self.monitor.discard()
            self.monitor = monitor(others["model"], points, writer=writer, start=state.global_step, **settings)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.monitor is not None:
                self.monitor.step(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

    return TransformersMonitor()


_COMPILED = "the model is compiled by torch.compile, which drops hooks; monitor a run of the plain model."


def _lightning() -> Any:
    """Return Lightning, by either of the names of its package."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise UserError(lacking(["lightning"]))
