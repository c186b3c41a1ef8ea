"""A model card that replaces nobody else's README."""

import warnings
from pathlib import Path

CARD = "README.md"
MARK = "generated_from_trainer"  # a tag of every card that TRL writes


class OwnModelCard:
    """Mixin before a TRL trainer, which writes a README.md into output_dir with each checkpoint: only over its own."""

    def create_model_card(self, *args, **kwargs):
        card = Path(self.args.output_dir) / CARD
        if not card.is_file() or MARK in card.read_text(errors="replace"):
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            warnings.warn(f"{type(self).__name__}: {str(card)!r} is not a trainer's and stays as it is.", stacklevel=2)
