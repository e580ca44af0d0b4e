from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eigendet
from eigendet.errors import UserError
from eigendet.monitoring.writers import TAP_COLUMNS
from tests.unit.test_monitor import Windows, hooks


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch", reason="needs lightning")


def lit_module(lightning: Any, fails_at: int | None = None) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

        def training_step(self, batch: Any, index: int) -> Tensor:
            if index == fails_at:
                raise RuntimeError("no more data")
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def batches() -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(40, 6), torch.randint(2, (40,))), batch_size=4)


def lit_trainer(lightning: Any, callback: Any, folder: Path, **options: Any) -> Any:
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False} | options
    return lightning.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[callback], **settings,
    )  # fmt: skip


def test_lightning_is_watched_at_the_optimizer_steps_without_its_validation(lightning: Any, tmp_path: Path) -> None:
    windows = Windows()
    callback = eigendet.lightning_callback(every=2, writer=windows.append)
    trainer = lit_trainer(lightning, callback, tmp_path, val_check_interval=4, accumulate_grad_batches=2)
    trainer.fit(lit_module(lightning), batches(), batches())
    assert windows.steps == [0, 2, 4] and windows.samples == [8, 8, 8]
    assert [str(one.key) for one in windows[0]] == ["net.1#0:act"]
    assert hooks() == 0


def test_lightning_goes_on_from_a_checkpoint(lightning: Any, tmp_path: Path) -> None:
    file = tmp_path / "spectra.csv"
    callback = eigendet.lightning_callback(every=4, writer=file)
    trainer = lit_trainer(lightning, callback, tmp_path)
    trainer.fit(lit_module(lightning), batches())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer = lit_trainer(lightning, callback, tmp_path, max_epochs=2)
    trainer.fit(lit_module(lightning), batches(), ckpt_path=tmp_path / "last.ckpt")
    assert pd.read_csv(file)["step"].tolist() == [0, 4, 8, 12, 16]


def test_lightning_logs_where_its_trainer_does(lightning: Any, tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(tmp_path)
    trainer = lit_trainer(lightning, eigendet.lightning_callback(every=4), tmp_path, logger=logger)
    trainer.fit(lit_module(lightning), batches())
    table = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    assert table["step"].tolist() == [0, 4, 8]
    assert table["net.1#0:act/energy_share"].between(0, 1).all()


def test_lightning_logs_nothing_where_no_layer_is_observed(
    lightning: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = eigendet.lightning_callback(every=4, channels=range(64, 513))
    logger = lightning.loggers.CSVLogger(tmp_path)
    lit_trainer(lightning, callback, tmp_path, logger=logger).fit(lit_module(lightning), batches())
    assert caplog.text.count("`channels` asks for other numbers of channels than the layers have, 16") == 1
    assert not logger.experiment.metrics and hooks() == 0


def test_a_failing_or_compiled_lightning_module_leaves_no_hooks(lightning: Any, tmp_path: Path) -> None:
    callback = eigendet.lightning_callback(every=1, writer=list)
    with pytest.raises(RuntimeError, match="no more data"):
        lit_trainer(lightning, callback, tmp_path).fit(lit_module(lightning, fails_at=3), batches())
    assert hooks() == 0
    with pytest.raises(UserError, match=r"compiled by torch\.compile"):
        trainer = lit_trainer(lightning, callback, tmp_path)
        trainer.fit(torch.compile(lit_module(lightning), backend="eager"), batches())
    assert hooks() == 0


@pytest.fixture
def transformers() -> Any:
    pytest.importorskip("accelerate", reason="needs accelerate")
    return pytest.importorskip("transformers", reason="needs transformers")


def hf_trainer(transformers: Any, folder: Path, callback: Any, steps: int, **options: Any) -> Any:
    configuration = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    data = [{"input_ids": torch.arange(8) + i, "labels": torch.tensor(i % 2)} for i in range(32)]
    arguments = transformers.TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=4, use_cpu=True, save_strategy="steps", save_steps=4,
        report_to=[], disable_tqdm=True, **options,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(configuration)
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])


def test_transformers_trainer_is_watched_without_its_evaluation_and_goes_on(transformers: Any, tmp_path: Path) -> None:
    file = tmp_path / "spectra.csv"
    callback = eigendet.transformers_callback(every=2, writer=file, modules="bert.encoder.*")
    hf_trainer(transformers, tmp_path / "run", callback, 4, eval_strategy="steps", eval_steps=2).train()
    table = pd.read_csv(file)
    assert table["step"].tolist() == [0, 2] and set(table["samples"]) == {4 * 8} and set(table["channels"]) == {32}
    trainer = hf_trainer(
        transformers, tmp_path / "run", callback, 8, gradient_checkpointing=True, gradient_accumulation_steps=2
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    table = pd.read_csv(file)
    assert table["step"].tolist() == [0, 2, 4, 6] and table["samples"].tolist() == [32, 32, 64, 64]
    assert list(table)[: len(TAP_COLUMNS)] == list(TAP_COLUMNS)
    assert hooks() == 0


def test_a_compiled_transformers_model_is_refused(transformers: Any, tmp_path: Path) -> None:
    callback = eigendet.transformers_callback(writer=list)
    with pytest.raises(UserError, match=r"compiled by torch\.compile"):
        hf_trainer(transformers, tmp_path, callback, 2, torch_compile=True, torch_compile_backend="eager").train()


@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_a_missing_package_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (package, "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    callback = {"lightning": eigendet.lightning_callback, "transformers": eigendet.transformers_callback}[package]
    with pytest.raises(UserError, match=f"{package} is not installed: pip install "):
        callback(writer=list)
