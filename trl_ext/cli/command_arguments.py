"""What the commands that train are told beside the method's own config; names are TRL's where it has one."""

from dataclasses import dataclass
from typing import Protocol

from trl import ModelConfig

from trl_ext.trainer_kit.config_docs import option


class LoadsInBits(Protocol):
    """Arguments that say in how many bits a base is loaded."""

    load_in_8bit: bool
    load_in_4bit: bool


def bits_of(args: LoadsInBits) -> int | None:
    """8 or 4; None for a base as its checkpoint is."""
    return 8 if args.load_in_8bit else 4 if args.load_in_4bit else None


@dataclass
class DataArguments:
    """Where the rows are."""

    _argument_group_name = "data"

    dataset_name: str | None = option(
        None, "A .jsonl, .json, .csv or .parquet file, or the hub id of a data set. Columns reach the rewards."
    )
    dataset_config: str | None = option(None, "Of a hub data set: which of its configurations.")
    dataset_train_split: str = option("train", "Of a hub data set: the split to learn from.")
    eval_dataset_name: str | None = option(
        None,
        "Held-out rows, as a file or a hub id. None: of a hub data set its dataset_test_split, where eval_strategy asks.",
    )
    dataset_test_split: str = option("test", "Of a hub data set: the split that is held out.")
    columns: list[str] | None = option(
        None, "Columns that have other names in the data, as `prompt=question reference=answer`."
    )


@dataclass
class TrainingDataArguments(DataArguments):
    """The same of a command that trains."""

    dataset_streaming: bool = option(
        False,
        "Read the rows to learn from as they come, of a .jsonl or .parquet file or of the hub, rather than all before the run. "
        "raft and rest need stage_batch_size with it; ppo and reward max_steps.",
    )


@dataclass
class ModelArguments(ModelConfig):
    """Which model, in how many bits, and its adapter."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None, "A causal language model, or an adapter of one: a hub id or a folder."
    )
    dtype: str | None = option(
        None, "float32, bfloat16, float16 or auto. None: as TRL loads it; in 8 or 4 bits bfloat16, on a CPU float32."
    )
    use_peft: bool = option(False, "Train an adapter (LoRA). In 8 or 4 bits always.")
    lora_dropout: float = option(0.0, "Of LoRA's inputs.")
    lora_target_modules: list[str] | None = option(["all-linear"], "Modules that get LoRA.")
    load_in_8bit: bool = option(False, "Load the base once, in LLM.int8(), for all roles (`SharedBase`).")
    load_in_4bit: bool = option(False, "Load the base once, in NF4 with double quantisation, for all roles.")

    @property
    def bits(self) -> int | None:
        return bits_of(self)


@dataclass
class RewardArguments:
    """What is paid for."""

    _argument_group_name = "rewards"

    reward_funcs: list[str] | None = option(
        None,
        "One or several: `r3`, or another reward of trl_ext by its name, such as RepetitionPenalty; a reward model, or an adapter "
        "of one, by path or hub id; a function in TRL's protocol as module:name or file.py:name. Weighted by "
        "reward_weights.",
    )
    relevance_encoder: str | None = option(None, "Of `r3`: path or hub id of a sentence encoder. None: Contriever.")
    top_relevance: float | None = option(
        None, "Of `r3`: the best relevance, as trl_ext.calibrate_relevance proposes it. None: 3.5, Contriever's."
    )
    length_cap: int | None = option(
        None, "Of `r3`: tokens beyond which length earns no more, e.g. the references' median. None: it always does."
    )
    tokenize: str | None = option(
        None,
        "Of `r3`: what length and repetition count: `wordpunct`, `unicode_wordpunct`, `characters`, `graphemes`, or a "
        "function from text to tokens as module:name or file.py:name. None: wordpunct.",
    )


@dataclass
class RunArguments:
    """How the command is run."""

    _argument_group_name = "this command"

    dry_run: bool = option(
        False, "Check config, data and plan, show the first row as the trainer will read it, and train nothing."
    )
    card: str | None = option(
        None,
        "With dry_run: plan for this card, e.g. 'RTX 4090', or for one of a size, e.g. 24GB. None: the one at hand.",
    )
