"""From a few seeds to a policy that AI feedback has trained: Self-Instruct → SFT → labels → reward model → RAFT, PPO or DPO → report.

    python examples/from_nothing.py --output-dir OUT                      offline, on the demo's world
    python examples/from_nothing.py --output-dir OUT --rounds 3 --with dpo
    python examples/from_nothing.py --output-dir OUT --endpoint http://localhost:8000/v1 --endpoint-model NAME --model MODEL --seeds SEEDS

1. Instructions and instances are made from the seeds, and prompts get their query type.
2. SFT on them: the start.
3. Each round: the policy as it is now answers the prompts, two answers of each pair are labelled in both orders, a reward
   model learns from the soft labels of all rounds, undecided ones left out, and the policy is trained: RAFT or PPO by the reward
   model, DPO by the pairs. Offline it is printed how often labels and reward model are right, beside chance.
4. A table of all policies on held-out questions, and a page of the runs.

Over three seeds two rounds neither helped nor harmed the demo's policy by what could be told: see "From nothing" in
benchmarks/ai_feedback/README.md, also for settings that made it worse.

Offline the policy is the demo's, of 254 thousand parameters, which writes no instructions and judges no answers. Both come from a server on
this machine: what it says of instructions was recorded in `from_nothing_recorded.jsonl`, and played by a script rather than
a model (`from_nothing_record.py`); which of two answers is better it is told by the world's truth, with an error of one in ten
and a liking for the first place of a logit (`from_nothing_endpoint.py`). So the loop is real, and its teacher is not.
With --endpoint both come from a live server, asked as a chat, whose log-probabilities make the labels; a --model of one's own
is then measured on a fifth of the prompts, by the first round's reward model, and more of that is not better without end.
The same command goes on after a kill with what was asked and answered, and trains anew.
"""

import argparse
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import transformers
from datasets import Dataset
from from_nothing_endpoint import RecordedEndpoint, recorded, world_judge
from from_nothing_record import CONFIG, RECORDED, SEEDS
from from_nothing_stages import dpo, ppo, raft, reward_model, sampled_pairs, supervised
from from_nothing_truth import decided, known_pairs, labels_right, qualities, reward_right, share
from rich.console import Console
from rich.table import Table

from trl_ext import LearnedReward, PreferenceLabeler, SelfInstruct, SelfInstructConfig, evaluate
from trl_ext.demo import COMPLETION_LENGTH, closed_right, load_world, r3, sample_questions
from trl_ext.generation import EndpointLogProbs, public_url
from trl_ext.reporting import report
from trl_ext.self_instruct import MadeTasks
from trl_ext.trainer_kit import check_seed, claim_folder, ends_in_one_line

