"""A reward model that keeps the ability to write: Bradley–Terry ranking plus imitation of the chosen completion."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer

from trl_ext.memory_planning.memory_watch import MemoryWatch, card_of
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.memory_planning.trainer_plan import UNKNOWN_LENGTH, run_plan
from trl_ext.reward_modeling.collation import BESIDE, LIST_OF, PreferenceCollator
from trl_ext.reward_modeling.imitation_loss import completion_nll, completion_targets
from trl_ext.reward_modeling.imitation_reward_config import ImitationRewardConfig
from trl_ext.reward_modeling.pair_batches import PlainPairs, first_rows, lists_alone, pairs_of, scores_in_float32
from trl_ext.reward_modeling.pair_labels import PROBABILITY
from trl_ext.reward_modeling.preference_data import (
    PROMPT_TOKENS,
    check_data,
    check_max_length,
    check_pair_tokens,
    check_pairs,
    check_readable,
    columns_of,
    with_prompt_lengths,
    without_ties,
)
from trl_ext.reward_modeling.ranked_lists import (
    RANKED_IDS,
    RANKS,
    are_lists,
    lists_again,
    longest_list,
    one_completion_a_row,
)
from trl_ext.reward_modeling.reward_engines import check_engine, check_evaluates, refuse_early
from trl_ext.reward_modeling.shown_pairs import scored_pairs
from trl_ext.reward_modeling.vocabulary_head import VocabularyHead, imitation_head_of
from trl_ext.rewards.reward_models import check_one_label, load_scorer
from trl_ext.sequences.saved_policies import adapter_at
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.sequences.windows import model_window
from trl_ext.trainer_kit.adapters import adapter_tensors, keep_4_bit_layout, keep_adapters_in_fp32
from trl_ext.trainer_kit.checkpoints import ResumableTrainer
from trl_ext.trainer_kit.counted_once import CountedOnce, counted_rows
from trl_ext.trainer_kit.fingerprints import data_fingerprint, tensors_fingerprint
from trl_ext.trainer_kit.finite_steps import FiniteSteps
from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.passes import seen_in, under_adapter
from trl_ext.trainer_kit.sharding import CUTTING, engine_of
from trl_ext.trainer_kit.trainer_input import check_offloading, given_or_default


class ImitationRewardTrainer(CountedOnce, FiniteSteps, ResumableTrainer, RewardTrainer):
    """TRL's `RewardTrainer` with the imitation regulariser of Secrets of RLHF, Part I (arXiv:2307.04964).

        L = L_ranking + β_rm · Σ NLL(y_w | x) / number of chosen tokens

    L_ranking is TRL's loss, margin and centring included. The second term asks the same trunk, read by the frozen
    pretrained vocabulary head, to predict the chosen completion; so the trunk keeps what it knew of language. What is
    saved is a plain reward model. With `imitation_coef=0`, or a plain `RewardConfig`, all is TRL's.

    A column `chosen_probability` p makes labels soft (Part II, arXiv:2401.06080): −p · log σ(Δ) − (1 − p) · log σ(−Δ), with
    Δ less the `margin` in both, and p times the NLL. Rows of `prompt`, `completions` and `ranks` (1 is best, ties are no
    pair) are ranked lists: all pairs of a list, divided by their number, each completion read once, the best one imitated.

    A completion begins where its prompt ends; without a column `prompt`, where the pair parts. Tokenised pairs may say
    it themselves, in a column `num_prompt_tokens`. Overridden, each calling its parent:

        _prepare_dataset                   find where the chosen completions begin, drop ties, read ranked lists
        _set_signature_columns_if_needed   keep the columns beside a pair's tokens
        get_batch_samples                  count the tokens of an accumulation window
        compute_loss                       add the terms of soft labels and lists, and the imitation term, from the states
                                           that the `score` head reads
        log                                report it apart: `ranking_loss`, `imitation_loss`, `chosen_perplexity`

    Args:
        model: The reward model to be: a name or path, also that of an adapter with its head, a sequence-classification
            model with one label, or a `PeftModel` of one.
        args: An `ImitationRewardConfig`, the default, or a `RewardConfig`.
        train_dataset, eval_dataset: Pairs, with `chosen`, `rejected` and, where it is known, `prompt`, or tokenised; or lists.
        data_collator, …, peft_config: As in `RewardTrainer`, in its order.
        imitation_head: The vocabulary head as a module or checkpoint, instead of the model's own; it takes
            precedence over the option of that name.

    Raises:
        ValueError: For bad input, with the call, what was expected, what came and what to do.
        FloatingPointError: In `train`, where a loss or gradient is not finite; it says from which pairs.
    """

    _sequences_per_row = 2
    _noted, _row_means = ("_metrics", "_nll"), frozenset({"ranking_loss"})
    _nll: dict[str, list[Tensor]] | None = None  # pairs Σ NLL, number of tokens; since the last log
    _harmless = frozenset({"imitation_head"})  # a path; the record has the head's own fingerprint
    _tag_names = ["trl", "trl-ext", "reward-trainer"]  # noqa: RUF012 - as TRL declares it
    _name = "Imitation Reward"
    _paper = {  # noqa: RUF012
        "title": "Secrets of RLHF in Large Language Models Part I: PPO",
        "id": "2307.04964",
        "citation": "@article{zheng2023secrets,\n  title = {{Secrets of RLHF in Large Language Models Part I: PPO}},\n"
        "  author = {Rui Zheng and Shihan Dou and Songyang Gao and others},\n  year = 2023,\n  eprint = {arXiv:2307.04964}\n}",
    }

    _last: tuple[dict[str, Tensor], PlainPairs, Tensor] | None = None  # the batch it learned from last, and its scores
    _shown = ("accuracy", "margin", "ranking_loss", "imitation_loss")

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        *,
        imitation_head: nn.Module | str | None = None,
    ):
        load = partial(load_scorer, trainable=True)
        model, processing_class = adapter_at(model, processing_class, args, quantization_config, load=load)
        args = given_or_default(args, ImitationRewardConfig, model, method="Reward")
        if _imitates(args):
            refuse_early(args, model)
        check_offloading(args)
        check_one_label(model, args.model_init_kwargs)
        check_data(train_dataset, eval_dataset)
        if not _imitates(args):
            _refuse_idle_head(imitation_head)
        adapters = adapter_tensors(model, trainer="ImitationRewardTrainer") if _imitates(args) else {}
        with whole_loading() if _imitates(args) else nullcontext():
            super().__init__(
                model,
                args,
                data_collator,
                train_dataset,
                eval_dataset,
                processing_class,
                compute_metrics,
                callbacks,
                optimizers,
                optimizer_cls_and_kwargs,
                preprocess_logits_for_metrics,
                quantization_config,
                peft_config,
            )
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        check_pair_tokens([self.train_dataset, *evaluated], self.processing_class, self.model.config)
        self.memory = MemoryWatch(self._memory_plan, card_of(self.args.device))
        self.add_callback(self.memory)
        check_engine(self, imitates=_imitates(args))
        keep_4_bit_layout(self.model)
        if _imitates(args):
            keep_adapters_in_fp32(self.model, adapters)
            check_max_length(args, self.model.config)
            self._head = self._imitation_head(args.imitation_head if imitation_head is None else imitation_head)
            self._nll = {"train": [], "eval": []}
        self.data_collator = PreferenceCollator(self.data_collator)
        self._pairs = train_dataset
        self._note_beginning()

    def _recorded(self):
        apart = _imitates(self.args) and not self._head.is_embedding
        return {
            "train_dataset": data_fingerprint(self._pairs),
            "tokenizer": tokenizer_fingerprint(self.processing_class),
            "imitation_head": tensors_fingerprint([("weight", self._head.weight)]) if apart else None,
        }

    def _learned_from(self):
        return {"training pairs": self._pairs, "held out": self.eval_dataset}

    def _run_record(self):
        record = super()._run_record()
        return record | {"config": {"imitation_coef": 0.0} | record["config"]}  # TRL's own config has no imitation

    @property
    def _accept_by(self):
        own = isinstance(self.args, ImitationRewardConfig)
        return "accept_changes" if own else "an ImitationRewardConfig with imitation_coef=0.0 and accept_changes"

    def _memory_plan(self) -> MemoryPlan:
        length = self.args.max_length or model_window(self.model.config) or 2 * UNKNOWN_LENGTH
        return run_plan(
            "reward",
            self.model,
            self.args,
            prompt_length=length - length // 2,
            completion_length=length // 2,
            completions=longest_list(self.train_dataset),
            imitation=_imitates(self.args),
            imitation_head=_imitates(self.args) and not self._head.is_embedding,
        )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        columns = columns_of(dataset, dataset_name)
        if RANKED_IDS in columns:  # prepared before
            return dataset
        if are_lists(dataset, columns, dataset_name):
            singles = one_completion_a_row(dataset, dataset_name, complete=_imitates(args))
            tokenised = self._tokenised(singles, singles.column_names, processing_class, args, dataset_name)
            return lists_again(tokenised, dataset_name)
        dataset = self._tokenised(dataset, columns, processing_class, args, dataset_name)
        return without_ties(dataset, dataset_name) if _imitates(args) else dataset

    def _tokenised(self, dataset, columns, processing_class, args, dataset_name):
        dataset = check_pairs(dataset, columns, dataset_name, complete=_imitates(args))
        tokenizer = None if {"chosen_ids", "chosen_input_ids"} & set(columns) else processing_class
        if tokenizer is not None:
            check_readable(dataset, tokenizer, dataset_name)
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if _imitates(args) and PROMPT_TOKENS not in columns:
            with args.main_process_first(desc="finding completions"):
                dataset = with_prompt_lengths(dataset, tokenizer, num_proc=args.dataset_num_proc)
        return dataset

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        own = [PROBABILITY, RANKED_IDS, RANKS, *([PROMPT_TOKENS] if _imitates(self.args) else [])]
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *own]))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if _imitates(self.args) and batches:
            count = sum(self._chosen(batch)[1].sum().to(device) for batch in batches)
            num_items = self.accelerator.gather(count).sum()
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        beside = {name: inputs[name] for name in BESIDE if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in BESIDE}
        pairs = pairs_of(beside, self.accelerator)
        read = seen_in(self._score_head(), lambda args, output: args[0]) if _imitates(self.args) else nullcontext([])
        with read as states:
            loss, outputs = super().compute_loss(pairs.read_by(self._scorer(model)), inputs, True, num_items_in_batch)
        self._keep_last(inputs | beside, pairs, outputs)
        own = self._counted_rows(pairs, outputs.logits)
        loss = self._with_labels(loss, pairs, outputs.logits.squeeze(-1), inputs.get("margin", 0.0), own)
        if _imitates(self.args):
            loss = self._with_imitation(loss, inputs | beside, states[0], num_items_in_batch, own)
        return (loss, outputs) if return_outputs else loss

    def _scorer(self, model: Callable) -> Callable:
        return scores_in_float32(model) if _imitates(self.args) else model

    def _counted_rows(self, pairs: PlainPairs, rewards: Tensor) -> int | None:
        """How many rows of this process's batch metrics are of: in an evaluation by several none is counted twice."""
        if self.model.training or self.accelerator.num_processes == 1:
            return None  # all, as TRL counts them
        return counted_rows(pairs.rows(rewards), self.accelerator)[0]

    def _rows_of(self, inputs):
        lists = inputs.get(LIST_OF)
        return len(inputs["input_ids"]) // 2 if lists is None else int(lists.max()) + 1

    def _first_rows(self, inputs, count):
        return first_rows(inputs, count)

    def _check_evaluates(self) -> None:
        check_evaluates(self)

    def _with_labels(
        self, loss: Tensor, pairs: PlainPairs, rewards: Tensor, margin: Tensor | float, own: int | None
    ) -> Tensor:
        """TRL's loss with what its pairs add to it; their measures take the place of TRL's."""
        added = pairs.added(rewards, margin, self.args.center_rewards_coefficient)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, sums in pairs.measures(rewards.detach(), own).items():
            total, count = self.accelerator.reduce(torch.stack([one.float() for one in sums]), reduction="sum")
            metrics[name][-1:] = [(total / count).item()] if count else []  # none of whose labels says which is better
            if not metrics[name]:
                del metrics[name]
        return loss if added is None else loss + added

    def _with_imitation(
        self, loss: Tensor, batch: dict[str, Tensor], states: Tensor, window: Tensor | None, own: int | None
    ) -> Tensor:
        """That loss and the imitation term, each NLL with the weight that its completion is the better."""
        ids, targets = self._chosen(batch)
        with self.accelerator.autocast():  # as the model's own head would be read
            nll = completion_nll(states[: len(ids)], ids, targets, self._head)
        self._record(loss, nll[: targets[:own].sum()])
        if PROBABILITY in batch:
            nll = nll * batch[PROBABILITY].unsqueeze(1).expand_as(targets)[targets]
        imitation = self.args.imitation_coef * self._window_mean(nll, window)
        return self.finite.total({"ranking loss": loss, "imitation loss": imitation})

    def _row_losses(self, term, batches, k):
        if LIST_OF not in batches[k].inputs:
            yield from super()._row_losses(term, batches, k)
            return
        for one in lists_alone(batches[k].inputs):
            with self.compute_loss_context_manager():
                yield one, self.compute_loss(self.model, dict(one), num_items_in_batch=batches[k].num_items)

    def _keep_last(self, batch: dict[str, Tensor], pairs: PlainPairs, outputs: Any) -> None:
        if self.model.training:
            self._last = (batch, pairs, outputs.logits.detach())

    def _last_samples(self):
        if self._last is None:
            return []
        batch, pairs, scores = self._last
        return scored_pairs(pairs.sides(batch), scores.flatten().tolist(), self.processing_class)

    def _loss_name(self):
        return "ranking loss"  # of all that is left to TRL

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        if _imitates(self.args) and self._nll[mode]:
            total, count = torch.stack(self._nll[mode]).sum(0)
            mean = total / count.clamp(min=1)
            self._metrics[mode] |= {"imitation_loss": [mean.item()], "chosen_perplexity": [mean.exp().item()]}
            self._nll[mode].clear()
        super().log(logs, start_time)

    def _chosen(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Ids of the chosen sequences and which of them are imitated, `(B, T)` each."""
        count = len(batch[PROMPT_TOKENS])  # they come first
        ids, mask = batch["input_ids"][:count], batch["attention_mask"][:count]
        return ids, completion_targets(mask, batch[PROMPT_TOKENS]) & (ids < self._head.size)

    def _window_mean(self, nll: Tensor, window_tokens: Tensor | None) -> Tensor:
        """This batch's share of Σ NLL / number of tokens over the accumulation window and all processes.

        Trainer divides by the number of batches in the window, and averages over processes: both are undone here. In
        evaluation each batch stands alone.
        """
        if window_tokens is None:
            return nll.sum() / max(len(nll), 1)
        averaged_over = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return nll.sum() * averaged_over / window_tokens.clamp(min=1)

    def _record(self, ranking_loss: Tensor, nll: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        mean_loss = self.accelerator.gather(ranking_loss.detach()).mean()
        self._metrics[mode]["ranking_loss"].append(mean_loss.item())
        sums = torch.stack([nll.detach().sum(), nll.new_tensor(len(nll))])
        self._nll[mode].append(self.accelerator.reduce(sums, reduction="sum"))

    def _score_head(self) -> nn.Module:
        """The model's `score` module, or what an adapter put in its place."""
        return under_adapter(self.accelerator.unwrap_model(self.model)).score

    def _imitation_head(self, given: nn.Module | str | None) -> VocabularyHead:
        revision = (self.args.model_init_kwargs or {}).get("revision")
        is_cut = engine_of(self) in CUTTING
        return imitation_head_of(self.model, given, self.processing_class, revision=revision, is_cut=is_cut)


def _imitates(args: RewardConfig) -> bool:
    return isinstance(args, ImitationRewardConfig) and args.imitation_coef > 0


def _refuse_idle_head(head: nn.Module | str | None) -> None:
    if head is not None:
        raise ValueError(
            "ImitationRewardTrainer(imitation_head=…) without imitation: it does nothing at imitation_coef=0. Give "
            "ImitationRewardConfig(imitation_coef=0.1), or leave it out."
        )
