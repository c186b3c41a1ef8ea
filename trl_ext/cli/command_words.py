"""What is said to someone in Python, in the words of a command: which flag to give, what to change in which file.

Messages are raised where a fault is found, for whoever calls. The rules here are all that a command says otherwise.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import NamedTuple

from trl_ext.memory_planning.plan_settings import PlanSettings

FLAGS = {  # of what trainers and data sets are given, by the name of the argument
    "train_dataset": "--dataset_name",
    "eval_dataset": "--eval_dataset_name",
    "ptx_dataset": "--ptx_dataset_name",
    "reward_funcs": "--reward_funcs",
    "model": "--model_name_or_path",
    "base": "--model_name_or_path",
    "processing_class": "the tokenizer of --model_name_or_path",
    "reward_processing_classes": "the tokenizers of --reward_funcs",
    "value_model": "--value_model",
    "generator": "--generator",
    "resume_from_checkpoint": "--resume_from_checkpoint",
    "bits": "--load_in_8bit, --load_in_4bit",
}
OWN_FLAGS = {  # of commands that name the same otherwise: Python's word, and the flag
    "score": {"output_dir": "--output", "rename": "--{new}_column {old}"},
    "generate": {"output_dir": "--output", "rename": "--prompt-column {old}", "model": "--model"},
    "label": {"output_dir": "--output", "model": "--model", "labeler": "--model"},
    "export": {"model": "the run", "base": "--base"},
    "evaluate": {
        "output_dir": "--output",
        "model": "--policies",
        "policy": "--policies",
        "base": "--base",
        "dataset": "--dataset_name",
        "rewards": "--reward_funcs",
    },
}
COMMON = {"output_dir": "--output_dir", "rename": "--columns {new}={old}"}


class Rule(NamedTuple):
    """Words for someone in Python, and what a command says; `names` are FLAGS with a command's own."""

    found: re.Pattern[str]
    said: Callable[[re.Match[str], Mapping[str, str]], str]


def _rule(pattern: str, said: str | Callable[[re.Match[str], Mapping[str, str]], str]) -> Rule:
    return Rule(re.compile(pattern), said if callable(said) else lambda match, names: match.expand(said))


def _argument(match: re.Match[str], names: Mapping[str, str]) -> str:
    """`PPOTrainer(train_dataset=…)` as its flag, with the value where one is shown."""
    flag, value = names.get(match["name"], f"--{match['name']}"), match["value"].strip("'")
    return flag if value in ("…", "None") else f"{flag} {value}"


def _role(match: re.Match[str], names: Mapping[str, str]) -> str:
    """`SharedBase.reward_model('rm')` as the flag that names that role."""
    of_roles = {"reward_model": "reward_funcs", "value_model": "value_model", "from_pretrained": "base"}
    flag, value = names[of_roles.get(match["role"], "model")], match["value"].strip("'")
    return flag if value == "…" else f"{flag} {value}"


RULES = (
    _rule(
        r"dataset = dataset\.rename_column\('(?P<old>[^']*)', '(?P<new>\w+)'\)",
        lambda match, names: names["rename"].format_map(match.groupdict()),
    ),
    _rule(r"dataset = dataset\.map\(lambda row: \{'?(\w+)'?: (.+)\}\)", r"in each row of the file, \1 = \2"),
    _rule(r"with `dataset\.filter`", "from the file"),
    _rule(r"`dataset\.filter`", "a filter over the file"),
    _rule(r"set `tokenizer\.chat_template`", "put one as chat_template.jinja into the model's folder"),
    _rule(r"Set `tokenizer\.(\w+)`", r"Write \1 into the model's tokenizer_config.json"),
    _rule(r"set tokenizer\.(\w+)=(\S+)", r"write \1: \2 into the model's tokenizer_config.json"),
    _rule(r"set tokenizer\.(\w+) to", r"set \1 of the model's tokenizer_config.json to"),
    _rule(r"(?:with train\()?resume_from_checkpoint=True\)?, or the same command again", "with the same command"),
    _rule(r"Go on with it by resume_from_checkpoint=True", "Give the same command again"),
    _rule(r"Resume with resume_from_checkpoint=True", "Give the same command again"),
    _rule(
        r"Start all of them again with resume_from_checkpoint=True", "Start all of them again with the same command"
    ),
    _rule(r" \(train\(resume_from_checkpoint=True\) goes on from it\)", ""),
    _rule(r"(?:\w+\.)?train\(resume_from_checkpoint=(?:True|None|False)\):? ?", ""),
    _rule(r"(?:\w+\.)?train\(resume_from_checkpoint='?(?P<path>[^')]*)'?\)", r"--resume_from_checkpoint \g<path>"),
    _rule(
        r"accept_changes=[\[(](?P<names>[^\])]*)[\])]",
        lambda match, names: f"--accept_changes {match['names'].replace(chr(39), '').replace(',', '')}",
    ),
    _rule(
        r"in another output_dir with generator=FileGenerator\('?([^')]*)'?\)",
        r"in another --output_dir with --generator \1",
    ),
    _rule(r"where FileGenerator takes", "where --generator FILE takes"),
    _rule(
        r"\b([Gg]ive|[Ss]et) (?P<name>[a-z]\w+)=(?P<value>True|False|[\d.]*\d|'[^']*')(?![\w(])",
        lambda match, names: f"{match[1]} --{match['name']} {match['value'].strip(chr(39)).lower()}",
    ),
    _rule(r"\braise (\w+) or (\w+); to begin", r"raise --\1 or --\2; to begin"),
    _rule(r"\braise (\w+); to begin", r"raise --\1; to begin"),
    _rule(r"another output_dir", lambda match, names: f"another {names['output_dir']}"),
    _rule(r"(?:\w+Trainer\.train, )?(?<!-)\boutput_dir (?=['/\w])", lambda match, names: f"{names['output_dir']} "),
    _rule(r"give PPOTrainer a PeftModel, or peft_config=…", "give the folder of an adapter, or --use_peft"),
    _rule(r"base\.reward_model\(LoraConfig\(…\)\)\.module into ImitationRewardTrainer", "trl-ext reward"),
    _rule(r"SharedBase\.\w+\((?P<name>\w+)=(?P<value>[^()]*)\)", _argument),
    _rule(r"SharedBase\.(?P<role>\w+)\((?P<value>[^(),]*)(?:, [^()]*)?\)", _role),
    _rule(
        r"(?:\w+Trainer|\bevaluate(?:_reward)?)\((?P<name>\w+)=(?P<value>'[^']*'|(?:[^()]|\([^()]*\))*)\)", _argument
    ),
    _rule(
        r"ImitationRewardTrainer: the (margin|chosen_probability) of row (\w+) of the train dataset",
        r"--dataset_name, row \2: the \1",
    ),
    _rule(r"ImitationRewardTrainer: (?=the|no|in|row)", ""),
    _rule(
        r"\b(?:PreferenceLabeler(?:\.label)?|label_query_types|LanguageModelLabeler|EndpointLabeler|EndpointLogProbs)"
        r"\((?P<name>\w+)=(?P<value>'[^']*'|[^()]*)\)",
        _argument,
    ),
    _rule(r"\b(?:PreferenceLabeler\.label|label_query_types|LanguageModelLabeler): ", ""),
    _rule(
        r"labeler=LanguageModelLabeler\(model\) or EndpointLabeler\(…\): rows that have a type keep it",
        "--model or --endpoint, with the labelled file and another --output: rows that have a type keep it",
    ),
    _rule(
        r"leave them out: dataset\.filter\(lambda row: row\['query_type'\] is not None\)", "leave them out of the file"
    ),
    _rule(r"by trl_ext\.label_query_types\(dataset\)", "by trl-ext label --query_types FILE"),
    _rule(
        r"by label_query_types\(dataset, labeler\) with another labeler, which asks",
        "by trl-ext label --query_types FILE with --model or --endpoint, which asks",
    ),
    _rule(r"Rename them: dataset\.rename_columns\(\{…\}\)", "Name them by --columns, as completion_1=answer_a"),
    _rule(r"\bthe train dataset\b", "--dataset_name"),
    _rule(r"\bthe eval dataset\b", "--eval_dataset_name"),
)