FOLDER = Path(__file__).parent
AS_QUESTIONS = {"prompt_with_input": "{input}"}  # the demo's policy knows questions, and no instructions before them
IMPROVE = {"raft": raft, "ppo": ppo}
MARK, OWN = (
    "from_nothing.json",
    re.compile(r"tasks|labels\.jsonl|sft|reward-\d+|policy-\d+|table\.txt|results\.json|report\.html"),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output-dir", type=Path, required=True)
    add("--rounds", type=int, default=1, help="each labels fresh samples of the policy as it is then")
    add("--with", dest="method", choices=[*IMPROVE, "dpo"], default="raft")
    add("--endpoint", help="a live server that speaks OpenAI's protocol, in the place of the recorded one")
    add("--endpoint-model", default="default", help="its name there")
    add("--model", help="the policy; default: the demo's")
    add("--seeds", type=Path, default=SEEDS)
    add("--instructions", type=int, default=200, help="to make, with --endpoint; 30 were recorded")
    add("--completion-length", type=int, default=COMPLETION_LENGTH, help="tokens")
    add("--seed", type=int, default=0, help="of sampling and training; the instructions' is 0")
    add("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds takes a whole number of at least 1, got {options.rounds}")
    if options.endpoint is None and (options.model or options.seeds != SEEDS):
        parser.error("--model and --seeds need --endpoint: only the demo's world was recorded")
    return options


@dataclass
class Teacher:
    """Who makes instructions, and who says which of two answers is better.

    Args:
        maker, labeler: The two.
        templates: How instances become prompts and completions.
    """

    maker: SelfInstruct
    labeler: PreferenceLabeler
    templates: dict[str, str]


class SameServer(EndpointLogProbs):
    """One that a resumed run knows again, wherever it listens."""

    @property
    def base_url(self) -> str:
        return "recorded"


def teacher(options: argparse.Namespace, open_servers: ExitStack) -> Teacher:
    """The live endpoint, or the recorded one."""
    if options.endpoint is None:
        url = open_servers.enter_context(RecordedEndpoint(recorded(RECORDED), world_judge(load_world()))).url
        server, config = SameServer("recorded", url, chat=False), CONFIG
    else:
        server = EndpointLogProbs(options.endpoint_model, options.endpoint)
        config = SelfInstructConfig(num_instructions=options.instructions, chat=True)
    maker = SelfInstruct(generator=server, config=config)
    return Teacher(maker, PreferenceLabeler(server), {} if options.model else AS_QUESTIONS)


def run(options: argparse.Namespace, given: Teacher, console: Console) -> list[dict]:
    """The loop; a row of measures for each policy."""
    out = options.output_dir
    made = given.maker.run(options.seeds, out / "tasks")
    made.print(console)
    prompts = made.prompts(**given.templates).shuffle(seed=options.seed)
    console.print(f"{len(prompts)} prompts; query types: {counted(prompts['query_type'])}")
    asked, held_out = divided(options, prompts)
    policy, pairs = supervised(options, completed(made, given), out / "sft"), []
    rows: list[dict] = []
    for number in range(1, options.rounds + 1):
        fresh = given.labeler.label(sampled_pairs(options, policy, asked, number), keep=out / "labels.jsonl").to_list()
        pairs += decided(fresh)
        console.print(f"round {number}: {given.labeler.report}")
        judge = reward_model(options, pairs, out / "sft", out / f"reward-{number}")
        if not options.model:
            say_how_true(options, fresh, judge, held_out, console)
        rows = rows or [measured("SFT", policy, held_out, options)]
        folder = out / f"policy-{number}"
        if options.method == "dpo":
            policy = dpo(options, pairs, policy, folder)
        else:
            policy = IMPROVE[options.method](options, judge, asked, policy, folder)
        rows.append(measured(f"round {number}", policy, held_out, options))
    return rows


def say_how_true(
    options: argparse.Namespace, labels: list[dict], judge: LearnedReward, held_out: Dataset, console: Console
) -> None:
    """How often labels, and the reward model about pairs of the start's answers to held-out questions, are right."""
    of = qualities(load_world())
    facts = {row["prompt"] for row in held_out if row["query_type"] == "closed"}
    known = known_pairs(sampled_pairs(options, options.output_dir / "sft", held_out, 0), of, facts)
    right = reward_right(judge, known)
    console.print(f"labels right, where the truth differs   {share(labels_right(labels, of))}; chance 0.5")
    console.print(f"reward model right, held-out questions  {share(right)}; chance 0.5")
    of_facts = [told for told, pair in zip(right, known, strict=True) if pair.is_fact]
    console.print(f"  of one right fact and one wrong       {share(of_facts)}; chance 0.5")


def completed(made: MadeTasks, given: Teacher) -> Dataset:
    return made.sft(completion=" {output}", **given.templates)


def divided(options: argparse.Namespace, prompts: Dataset) -> tuple[Dataset, Dataset]:
    """Prompts to learn from, and those to measure on: of the demo's world its held-out questions."""
    if options.model:
        fifth = max(len(prompts) // 5, 1)
        return prompts.select(range(fifth, len(prompts))), prompts.select(range(fifth))
    count = 16 if options.quick else 192
    return prompts, Dataset.from_list(sample_questions(load_world(), held_out=True, count=count, seed=options.seed))


def measured(name: str, policy: Path, held_out: Dataset, options: argparse.Namespace) -> dict:
    """Of one answer to each held-out prompt, ± standard error."""
    rewards = [LearnedReward(str(options.output_dir / "reward-1"))] if options.model else [closed_right, r3()]
    found = evaluate(
        policy,
        held_out,
        rewards,
        reference=options.output_dir / "sft",
        references_column=None,
        max_completion_length=options.completion_length,
        seed=options.seed,
    )
    names = [key for key in found.summary if key.startswith("reward/")] + ["kl", "length"]
    return {"policy": name} | {
        key: (found.summary[key], found.errors.get(key)) for key in names if key in found.summary
    }


def counted(types: list) -> str:
    return ", ".join(f"{types.count(kind)} {kind or 'not known'}" for kind in ("open", "closed", None))


def table(rows: list[dict]) -> Table:
    grid = Table(*rows[0])
    for row in rows:
        cells = [
            f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}") for value, error in list(row.values())[1:]
        ]
        grid.add_row(row["policy"], *cells)
    return grid


def save_page(options: argparse.Namespace, console: Console) -> None:
    """Of the runs of this package's trainers, where matplotlib is there; DPO is TRL's."""
    names = ["reward"] if options.method == "dpo" else ["reward", "policy"]
    folders = [options.output_dir / f"{name}-{number}" for number in range(1, options.rounds + 1) for name in names]
    try:
        page = report(folders, options.output_dir / "report.html")
    except ImportError:
        console.print('For a page of the runs: pip install "trl-ext[plots]"')
        return
    console.print(f"What each run shows: {page}")


def main(arguments: list[str] | None = None) -> list[dict]:
    options, console = parse(arguments), Console(record=True, width=110, highlight=False)
    check_seed(options.seed, call=f"--seed {options.seed}")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    written = {name: str(value) for name, value in vars(options).items() if name not in ("output_dir", "rounds")}
    written["endpoint"] = public_url(written["endpoint"])  # a folder is no place for a key
    call = f"from_nothing.py --output-dir {options.output_dir}"
    with ExitStack() as open_servers:
        given = teacher(options, open_servers)  # who is there, before a folder is taken
        claim_folder(options.output_dir, MARK, written, names=OWN, call=call)
        rows = run(options, given, console)
    console.print(table(rows))
    save_page(options, console)
    console.save_text(str(options.output_dir / "table.txt"))
    (options.output_dir / "results.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


if __name__ == "__main__":
    stopped = "The same command goes on with what was asked and answered, and trains anew."
    with ends_in_one_line("from_nothing.py", when_stopped=stopped, folder=FOLDER):
        main()
