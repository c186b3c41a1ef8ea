"""How fast is a Grow? Tokens per second of each generator at hand, beside one-shot `generate` over the same prompts.

    python -m examples.benchmarks.speed.grow_throughput --threads 1
    python -m examples.benchmarks.speed.grow_throughput --threads 1 --only memory
    python -m examples.benchmarks.speed.grow_throughput --model PATH --prompts 256 --k 8 --max-length 512 --only speed

Without --model, a random Llama of 20 million parameters whose completions have about geometric lengths; prompts have 4
to 48 words. Only tokens up to a completion's end count as useful. The generators take turns in one process.

Then the peak of memory while prompts and K are doubled twice, at 16 completions at once: on CUDA
`torch.cuda.max_memory_allocated` above the weights; on the CPU the largest sum of bytes of all live tensors that
torch's operators have returned (weights left out; the inner scratch space of single kernels is not seen).

vLLM takes part where it is installed, --model is a path, and there is a GPU.
"""

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.benchmarks.common.live_bytes import LiveBytes
from trl_ext.generation.batching import CPU_BATCH_SIZE
from trl_ext.generation.decoding import until_end
from trl_ext.generation.protocol import Generator, Part, Policy, Sampling
from trl_ext.generation.transformers_generator import TransformersGenerator

WORDS = [
    "the",
    "a",
    "we",
    "you",
    "film",
    "day",
    "was",
    "is",
    "good",
    "bad",
    "long",
    "short",
    "very",
    "so",
    "and",
    "but",
    "then",
    "why",
    "what",
    "who",
    "tell",
    "say",
    "see",
    "more",
]
Run = Callable[[list[str], int, int], int]  # from prompts, K and the longest length to the number of useful tokens


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    policy = policy_from(args.model) if args.model else random_policy(mean_length=args.max_length / 4)
    policy.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if args.only != "memory":
        print_speeds(speeds(policy, args), args, policy)
    if args.only != "speed":
        print_memory(policy, args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="A saved causal LM with its tokenizer.")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--k", type=int, default=4, help="Completions per prompt.")
    parser.add_argument("--max-length", type=int, default=64, help="Longest completion, in tokens.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=None, help="Completions at once; None: as in a training.")
    parser.add_argument("--only", choices=["speed", "memory"], default=None)
    return parser.parse_args()


def policy_from(path: Path) -> Policy:
    return Policy(AutoModelForCausalLM.from_pretrained(path, dtype="auto"), AutoTokenizer.from_pretrained(path))


def random_policy(*, mean_length: float, vocab_size: int = 8192) -> Policy:
    """A Llama with random weights, and a bias at its end token by which a completion ends with p = 1 / mean_length."""
    torch.manual_seed(0)
    words = ["<end>", "<unknown>", *WORDS]
    words += [f"word{i}" for i in range(vocab_size - len(words))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.lm_head = torch.nn.Linear(config.hidden_size, vocab_size)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.02)
        model.lm_head.bias.zero_()[0] = torch.tensor((vocab_size - 1) / (mean_length - 1)).log()
    return Policy(model, tokenizer)


def random_prompts(count: int) -> list[str]:
    source = random.Random(0)
    return [" ".join(source.choices(WORDS, k=source.randint(4, 48))) for _ in range(count)]


def generators(policy: Policy, args: argparse.Namespace) -> dict[str, Run]:
    batch_size = args.batch_size or CPU_BATCH_SIZE
    runs = {
        "one-shot generate": one_shot(policy, batch_size=None),
        f"generate, batches of {batch_size}": one_shot(policy, batch_size=batch_size),
        "transformers": useful_tokens(TransformersGenerator(batch_size=args.batch_size), policy),
    }
    if args.model and importlib.util.find_spec("vllm") and torch.cuda.is_available():
        from trl_ext.generation.vllm_generator import VLLMGenerator

        runs["vllm"] = useful_tokens(VLLMGenerator(), policy)
    return runs


def useful_tokens(generator: Generator, policy: Policy) -> Run:
    def run(prompts: list[str], k: int, max_length: int) -> int:
        part = Part(0, tuple(range(len(prompts))), tuple(prompts))
        ((_, samples),) = generator.generate([part], Sampling(k, max_length), policy)
        return sum(len(sample["completion_ids"]) for sample in samples)

    return run


def one_shot(policy: Policy, *, batch_size: int | None) -> Run:
    """transformers' `generate` over prompts × K, all at once or in batches, in the order in which they come."""
    model, tokenizer, ends = policy.model, policy.tokenizer, policy.end_token_ids()

    def run(prompts: list[str], k: int, max_length: int) -> int:
        texts = [prompt for prompt in prompts for _ in range(k)]
        size, useful = batch_size or len(texts), 0
        for start in range(0, len(texts), size):
            inputs = tokenizer(
                texts[start : start + size],
                padding=True,
                padding_side="left",
                return_token_type_ids=False,
                return_tensors="pt",
            )
            output = model.generate(
                **inputs.to(model.device), do_sample=True, top_k=0, top_p=1.0, max_new_tokens=max_length
            )
            drawn = output[:, inputs["input_ids"].size(1) :].tolist()
            useful += sum(len(until_end(ids, ends)) for ids in drawn)
        return useful

    return run


def speeds(policy: Policy, args: argparse.Namespace) -> dict[str, list[float]]:
    """Useful tokens per second of each generator in each repeat, after a short run of each to warm up."""
    runs, prompts = generators(policy, args), random_prompts(args.prompts)
    for run in runs.values():
        run(prompts[:2], 2, 4)
    values: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            values[name].append(speed(run, prompts, args.k, args.max_length))
    return values


def speed(run: Run, prompts: list[str], k: int, max_length: int) -> float:
    start = time.perf_counter()
    useful = run(prompts, k, max_length)
    return useful / (time.perf_counter() - start)


def peak_bytes(run: Run, policy: Policy, prompts: list[str], k: int, max_length: int) -> int:
    """Largest memory beyond the weights while it runs."""
    if policy.model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(prompts, k, max_length)
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes(policy.model) as live:
        run(prompts, k, max_length)
    return live.peak


def print_speeds(speeds: dict[str, list[float]], args: argparse.Namespace, policy: Policy) -> None:
    size = sum(parameter.numel() for parameter in policy.model.parameters()) / 1e6
    table = Table(
        title=f"{args.prompts} prompts × {args.k}, at most {args.max_length} tokens, {size:.0f}M parameters, "
        f"{policy.model.device.type}, {torch.get_num_threads()} threads, {args.repeats} repeats",
        title_justify="left",
    )
    for column in ("generator", "useful tokens/s", "min – max", "× one-shot"):
        table.add_column(column, justify="left" if column == "generator" else "right")
    reference = statistics.median(speeds["one-shot generate"])
    for name, values in speeds.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.0f}", f"{min(values):.0f} – {max(values):.0f}", f"{median / reference:.2f}")
    Console().print(table)


def print_memory(policy: Policy, args: argparse.Namespace) -> None:
    """Of one-shot and of batches, which have to be fewer than the completions for their memory to be flat."""
    runs = {
        "one-shot generate": one_shot(policy, batch_size=None),
        "transformers": useful_tokens(TransformersGenerator(batch_size=16), policy),
    }
    table = Table(title="Peak of memory beyond the weights, MB, completions of at most 4 tokens", title_justify="left")
    for column in ("prompts × K", *runs):
        table.add_column(column, justify="right")
    for count, k in ((8, 4), (16, 8), (32, 16)):
        peaks = [peak_bytes(run, policy, random_prompts(count), k, 4) / 1e6 for run in runs.values()]
        table.add_row(f"{count} × {k}", *(f"{peak:.0f}" for peak in peaks))
    Console().print(table)


if __name__ == "__main__":
    main()
