"""`trl-ext generate`: its options. The work is in generate_run.py, imported only then."""

from argparse import Action, ArgumentParser, Namespace
from pathlib import Path

GENERATORS = ("transformers", "vllm", "endpoint", "file")
DESCRIPTION = """\
Sample completions of a file of prompts, score them if asked, and write one parquet file. Parts of it are written as
they come: after a kill, the same command goes on and samples only what is missing. RAFT and ReST start from the file by
generator=FileGenerator("samples.parquet")."""


def add_generate(commands) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "generate",
        help="sample completions of prompts into a parquet file, scored if asked",
        description=DESCRIPTION,
        example="trl-ext generate --prompts prompts.jsonl --model MODEL --output samples.parquet",
    )
    _add_files(parser)
    _add_generator(parser)
    _add_sampling(parser)
    _add_rewards(parser)
    parser.set_defaults(run=run, when_stopped="What is sampled is kept: the same command goes on from there.")


def _add_files(parser: ArgumentParser) -> None:
    add, file = parser.add_argument_group("prompts in, samples out").add_argument, {"type": Path, "metavar": "FILE"}
    add("--prompts", **file, required=True, help=".jsonl, .json, .csv or .parquet file; its columns reach rewards")
    add("--prompt-column", default="prompt", help="column with the prompts, text or messages (default: %(default)s)")
    add("--output", **file, required=True, help="parquet file to write; parts go into a folder beside it")
    text = "also write each prompt's first sample as AlpacaEval reads outputs (.json)"
    add("--alpaca-eval", **file, help=text)
    text = "prompts written together (default: %(default)s)"
    add("--prompts-per-part", type=int, default=64, metavar="N", help=text)


def _add_generator(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("who samples").add_argument
    add("--generator", choices=GENERATORS, default="transformers", help="default: %(default)s")
    add("--model", help="path or hub id; of an endpoint: its name there (default: the adapter's base)")
    add("--adapter", help="path or hub id of a PEFT adapter of the model")
    add("--tokenizer", help="path or hub id (default: the adapter's if it has one, else the model's)")
    add("--base-url", help="of the endpoint, e.g. http://localhost:8000/v1 (default: as OPENAI_BASE_URL says)")
    text = "of the generator 'file': .parquet or .jsonl with prompts and completions"
    add("--file", type=Path, metavar="FILE", help=text)
    text = 'of the endpoint: other fields of each request, e.g. {"chat_template_kwargs": {"enable_thinking": false}}'
    add("--extra-body", metavar="JSON", help=text)
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, default="auto", help="of the model; auto: the checkpoint's (default: %(default)s)")
    add("--device", help="of the model and of reward models, e.g. cuda:1 (default: the accelerator if there is one)")
    text = "completions sampled at once by transformers (default: what memory allows)"
    add("--batch-size", type=int, metavar="N", help=text)


def _add_sampling(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--num-generations", type=int, default=8, metavar="K", help="completions per prompt (default: %(default)s)")
    text = "longest one, in tokens (default: %(default)s)"
    add("--max-completion-length", type=int, default=512, metavar="TOKENS", help=text)
    add("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: %(default)s)")
    add("--top-p", type=float, default=1.0, help="likeliest tokens of this joint share (default: %(default)s)")
    add("--top-k", type=int, default=0, help="so many of the likeliest tokens; 0: all (default: %(default)s)")
    add("--min-p", type=float, help="leave out tokens below this share of the likeliest one's probability")
    add("--repetition-penalty", type=float, default=1.0, help="1: none (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same seed gives the same samples (default: %(default)s)")


class _Rewards(Action):
    """Keeps by which name they were given, for messages."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.reward, namespace.reward_flag = values, option_string


def _add_rewards(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("scores").add_argument
    text = (
        "one or several: r3, or another reward of trl_ext by its name, such as RepetitionPenalty; path or hub id of a reward "
        "model; a Python callable in TRL's protocol as module:name or path/to/file.py:name"
    )
    names = ("--reward-funcs", "--reward")  # the second one is older
    add(*names, action=_Rewards, dest="reward", nargs="+", metavar="REWARD", default=[], help=text)
    parser.set_defaults(reward_flag=names[0])
    text = "one per reward (default: 1 each); 0 only watches it"
    add("--reward-weights", type=float, nargs="+", metavar="WEIGHT", help=text)


def run(args: Namespace) -> None:
    """Run the command."""
    from trl_ext.cli.generate_run import generate

    generate(args)
