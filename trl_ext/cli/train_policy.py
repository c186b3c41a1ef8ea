"""What `trl-ext ppo`, `raft` and `rest` have in common: a policy that completes prompts, and is paid for it."""

from functools import cached_property

from datasets import Dataset

from trl_ext.cli.command_arguments import RewardArguments
from trl_ext.cli.dry_run import Line, ends, read_as, shortened
from trl_ext.cli.named_rewards import check_rewards, named
from trl_ext.cli.planned_scorers import planned_scorers
from trl_ext.cli.role_checks import check_policy, check_scorer
from trl_ext.cli.roles import planned_model
from trl_ext.cli.training_command import Facts, TrainingCommand
from trl_ext.memory_planning.planning import MemoryPlan, memory_plan
from trl_ext.memory_planning.trainer_plan import args_settings, cut_settings, longest_prompt
from trl_ext.rewards.reward_columns import check_reward_columns
from trl_ext.rewards.weighted_rewards import check_weights
from trl_ext.sequences.token_ids import prompt_ids
from trl_ext.sequences.turn_end import end_ids, turn_end_id
from trl_ext.sequences.windows import check_all_windows


class PolicyCommand(TrainingCommand):
    """A command whose rows are prompts."""

    method: str  # of `memory_plan`

    @property
    def rewards(self) -> RewardArguments:
        return next(given for given in self.others if isinstance(given, RewardArguments))

    @cached_property
    def named_rewards(self) -> list[object]:
        """What the names stand for; a user's file is run once."""
        return [named(name, self.rewards) for name in self.rewards.reward_funcs or []]

    def check(self, facts: Facts) -> None:
        names = self.rewards.reward_funcs or []
        check_rewards(self.rewards)
        check_weights(self.args.reward_weights, len(names), given=f"--reward_weights {self.args.reward_weights}")
        check_policy(facts.config, call=f"--model_name_or_path {self.model.model_name_or_path}")
        for reward in self.named_rewards:
            if isinstance(reward, str):
                check_scorer(reward, flag="--reward_funcs", may_come=self.run.dry_run)
        functions = [reward for reward in self.named_rewards if not isinstance(reward, str)]
        for flag, rows in (("--dataset_name", facts.known), ("--eval_dataset_name", facts.evaluation)):
            if rows is not None:
                self._check_rows(rows, functions, facts, call=flag)

    def _check_rows(self, rows: Dataset, functions: list, facts: Facts, *, call: str) -> None:
        check_reward_columns(functions, rows, call=call)
        check_all_windows(
            rows,
            facts.tokenizer,
            facts.config,
            max_completion_length=self.args.max_completion_length,
            call=call,
            template_kwargs=self.args.chat_template_kwargs,
        )

    def first_row(self, facts: Facts) -> list[Line]:
        row, tokenizer = facts.known[0], facts.tokenizer
        template_kwargs = self.args.chat_template_kwargs or {}
        stops = end_ids(tokenizer, None)
        if not isinstance(row["prompt"], str):
            turn = turn_end_id(tokenizer, **template_kwargs)
            stops += [turn] if turn not in (None, *stops) else []
        return [
            read_as("prompt", prompt_ids(row["prompt"], tokenizer, template_kwargs), tokenizer),
            Line("completion", f"⟦sampled: up to {self.args.max_completion_length} tokens⟧"),
            Line("end", ends(stops, tokenizer), "and those of the model's generation_config.json"),
            *(
                Line(name, shortened(repr(value)), "for the rewards")
                for name, value in row.items()
                if name != "prompt"
            ),
        ]

    def plan(self, facts: Facts) -> MemoryPlan:
        model = planned_model(self.model, self.args, card=self.run.card is not None)
        shared, dtype = self.model.bits is not None, model["dtype"]
        return memory_plan(
            facts.config,
            self.method,
            **args_settings(self.args)
            | model
            | planned_scorers(self.named_rewards, facts.config, shared=shared, dtype=dtype)
            | self.planned()
            | cut_settings(self.args),
            prompt_length=longest_prompt(facts.train, facts.tokenizer, self.args.chat_template_kwargs),
            completion_length=self.args.max_completion_length,
            num_generations=self.args.num_generations,
        )

    def planned(self) -> dict:
        """Further settings of the plan."""
        return {}
