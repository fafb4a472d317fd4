"""`transformers.Trainer`, subclassed where adapters need it and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import seed_worker

from mmdora.batches.fit import Rows
from mmdora.batches.order import Batches, spare_row
from mmdora.batches.packing import Packs
from mmdora.batches.sampler import GroupedSampler
from mmdora.batches.stream import Stream, StreamBatches
from mmdora.batches.tasks import TaskRows
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.train.batch_size import Pieces
from mmdora.train.early_stopping import LOSS, SCORE, Answers
from mmdora.train.groups import parameter_groups
from mmdora.train.guards import NOT_AGAIN, where_not_finite
from mmdora.train.loss import ChunkedLoss
from mmdora.train.processes import Processes
from mmdora.train.saving import SavingTrainer
from mmdora.train.times import StepTimes


class AdapterTrainer(SavingTrainer):
    """Optimizer groups per modality, a reproducible order of rows, the loss in chunks, no step that is not finite.

    Args:
        facts: what a checkpoint's manifest says about the run: fingerprints of base and data.
        answers: what is generated and scored at each evaluation, beside the loss, by the prefix of its metrics.
    """

    def __init__(
        self,
        config: RunConfig,
        rows: Rows | TaskRows | Packs | Stream,
        facts: Mapping[str, Any],
        processes: Processes,
        answers: Mapping[str, Answers],
        **kwargs: Any,
    ):
        self.answers = answers
        self.config, self.rows, self.facts, self.processes = config, rows, facts, processes
        self.skipped = 0
        self._micro_batches: list[Any] = []  # of the step in hand
        self._loss_before: Any = None  # what `_tr_loss` was before it
        self._chunked: ChunkedLoss | None = None
        super().__init__(train_dataset=rows, **kwargs)
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise MmdoraError("FSDP of version 1 is not supported; set fsdp_version: 2 in the accelerate config")
        if config.training.find_batch_size:
            if processes.sharded:
                raise MmdoraError(
                    "training.find_batch_size: not with FSDP or DeepSpeed, whose processes cannot step apart"
                )
            self.pieces = Pieces(self.data_collator, config.training.batch_size)
        self.batches = self._make_batches()
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.times = StepTimes(self.args.device)
        self.add_callback(self.times)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.config.adapt, self.config.training)
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **kwargs)
        return self.optimizer

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix in self.answers:
            with self.compute_loss_context_manager():
                output.metrics[f"{metric_key_prefix}_score"] = self.answers[metric_key_prefix].score(self.model)
        return output

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As the stock one; of several tasks also the means, by which the best checkpoint is chosen."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if metric_key_prefix == "eval" and isinstance(self.eval_dataset, dict):
            means = {}
            for ending in (LOSS.removeprefix("eval"), SCORE.removeprefix("eval")):
                keys = [f"eval_{task}{ending}" for task in self.eval_dataset]
                if found := [metrics[key] for key in keys if key in metrics]:
                    means[f"eval{ending}"] = sum(found) / len(found)
            self.log(means)
            metrics |= means
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- data

    def _make_batches(self) -> Batches | StreamBatches:
        data, training, rows = self.config.data, self.config.training, self.rows
        if isinstance(rows, Stream):
            assert training.steps is not None
            ahead = 2 * data.workers + 1  # what loader processes prefetch, and accelerate
            rounds = training.steps * training.accumulation
            return StreamBatches(rows, training.batch_size, rounds, training.accumulation + ahead)
        lengths = rows.lengths if data.group_by_length else None
        return Batches(
            GroupedSampler(
                len(rows), training.batch_size, training.seed, lengths, rows.has_image, getattr(rows, "tasks", None)
            ),
            training.batch_size,
            self.processes.count,
            rows.has_image,
            spare_row(rows.lengths, rows.has_image, self.processes.sharded),
            companions=self.processes.sharded,
        )

    def get_train_dataloader(self) -> Any:
        """Batches of every process, in turn: accelerate gives each process its own."""
        return self.accelerator.prepare(
            DataLoader(
                self.rows,
                batch_sampler=self.batches,
                collate_fn=self.pieces or self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                worker_init_fn=partial(
                    seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
                ),
            )
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        epoch = self.state.global_step // self.steps_per_epoch
        self.batches.set_epoch(epoch)  # accelerate's wrappers hide it
        if isinstance(self.rows, TaskRows):
            self.rows.set_epoch(epoch)
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        self.times.mark("data")
        with self.processes.together():  # a row that cannot be read stops all
            try:
                batches = list(islice(epoch_iterator, num_batches))
            except MmdoraError as error:  # a loader process wraps the line in its traceback
                raise MmdoraError(str(error).rpartition(f"{MmdoraError.__name__}: ")[2].strip()) from None
        items = self._get_num_items_in_batch(batches, device)
        self.times.mark(None)
        return batches, items

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.batches.rounds / self.args.gradient_accumulation_steps)

    def _row_names(self) -> list[str]:
        """Ids of the rows of the step in hand, of all processes."""
        epoch, step = divmod(self.state.global_step, self.steps_per_epoch)
        self.batches.set_epoch(epoch)
        accumulation = self.args.gradient_accumulation_steps
        rounds = range(step * accumulation, min((step + 1) * accumulation, self.batches.rounds))
        if isinstance(self.batches, StreamBatches):
            found = self.processes.gathered([self.batches.ids[n] for n in rounds])
            return [name for names in zip(*found, strict=True) for ids in names for name in ids]
        indices = [i for n in rounds for p in range(self.processes.count) for i in self.batches.of_round(n, p)]
        rows = [self.rows[index] for index in indices if index >= 0]
        return [str(row["id"]) for found in rows for row in (found if isinstance(found, list) else [found])]

    # --- the loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self._chunks(inputs) if model.training else nullcontext():
            loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            if not loss.requires_grad:  # text rows, where only the projector trains: there is nothing to learn
                loss = loss + 0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
            self.times.mark("backward")
        return loss

    def _chunks(self, inputs: Any) -> AbstractContextManager[None]:
        """Where the config wants it and it is this model's loss, as the shortest row shows.

        A batch may have nothing to learn, and each process and each resume shall find the same. A stream's have.
        """
        if self.model.config.is_encoder_decoder:  # its labels are answers only
            return nullcontext()
        if self._chunked is None and self.config.training.chunked_loss:
            chunked = ChunkedLoss(self.model)
            if isinstance(self.batches, Batches):
                inputs = self.data_collator([self.rows[self.batches.spare]])
                inputs.pop("samples", None)
            if problem := chunked.problem(self._prepare_inputs(inputs)):
                self.say(f"loss: over all positions at once, since {problem}")
                chunked.usable = False
            self._chunked = chunked
        return self._chunked.applied() if self._chunked is not None and self._chunked.usable else nullcontext()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # the stock one divides what was summed before a resume too by the steps since
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self.skipped, 1)
        if "loss" in logs:
            logs |= self.times.per_step()
        super().log(logs, start_time)

    # --- steps that must not be taken

    def one_pass(self, model: Any, batch: Any, items: Any) -> Tensor:
        self._micro_batches.append(batch)
        self.times.samples += batch.pop("samples", 0)
        self.times.mark("forward")
        loss = super().one_pass(model, batch, items)
        self.times.mark("optimizer" if self.accelerator.sync_gradients else None)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm before the update; one that is not finite ends the run, or leaves the step out and is None."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        batches, self._micro_batches = self._micro_batches, []
        # one look at the device for both; after the reduction the norm is the same everywhere, the loss is not
        if not self.processes.any(not bool(torch.isfinite(self._tr_loss + norm))):
            return norm
        training, step = self.config.training, self.state.global_step + 1
        losses = self.processes.gathered(float(self._tr_loss))
        found = f"gradient norm {float(norm):g}, loss {' and '.join(f'{loss:g}' for loss in losses)}"
        rows = f"rows {', '.join(self._row_names())}"
        if training.on_nonfinite == "skip" and self.skipped < training.max_skipped:
            self.skipped += 1
            model.zero_grad()  # without gradients the optimizer does nothing
            self._tr_loss.copy_(self._loss_before)
            self._globalstep_last_logged += 1  # the logged mean is over the steps that were taken
            self.say(f"step {step} left out ({self.skipped} of at most {training.max_skipped}): {found}; {rows}")
            return None
        places = self.processes.gathered(where_not_finite(self.model, self._loss_again, batches))
        place = next((place for place in places if place != NOT_AGAIN), NOT_AGAIN)
        left_out = f" ({self.skipped} steps were left out before)" if self.skipped else ""
        skip = ", or set training.on_nonfinite: skip" if training.on_nonfinite == "stop" else ""
        error = MmdoraError(
            f"step {step}: {found}; {place}; {rows}; the update was not made and nothing of it was saved{left_out}. "
            f"Look at these rows or lower training.lr{skip}"
        )
        error.told = not self.processes.main
        raise error

    @property
    def micro_batch(self) -> Any:
        """The last one of the step in hand, or None between its forward passes and the next step's."""
        return self._micro_batches[-1] if self._micro_batches else None

    def _loss_again(self, inputs: Any) -> Any:
        with self.compute_loss_context_manager():
            return self.compute_loss(self.model, self._prepare_inputs(inputs))

    def say(self, line: str) -> None:
        if self.processes.main:
            tqdm.write(line)
