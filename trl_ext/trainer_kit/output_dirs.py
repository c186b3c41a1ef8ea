"""What a trainer looks after in its output_dir: that a README is nobody else's, and that a checkpoint has room."""

import warnings
from pathlib import Path

from trl_ext.trainer_kit.free_disk import check_free_disk, checkpoint_bytes
from trl_ext.trainer_kit.processes import together

CARD = "README.md"
MARK = "generated_from_trainer"  # a tag of every card that TRL writes


class OutputDirWatch:
    """Mixin before a TRL trainer.

    train                checks that the disk has room for a checkpoint, before anything is trained
    create_model_card    TRL writes a README.md with each checkpoint: only over its own
    """

    def train(self, *args, **kwargs):
        with together(self.accelerator):
            if self.args.should_save and self.args.save_strategy != "no":
                call = f"{type(self).__name__}.train, output_dir {str(self.args.output_dir)!r}"
                check_free_disk(Path(self.args.output_dir), checkpoint_bytes(self.model, self.args), call=call)
        return super().train(*args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        card = Path(self.args.output_dir) / CARD
        if not card.is_file() or MARK in card.read_text(errors="replace"):
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            warnings.warn(f"{type(self).__name__}: {str(card)!r} is not a trainer's and stays as it is.", stacklevel=2)