# Of what `memory_plan` is given, whose arguments are the flags of `trl-ext plan`.
SETTINGS = (*(field.name for field in fields(PlanSettings)), "judge_bits", "max_steps", "prompts", "epochs")
NAMES = "|".join(sorted(SETTINGS, key=len, reverse=True))
VALUE = r"'[^']*'|\[…\]|\[[^\]]*\]|…|[\w-]+(?:\.\w+)*"
NONE = {"lora": "0", "bits": "16", "served_bits": "16", "judge_bits": "16"}  # what the command says for None


def _setting(match: re.Match[str], names: Mapping[str, str]) -> str:
    """`shared=False` as its flag."""
    name, value = match["name"], match["value"].strip("'")
    flag = "--" + name.replace("_", "-")
    if name == "model":
        return value
    said = {"True": flag, "False": flag.replace("--", "--no-", 1), "…": flag, "[…]": flag}
    said["None"] = f"{flag} {NONE[name]}" if name in NONE else f"without {flag}"
    return said.get(value, f"{flag} {value}")


def _call(match: re.Match[str], names: Mapping[str, str]) -> str:
    """`memory_plan(bits=8, lora=None)` as its flags."""
    setting = re.compile(rf"(?P<name>\w+)=(?P<value>{VALUE})")
    said = [_setting(one, names) for one in setting.finditer(match["given"])]
    return " ".join([*(["--hours"] if match["call"] == "time_bound" else []), *said])


PLAN_RULES = (
    _rule(r"(?P<call>memory_plan|time_bound)\((?P<given>[^()]*)\)", _call),
    _rule(rf"\b(?P<name>{NAMES})=(?P<value>{VALUE})", _setting),
    _rule(
        rf"(?P<verb>\b(?:[Gg]ive|[Ll]eave|[Ll]ower|[Rr]aise|expected)|≤) (?P<name>{NAMES})\b(?! (?:of|model|in)\b)",
        lambda match, names: f"{match['verb']} --{match['name'].replace('_', '-')}",
    ),
    _rule(r"expected (?:None|False), since", "it is not to be given, since"),
    _rule(r"expected None, ", "expected 16, "),
    _rule(r"one of None, (?=\d)", "one of 16, "),
    _rule(r"one of None, ", "one of "),
    _rule(r", or None for the whole batch", ""),
    _rule(
        r"\. Choose one, None for weights that are not quantised",
        ". Choose one, 16 for weights that are not quantised",
    ),
    _rule(r" Pass a [\w.]+ModelShape\.", " In Python, memory_plan takes a ModelShape."),
)


def in_words_of(command: str) -> Callable[[str], str]:
    """Says a message as a command says it.

    >>> in_words_of("ppo")("Rename yours: dataset = dataset.rename_column('text', 'prompt').")
    'Rename yours: --columns prompt=text.'
    >>> in_words_of("score")("begin anew with another output_dir")
    'begin anew with another --output'
    """
    names = FLAGS | COMMON | OWN_FLAGS.get(command, {})
    rules = (*PLAN_RULES, *RULES) if command == "plan" else RULES

    def say(text: str) -> str:
        for rule in rules:
            text = rule.found.sub(lambda match, rule=rule: rule.said(match, names), text)
        return text

    return say
