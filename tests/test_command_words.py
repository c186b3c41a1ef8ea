"""A command names flags and files where a trainer names Python: every message of the package that does is walked."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import trl_ext
from trl_ext.cli.command_arguments import DataArguments, RewardArguments
from trl_ext.cli.command_words import in_words_of
from trl_ext.cli.evaluate import EvaluateArguments
from trl_ext.trainer_kit.commands import ends_in_one_line

ROOT = Path(trl_ext.__file__).parent
ROOMS = ("generation", "ppo", "reward_modeling", "rewards", "self_training", "sequences", "shared_base", "trainer_kit")
PYTHON = re.compile(
    r"\bdataset\.\w+|tokenizer\.\w+_\w+|resume_from_checkpoint=|accept_changes=[\[(]|another output_dir"
    r"|\w+Trainer\(\w+=|SharedBase\.\w+\(|FileGenerator\b|\b(train|eval) dataset\b|\b(train|eval|ptx)_dataset="
)
OF_PYTHON_ALONE = (  # what a command does not do, or says itself before
    "expected a datasets.Dataset",  # it reads a file, or a data set of the hub
    "a Dataset or an iterable",
    "expected a PPOConfig",
    "FileGenerator(X)",  # the generator's own name, which a flag does not spell
    "VLLMGenerator: the policy has no model",
    "expected a LoraConfig",
    "is frozen, so there is nothing to train",
    "all of it is frozen, so the critic",
    "add it with tokenizer.add_tokens",  # then the model is another one
)
UNREAD = ("migration.py",)  # names of TRL 0.x, for who moves a script


def messages() -> Iterator[tuple[str, str]]:
    """Texts that are no docstrings, with X where a value stands, and a trainer's name where one is meant."""
    for file in (path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name not in UNREAD):
        tree = ast.parse(file.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | parts:
                text = node.value
            else:
                continue
            text = re.sub(r"^X(?=\()", "RAFTTrainer", text).replace("(X, 'prompt')", "('X', 'prompt')")
            if " " in text and PYTHON.search(text):
                yield f"{file.name}:{node.lineno}", text


def test_every_message_has_words_for_a_command():
    walked = dict(messages())
    assert len(walked) > 40
    say = in_words_of("ppo")
    left = {place: say(text) for place, text in walked.items() if PYTHON.search(say(text))}
    assert not {place: text for place, text in left.items() if not any(own in text for own in OF_PYTHON_ALONE)}


def planned_messages() -> Iterator[tuple[str, str]]:
    """Texts of the plan that show a setting as it is given in Python, with X where a value stands."""
    for file in (path for path in (ROOT / "memory_planning").rglob("*.py") if path.name not in SHOWN_IN_PYTHON):
        tree = ast.parse(file.read_text())
        unread = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        unread |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unread:
                text = node.value
            else:
                continue
            text = re.sub(r"^X(?=\(model=)", "memory_plan", text)  # whoever asked for a shape
            if SETTING.search(text):
                yield f"{file.name}:{node.lineno}", text


SHOWN_IN_PYTHON = ("plan_changes.py", "trainer_plan.py")  # lines for a script; a trainer's own plan
SETTING = re.compile(r"\bmemory_plan\(|\btime_bound\(|\b(?:[a-z]\w*)=(?:True|False|None|'|X|\[|…|\d)")


def test_a_plan_is_refused_in_flags_where_the_command_was_given():
    walked = dict(planned_messages())
    assert len(walked) > 25
    say = in_words_of("plan")
    left = {place: say(text) for place, text in walked.items() if SETTING.search(say(text))}
    assert not {
        place: text for place, text in left.items() if "MemoryPlan(" not in text and "accelerate does" not in text
    }


@pytest.mark.parametrize(
    ("command", "message", "said"),
    [
        ("ppo", "dataset = dataset.rename_column('question', 'prompt').", "--columns prompt=question."),
        ("generate", "dataset = dataset.rename_column('question', 'prompt')", "--prompt-column question"),
        ("score", "begin anew with another output_dir.", "begin anew with another --output."),
        ("ppo", "within the run, accept_changes=['beta', 'lam'].", "within the run, --accept_changes beta lam."),
        ("ppo", "PPOTrainer.train(resume_from_checkpoint=True): output_dir 'out' holds", "--output_dir 'out' holds"),
        ("raft", "RAFTTrainer.train, output_dir 'out': no room", "--output_dir 'out': no room"),
        ("ppo", "PPOTrainer.train(resume_from_checkpoint='a/b'): no", "--resume_from_checkpoint a/b: no"),
        ("rest", "ReSTTrainer(train_dataset=…) is empty", "--dataset_name is empty"),
        ("ppo", "PPOTrainer(value_model='rm'): it has 2 labels", "--value_model rm: it has 2 labels"),
        ("ppo", "Set `tokenizer.eos_token`.", "Write eos_token into the model's tokenizer_config.json."),
        ("ppo", "Drop such rows with `dataset.filter`.", "Drop such rows from the file."),
        (
            "raft",
            "dataset = dataset.map(lambda row: {'a': row['a'].strip()})",
            "in each row of the file, a = row['a'].strip()",
        ),
        ("ppo", "SharedBase.reward_model('rm'): no", "--reward_funcs rm: no"),
        ("ppo", "SharedBase.from_pretrained('m', bits=8): no", "--model_name_or_path m: no"),
        ("ppo", "raise max_steps or num_train_epochs; to begin", "raise --max_steps or --num_train_epochs; to begin"),
        ("evaluate", "evaluate(reference=…): 'm' cannot be", "--reference: 'm' cannot be"),
        ("export", "SharedBase.from_pretrained('m'): it", "--base m: it"),
        ("export", "SharedBase.merge(output_dir='out'): what is", "--output_dir out: what is"),
        ("export", "SharedBase.merge(…): merged", "the run: merged"),
        ("raft", "ended: give drop_truncated=False to learn", "ended: give --drop_truncated false to learn"),
        ("reward", "Set max_length=256 (pairs", "Set --max_length 256 (pairs"),
        ("ppo", "Give top_relevance=1, or", "Give --top_relevance 1, or"),
        ("ppo", "e.g. by trl_ext.label_query_types(dataset): it", "e.g. by trl-ext label --query_types FILE: it"),
        ("ppo", "Give generator=VLLMGenerator().", "Give generator=VLLMGenerator()."),
        ("ppo", "the file's output_dirs, --output_dir a", "the file's output_dirs, --output_dir a"),
        ("plan", "memory_plan(bits=8, lora=None): no. Give bits=None.", "--bits 8 --lora 0: no. Give --bits 16."),
        (
            "plan",
            "memory_plan(num_gpus=4, shard=None): no. Give shard='ddp'.",
            "--num-gpus 4 without --shard: no. Give --shard ddp.",
        ),
        ("plan", "memory_plan(shared=True): no. Give shared=False.", "--shared: no. Give --no-shared."),
        ("plan", "memory_plan(judges=…): Leave judges out.", "--judges: Leave --judges out."),
        ("plan", "expected micro_batch ≤ batch. Raise batch.", "expected --micro-batch ≤ --batch. Raise --batch."),
        ("plan", "time_bound(shard='fsdp2'): no", "--hours --shard fsdp2: no"),
        ("plan", "memory_plan(model='a/b'): no. Give a model's config.json.", "a/b: no. Give a model's config.json."),
        ("plan", "shard='x'): expected one of None, ddp", "--shard x): expected one of ddp"),
    ],
)
def test_by_hand(command, message, said):
    assert in_words_of(command)(message) == said


def arguments_named(room: str, callee: str) -> set[str]:
    """Arguments of a call that messages of a room name."""
    texts = "\n".join(path.read_text() for path in (ROOT / room).rglob("*.py"))
    return set(re.findall(rf"""["']{callee}\((\w+)=[^)]*\)["':]""", texts))


def test_what_evaluate_names_are_flags_of_the_command():
    """`generator` is never given by the command."""
    named = arguments_named("evaluation", "evaluate") - {"generator"}
    flags = {
        f"--{field.name}" for kind in (EvaluateArguments, RewardArguments, DataArguments) for field in fields(kind)
    }
    assert {"dataset", "policy", "reference"} <= named
    assert {in_words_of("evaluate")(f"evaluate({name}=…)") for name in named} <= flags


def test_they_are_said_of_errors_and_warnings(capsys):
    with (
        pytest.raises(SystemExit),
        ends_in_one_line("cmd", when_stopped="", say=in_words_of("ppo"), folder=Path(__file__).parent),
    ):
        raise ValueError("Begin with another output_dir.")
    assert capsys.readouterr().err == "cmd: error: Begin with another --output_dir.\n"
