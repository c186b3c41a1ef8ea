"""A run stops at the first loss or gradient that is not finite, before a step is made with it or anything is saved."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from trl_ext.trainer_kit.finite_findings import (
    TEXT,
    Finding,
    Row,
    all_finite,
    columns_not_finite,
    first_not_finite,
    stop_message,
)
from trl_ext.trainer_kit.overrides import replaced
from trl_ext.trainer_kit.processes import alone, together
from trl_ext.trainer_kit.step_watch import MicroBatch, StepWatch


class FiniteSteps:
    """Mixin before a TRL trainer: what is not finite stops the run, in all of its processes.

    A loss does at once, whatever the precision. So does a gradient, but where a loss scaler (fp16) is there to skip its
    step: such steps are counted, in `skipped_steps` of the log, and 20 in a row stop the run. The error says which term of
    the loss, or which parameter's gradient, in which step, and from which rows, which are looked for by one more pass, row
    by row. Weights are looked at before the first step, before each checkpoint and after the last step.

    Losses are looked at once per optimizer step, which is where the processes agree. Trainer's `logging_nan_inf_filter`,
    which would log the mean of the losses before in the place of one that is not finite, is off in every run.

    Under DeepSpeed, which steps by itself, gradients are not looked at; the next loss is.

    Raises:
        FloatingPointError: In `train`.
    """

    _row_ids = "input_ids"  # of the inputs: one row each, or so many as say the following
    _sequences_per_row = 1
    _rates = ("learning_rate",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.finite = StepWatch(self.accelerator, self._check_weights, type(self).__name__)
        self.add_callback(self.finite)

    def train(self, *args, **kwargs):
        with replaced(self.args, logging_nan_inf_filter=False):
            return super().train(*args, **kwargs)

    def log(self, logs, *args, **kwargs):
        if self.accelerator.scaler is not None and "loss" in logs:
            logs["skipped_steps"], self.finite.skipped = self.finite.skipped, 0
        super().log(logs, *args, **kwargs)

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        self.finite.reads(inputs)
        return inputs

    def training_step(self, model, inputs, num_items_in_batch=None):
        with self.finite.micro_batch(num_items_in_batch) as batch:
            loss = super().training_step(model, inputs, num_items_in_batch)
            batch.terms |= {"loss" if batch.terms else self._loss_name(): loss}  # the last of them
        if self.accelerator.sync_gradients:
            self._check_step(self.finite.step())
        return loss

    def _save_checkpoint(self, model, trial):
        self._check_weights(f"after step {self.state.global_step}")
        super()._save_checkpoint(model, trial)

    # What a trainer says of itself

    def _loss_name(self) -> str:
        """What a loss is called whose terms nobody has named."""
        return "loss"

    def _learners(self) -> dict[str, nn.Module]:
        """All that is trained, by what it is."""
        return {"model": self.model}

    def _row_losses(self, term: str, batches: list[MicroBatch], k: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Each row of a step's k-th micro-batch, alone, and its loss."""
        inputs = batches[k].inputs
        rows = len(inputs[self._row_ids]) // self._sequences_per_row
        for i in range(rows):
            row = {
                name: value[i::rows] if isinstance(value, Tensor) and value.ndim else value
                for name, value in inputs.items()
            }
            with self.compute_loss_context_manager():
                yield row, self.compute_loss(self.model, dict(row), num_items_in_batch=batches[k].num_items)

    # What is looked at

    def _parameters(self) -> dict[str, nn.Parameter]:
        learners = self._learners().items()
        return {f"the {role}'s {name!r}": p for role, module in learners for name, p in module.named_parameters()}

    def _check_weights(self, when: str) -> None:
        with together(self.accelerator):
            parameters = self._parameters()
            if not all_finite(parameters.values()):
                raise FloatingPointError(
                    f"{type(self).__name__}.train: {first_not_finite(parameters)} is not finite {when}, so nothing is "
                    "learned from or saved there; checkpoints before it are kept. Load weights that are finite, and "
                    f"lower learning_rate ({self.args.learning_rate:g}) if it was trained."
                )

    def _check_step(self, batches: list[MicroBatch]) -> None:
        trained = {name: p for name, p in self._parameters().items() if p.grad is not None}
        in_loss, in_gradient = self.finite.failed(batches, [p.grad for p in trained.values()])
        if not in_loss and (not in_gradient or self.accelerator.scaler is not None):
            return self.finite.takes(self.state.global_step + 1, skipped=in_gradient)
        name = None if in_loss else first_not_finite({name: p.grad for name, p in trained.items()})
        findings = gather_object([self._finding(batches, name, trained.get(name))])
        call = f"{type(self).__name__}.train: optimizer step {self.state.global_step + 1}"
        rates = {name: rate for name in self._rates if (rate := getattr(self.args, name)) is not None}
        outcome = "was made by DeepSpeed, before it could be stopped" if self.is_deepspeed_enabled else "was not made"
        raise FloatingPointError(stop_message(findings, call, rates, outcome=outcome))

    def _finding(self, batches: list[MicroBatch], name: str | None, parameter: nn.Parameter | None) -> Finding | None:
        """What this process has found: in a parameter's gradient, or else in its loss."""
        if parameter is not None:
            what, value, numbers = f"the gradient of {name}", "not finite", range(len(batches))
        else:
            terms = [first_not_finite(batch.terms) for batch in batches]
            numbers = [k for k, term in enumerate(terms) if term is not None]
            if not numbers:
                return None
            what, value = f"the {terms[numbers[0]]}", str(batches[numbers[0]].terms[terms[numbers[0]]].item())
        try:
            rows = [row for k in numbers for row in self._rows(what.removeprefix("the "), batches, k, parameter)]
        except Exception:  # what only informs must not hide what failed
            rows = []
        return Finding(what, value, rows)

    def _rows(self, term: str, batches: list[MicroBatch], k: int, parameter: nn.Parameter | None) -> Iterator[Row]:
        """Each row of a micro-batch, looked at alone, and by this process alone; none where it has no whole model."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        with alone(self.accelerator), torch.set_grad_enabled(parameter is not None):
            for i, (row, loss) in enumerate(self._row_losses(term, batches, k)):
                looked_at = [loss]
                if parameter is not None:  # not `backward`, which other processes would have to join
                    looked_at += [
                        g for g in torch.autograd.grad(loss, [parameter], allow_unused=True) if g is not None
                    ]
                ids = row.get(self._row_ids, row.get("input_ids"))[0]
                text = self.processing_class.decode(ids, skip_special_tokens=True)[:TEXT]
                place = f"row {i} of micro-batch {k}"
                yield Row(place, text, fails=not all_finite(looked_at), columns=columns_not_finite(row))
