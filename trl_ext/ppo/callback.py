"""What PPO does between Trainer's steps, besides looking after the critic."""

from transformers import TrainerCallback


class RolloutCallback(TrainerCallback):
    """Counts steps for the limit on drift, and stops a run that has collapsed if it is asked to.

    Args:
        trainer: The PPOTrainer.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        drift = self.trainer.drift
        drift.end_step()
        self.trainer._metrics["train"]["skipped_steps"] = [float(drift.skipped)]  # the count now, not a mean of counts

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= args.stop_on_collapse and self.trainer.collapse.warned
