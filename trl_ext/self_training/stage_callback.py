"""Tells a self-training trainer when an Improve begins, evaluates and ends."""

from transformers import TrainerCallback


class StageCallback(TrainerCallback):
    """Trainer's epochs are Improves: this hands its events on.

    Args:
        trainer: The SelfTrainingTrainer.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_run()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.begin_improve()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.skipping:  # without gradients no optimizer moves anything
            self.trainer.model.zero_grad(set_to_none=True)

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_step()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if self.trainer.is_in_train:
            self.trainer.take_note(metrics)

    def on_save(self, args, state, control, **kwargs):
        self.trainer.tidy_best()

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop |= self.trainer.is_level()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.end_run()
