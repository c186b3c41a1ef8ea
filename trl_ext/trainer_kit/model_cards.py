"""A card with each model that a trainer saves: TRL's own, with what the run learned from and reached."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from trl_ext.trainer_kit.card_files import (
    CARD,
    CardFacts,
    Paper,
    card_set_aside,
    complete_card,
    hub_id,
    is_strangers,
    results,
)
from trl_ext.trainer_kit.loading import loaded_bits
from trl_ext.trainer_kit.overrides import replaced


class ModelCards:
    """Mixin before a TRL trainer: a card with each model that it saves, over no README but a trainer's. Each says of its own:

    _learned_from    its data sets, by what they are for
    _scored_by       its rewards' names
    _settings_of     papers that its settings come from, beside its own
    """

    _shown: tuple[str, ...] = ()
    _paper: dict[str, str] = {}  # noqa: RUF012 - replaced, not changed
    _dataset_name: str | None = None  # as it was last given

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        folder = Path(self.args.output_dir)
        self._dataset_name = dataset_name or self._dataset_name
        if is_strangers(folder):
            if self.is_world_process_zero():
                warnings.warn(
                    f"{type(self).__name__}: {str(folder / CARD)!r} is not a trainer's and stays as it is.",
                    stacklevel=2,
                )
            return
        cited = [self._paper.get("citation"), *(paper.citation for paper in self._settings_of())]
        with replaced(self, _paper=self._paper | {"citation": "\n\n".join(filter(None, cited))}):
            super().create_model_card(model_name or folder.resolve().name, hub_id(self._dataset_name), tags)
        if self.is_world_process_zero():
            complete_card(folder, self._facts())

    def _save(self, output_dir=None, state_dict=None):
        folder, name = Path(output_dir or self.args.output_dir), self.hub_model_id or self.args.output_dir
        with card_set_aside(folder):  # PEFT takes the tags of whatever is there for its own
            super()._save(output_dir, state_dict)
        if not is_strangers(folder):
            with replaced(self.args, output_dir=str(folder)):
                self.create_model_card(Path(name).resolve().name)

    def _learned_from(self) -> dict[str, Any]:
        return {"training": self.train_dataset, "held out": self.eval_dataset}

    def _scored_by(self) -> Sequence[str]:
        return ()

    def _settings_of(self) -> Sequence[Paper]:
        return ()

    def _facts(self) -> CardFacts:
        wrapped = isinstance(self.accelerator.unwrap_model(self.model), PeftModel)
        return CardFacts(
            base=self.model.config._name_or_path,
            is_adapter=wrapped,
            data_name=self._dataset_name,
            data=self._learned_from(),
            rewards=tuple(self._scored_by()),
            results=results(self.state.log_history, self._shown),
            bits=loaded_bits(self.model.config),
            papers=self._settings_of(),
        )
