"""`trl-ext reward`."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.cli.dry_run import Line, read_as
from trl_ext.cli.roles import Roles, planned_model
from trl_ext.cli.training_command import Facts, TrainingCommand
from trl_ext.cli.training_command import main as run
from trl_ext.memory_planning.planning import MemoryPlan, memory_plan
from trl_ext.memory_planning.trainer_plan import UNKNOWN_LENGTH, args_settings, cut_settings
from trl_ext.reward_modeling import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.reward_modeling.pair_labels import MARGIN, PROBABILITY
from trl_ext.reward_modeling.preference_data import check_max_length, check_pairs, columns_of
from trl_ext.reward_modeling.ranked_lists import RANKS, are_lists, one_completion_a_row
from trl_ext.sequences.preference_rows import SIDES
from trl_ext.sequences.token_ids import prompt_and_completion_ids, row_template_kwargs, whole_ids
from trl_ext.sequences.windows import model_window


class RewardCommand(TrainingCommand):
    name = "reward"
    example = "--model_name_or_path MODEL --dataset_name pairs.jsonl --output_dir OUT"
    description = (
        "A reward model from pairs, with the imitation regulariser. Rows need `chosen` and `rejected`, with `prompt` or with "
        "the whole conversation in both; `margin` and `chosen_probability` are read too. Ranked lists have `prompt`, "
        "`completions` and `ranks`. A stopped run goes on with the same command."
    )
    trainer_class = ImitationRewardTrainer

    @classmethod
    def config(cls):
        return ImitationRewardConfig

    def trainer(self, roles: Roles, train: Dataset, evaluation: Dataset | None) -> ImitationRewardTrainer:
        return self.trainer_class(**roles.scorer(), args=self.args, train_dataset=train, eval_dataset=evaluation)

    def check(self, facts: Facts) -> None:
        if self.args.imitation_coef:
            check_max_length(self.args, facts.config)
        are_lists(facts.train, columns_of(facts.train, "train"), "train")  # of a stream it refuses them
        for name, rows in (("train", facts.known), ("eval", facts.evaluation)):
            if rows is not None:
                pairs = self._read(rows, name)
                if isinstance(facts.train, Dataset) or name == "eval":  # further pairs of a stream may fit
                    self._check_some_fit(pairs, name, facts.tokenizer)

    def _read(self, rows: Dataset, name: str) -> Dataset:
        """Pairs, or of lists each completion, on both sides."""
        complete, columns = self.args.imitation_coef > 0, columns_of(rows, name)
        if are_lists(rows, columns, name):
            rows = one_completion_a_row(rows, name, complete=complete)
            columns = rows.column_names
        return check_pairs(rows, columns, name, complete=complete)

    def _check_some_fit(self, pairs: Dataset, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise a ValueError where all pairs would be dropped; of most data the first one tells."""
        longest = self.args.max_length
        if longest is None or SIDES[0] not in pairs.column_names:
            return
        lengths = []
        for row in pairs:
            lengths.append(max(len(self._ids(row, side, tokenizer)) for side in SIDES))
            if lengths[-1] <= longest:
                return
        flag = "--dataset_name" if name == "train" else "--eval_dataset_name"
        raise ValueError(
            f"--max_length {longest}: the shortest pair of {flag} has {min(lengths)} tokens, so none would be left. Raise it, "
            "or shorten the pairs."
        )

    def first_row(self, facts: Facts) -> list[Line]:
        first = facts.known[0]
        rows = self._read(facts.known.select([0]), "train")
        if RANKS in first:
            lines = [self._side(row, SIDES[0], facts.tokenizer) for row in rows]
            prompt = [Line("prompt", *line[1:]) for line in lines[0][:-1]]
            return [*prompt, *map(_ranked, first[RANKS], [line[-1] for line in lines])]
        labels = [Line(label, str(first[label])) for label in (MARGIN, PROBABILITY) if label in first]
        return [line for side in SIDES for line in self._side(rows[0], side, facts.tokenizer)] + labels

    def _side(self, row: dict, side: str, tokenizer: PreTrainedTokenizerBase) -> list[Line]:
        """One completion, behind its prompt where that is known."""
        if side not in row:
            return [Line(side, "given as tokens")]
        if not row.get("prompt"):
            return [read_as(side, self._ids(row, side, tokenizer), tokenizer)]
        parts = prompt_and_completion_ids(row["prompt"], row[side], tokenizer, row_template_kwargs(row))
        names = (f"prompt of {side}", f"{side}, with its end")
        return [read_as(name, ids, tokenizer) for name, ids in zip(names, parts, strict=True)]

    def _ids(self, row: dict, side: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Prompt and completion."""
        nothing = "" if isinstance(row[side], str) else []
        return whole_ids(row.get("prompt") or nothing, row[side], tokenizer, row_template_kwargs(row))

    def _longest(self, rows: Dataset) -> int:
        """Completions of a row."""
        return max(map(len, rows[RANKS])) if RANKS in rows.column_names else len(SIDES)

    def plan(self, facts: Facts) -> MemoryPlan:
        length = self.args.max_length or model_window(facts.config) or 2 * UNKNOWN_LENGTH
        return memory_plan(
            facts.config,
            "reward",
            **args_settings(self.args, completions=self._longest(facts.known))
            | planned_model(self.model, self.args, card=self.run.card is not None),
            prompt_length=length - length // 2,
            completion_length=length // 2,
            imitation=self.args.imitation_coef > 0,
            imitation_head=self.args.imitation_coef > 0 and self.args.imitation_head is not None,
            **cut_settings(self.args),
        )


def _ranked(rank: float, line: Line) -> Line:
    return Line(f"rank {rank:g}, with its end", *line[1:])


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run(RewardCommand, argv)
