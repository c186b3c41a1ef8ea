"""Does a policy learn what re-ranking promised? One RAFT stage on the pool, by R³ and by LI·RP, over seeds.

    python -m examples.benchmarks.r3.rerank_raft --start POOL/start --pool POOL/samples.parquet --prompts POOL/prompts.jsonl \\
        --data DATA --encoder all-MiniLM-L6-v2 --output-dir OUT --seeds 0 1 2

Nothing is sampled for training: each arm keeps the best of the pool's completions to each prompt (`FileGenerator`), and
fine-tunes on those with LoRA, two passes. Primary endpoint: exact match on closed tasks that were neither in the pool nor
in SFT, whose references no reward has read: R³ against LI·RP, paired over seeds. Beside it length, ends, and the
perplexity of reference answers that were not trained on (the alignment tax). What is in OUT already is not run again;
the first run tells what one costs.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference
from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.r3.rerank_data import load_prompts
from examples.benchmarks.r3.rerank_start import BATCH, LONGEST
from examples.benchmarks.r3.rerank_statistics import exact_match
from examples.benchmarks.r3.rerank_table import markdown
from trl_ext import R3Reward, RAFTConfig, RAFTTrainer, RelevanceReward, evaluate
from trl_ext.demo.stages import control
from trl_ext.generation.file_generator import FileGenerator
from trl_ext.trainer_kit.row_files import json_rows

ARMS = ("R³", "LI·RP")
RIGHT = "exact match"
SHOWN = {RIGHT: "reward/right", "tokens": "length", "ended": "ended_share", "perplexity of references": "perplexity"}


@dataclass(frozen=True)
class OnQuery:
    """A reward that is shown the column `query`, the raw question, in place of the policy's template around it."""

    reward: R3Reward
    __name__ = "r3"

    def __call__(self, *, prompts: list, completions: list, query: list, **columns) -> list[float]:
        return self.reward(prompts=query, completions=completions, **columns)


def right(completions: list, reference: list, task: list, **columns) -> list[float | None]:
    """Exact match of closed tasks; None elsewhere."""
    rows = zip(completions, reference, task, strict=True)
    return [exact_match(completion, answer, name) if name else None for completion, answer, name in rows]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--start", type=Path, required=True)
    add("--pool", type=Path, required=True)
    add("--prompts", type=Path, required=True)
    add("--data", type=Path, required=True)
    add("--encoder", required=True)
    add("--output-dir", type=Path, required=True)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--samples", type=int, default=2, help="per held-out prompt, at temperature 1")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    quiet()
    unseen = Dataset.from_list(load_prompts(options.data).unseen)
    found = {"before": [once(options, "before", seed, unseen) for seed in options.seeds]}
    for arm in ARMS:
        found[arm] = [once(options, arm, seed, unseen) for seed in options.seeds]
    print(table(found))


def once(options: argparse.Namespace, arm: str, seed: int, unseen: Dataset) -> dict[str, float]:
    """Measures of one policy, made if they are not there."""
    folder = options.output_dir / f"{ARMS.index(arm) if arm in ARMS else arm}-{seed}"
    path = folder / "measures.json"
    if not path.is_file():
        began = time.process_time()
        policy, tokenizer = loaded(options.start) if arm == "before" else trained(options, arm, seed, folder)
        settings = {"num_samples": options.samples, "batch_size": 64, "seed": seed, "tokenizer": tokenizer}
        looked = evaluate(policy, unseen, [right], max_completion_length=LONGEST, **settings)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: looked.summary[metric] for name, metric in SHOWN.items()}))
        print(f"{arm}, seed {seed}: {time.process_time() - began:.0f} CPU s", flush=True)
    return json.loads(path.read_text())


def loaded(start: Path):
    """Where all arms begin, in the precision that the pool was sampled in, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(start, dtype="bfloat16").eval(), AutoTokenizer.from_pretrained(start)


def trained(options: argparse.Namespace, arm: str, seed: int, folder: Path):
    """The policy after one stage on the best of the pool by one arm, and its tokenizer."""
    relevance = RelevanceReward(options.encoder, similarity="cosine", device="cpu")
    r3 = OnQuery(R3Reward(max_completion_length=LONGEST, relevance=relevance, top_relevance=1.0))
    config = RAFTConfig(
        **on_cpu(folder / "raft", seed),
        num_stages=1,
        stage_batch_size=None,
        num_generations=32,
        max_completion_length=LONGEST,
        per_device_train_batch_size=BATCH,
        learning_rate=3e-4,
        model_init_kwargs={"dtype": "bfloat16"},
    )
    prompts = Dataset.from_list(list(json_rows(options.prompts)))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    reward = control() if arm == "LI·RP" else r3
    trainer = RAFTTrainer(
        str(options.start), reward, config, prompts, peft_config=lora, generator=FileGenerator(options.pool)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model.eval(), trainer.processing_class


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Mean ± deviation over seeds, and R³ less LI·RP, paired over seeds."""
    lines = [["", *found, "R³ − LI·RP"]]
    for name in SHOWN:
        values = {arm: [one[name] for one in runs] for arm, runs in found.items()}
        cells = (mean_and_deviation(values[arm], digits=3) for arm in found)
        lines.append([name, *cells, paired_difference(values["R³"], values["LI·RP"])])
    return markdown(lines)


if __name__ == "__main__":
    main()
