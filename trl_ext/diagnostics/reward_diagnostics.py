"""A callback that watches what a run's reward pays for."""

import json
from importlib.util import find_spec
from pathlib import Path

from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from trl_ext.diagnostics.diagnosis import Diagnosis
from trl_ext.diagnostics.gold_curve import PREFIX
from trl_ext.diagnostics.gold_reward import GoldReward, check_unseen
from trl_ext.diagnostics.grow_looks import GrowLooks, Grows
from trl_ext.diagnostics.look import Look
from trl_ext.diagnostics.rollout_looks import RolloutLooks
from trl_ext.diagnostics.saved_completions import take
from trl_ext.rewards.reward_callables import Reward
from trl_ext.rewards.reward_columns import check_reward_columns
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import AT_LEAST_1
from trl_ext.trainer_kit.whole_files import written_whole

PICTURE = "diagnostics.png"
KEPT = "_trl_ext_diagnostics.json"  # completions: a push to the hub leaves out what begins so


class RewardDiagnostics(TrainerCallback):
    """Watches whether a reward is being gamed: in the trainer's log, as a table and as a picture when training ends.

        trainer = PPOTrainer(...)           # or RAFTTrainer, ReSTTrainer, TRL's GRPOTrainer or RLOOTrainer
        trainer.add_callback(RewardDiagnostics(trainer, gold=judge))
        trainer.train()

    Each batch of rollouts, or each Grow, is looked at in the main process as it was scored: what length explains of the score
    and of each factor, what is copied, repeated, cut, and how gold goes while the proxy rises. `Look.measures` has the names,
    here with `diagnostics/` before them. What is learned is bit for bit the same.

    Args:
        trainer: Whose callback it is to be.
        gold: A reward that training does not see; it is logged beside the score, which is the proxy then.
        every: Batches of rollouts, or Grows, from one look to the next. A gold reward costs a call at each.
        show: Whether to print the table at the end.

    Attributes:
        diagnosis: What was seen so far.

    Raises:
        ValueError: For another trainer; for a gold reward that is paid, lacks a column, or gives None to all of the first look.
    """

    def __init__(self, trainer: Trainer, *, gold: Reward | None = None, every: int = 1, show: bool = True):
        self.every = checked("RewardDiagnostics", "every", every, int, AT_LEAST_1)
        self.trainer, self.show, self.diagnosis = trainer, show, Diagnosis([])
        call = "RewardDiagnostics(gold=…)"
        length = vars(trainer.args).get("max_completion_length") if isinstance(trainer, Trainer) else None
        judge = None if gold is None else GoldReward(gold, call=call, max_completion_length=length)
        self.looks = self._looks(judge)
        if judge is not None:
            weights = _weights(trainer)
            check_unseen(gold, trainer.reward_funcs, weights, call=call)
            check_reward_columns([judge.function], self.looks.rows_of, call=call)

    def _looks(self, judge: GoldReward | None) -> RolloutLooks | GrowLooks:
        if isinstance(self.trainer, GRPOTrainer | RLOOTrainer):
            return RolloutLooks(self.trainer, judge, self.every, self._rollouts_seen)
        if isinstance(self.trainer, Grows):
            return GrowLooks(self.trainer, judge, self.every, self._grow_seen)
        raise ValueError(
            f"RewardDiagnostics({type(self.trainer).__name__}): expected a trainer that pays completions by a reward: "
            "PPOTrainer, RAFTTrainer, ReSTTrainer, TRL's GRPOTrainer or RLOOTrainer. Of saved completions, see diagnose."
        )

    def on_train_begin(self, args, state, control, **kwargs):
        if state is not self.trainer.state:
            raise ValueError("RewardDiagnostics(trainer): it was added to another trainer. Make one for each.")
        if sum(isinstance(other, RewardDiagnostics) for other in self.trainer.callback_handler.callbacks) > 1:
            raise ValueError("RewardDiagnostics(trainer): the trainer has another one already. Give it one, once.")
        self.diagnosis = Diagnosis([entry for entry in state.log_history if _is_look(entry)])
        kept = Path(args.output_dir) / KEPT
        if state.global_step and kept.is_file():
            self.diagnosis.changes.load(json.loads(kept.read_text(encoding="utf-8")), until=state.global_step)
        self.looks.begin()

    def on_step_begin(self, args, state, control, **kwargs):
        if isinstance(self.looks, GrowLooks):
            self.looks.step_begins()

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._keep(Path(args.output_dir))

    def on_train_end(self, args, state, control, **kwargs):
        self.looks.end()
        if not state.is_world_process_zero or not self.diagnosis.history:
            return
        self._keep(Path(args.output_dir))
        if find_spec("matplotlib") is not None:
            self.diagnosis.save_png(Path(args.output_dir) / PICTURE)
        if self.show:
            self.diagnosis.print()

    def _keep(self, folder: Path) -> None:
        """What a resumed run compares its last completions with."""
        with written_whole(folder / KEPT) as partial_file:
            partial_file.write_text(json.dumps(self.diagnosis.changes.as_json()), encoding="utf-8")

    def _rollouts_seen(self, look: Look | None) -> None:
        """Into TRL's means until the next log."""
        for name, value in self._taken(look).items():
            self.trainer._metrics["train"][name].append(value)

    def _grow_seen(self, look: Look | None) -> None:
        self.trainer.log(self._taken(look))

    def _taken(self, look: Look | None) -> dict[str, float]:
        if look is None:
            return {}
        measures = take(self.diagnosis, look)
        spearman = self.diagnosis.gold and self.diagnosis.gold.spearman
        return measures | ({} if spearman is None else {f"{PREFIX}gold_spearman": spearman})


def _weights(trainer: Trainer) -> list[float]:
    """One per reward, as the trainer's config has them."""
    return trainer.args.reward_weights or [1.0] * len(trainer.reward_funcs)


def _is_look(entry: dict) -> bool:
    return any(name.startswith(PREFIX) for name in entry)
