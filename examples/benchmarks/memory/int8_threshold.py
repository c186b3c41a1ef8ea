"""What LLM.int8()'s outlier path is worth: perplexity of a text in full precision, in 8 bits with it, and without.

    python -m examples.benchmarks.memory.int8_threshold --model my-model --text my-text.txt

`SharedBase.from_pretrained(bits=8, llm_int8_threshold=0.0)` leaves the outlier path out, which is faster on a card. Whether
a model can spare it depends on its activations: models of 6.7B parameters and more have hidden channels far above the
rest (arXiv:2208.07339). Without `--model`, a random model shows the command, with and without such channels planted
(`--outliers`). Prints perplexity, its ratio to full precision and the mean KL to it, and on a card tokens per second of
reading; a CPU computes 8 bits by other kernels, whose speed says nothing.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trl_ext import SharedBase

TEXT = (
    "The quick brown fox jumps over the lazy dog. A stitch in time saves nine, and a penny saved is a penny earned. "
)
ROWS = {
    "not quantised": {"bits": None},
    "8 bits, threshold 6.0 (default)": {"bits": 8},
    "8 bits, threshold 0.0": {"bits": 8, "llm_int8_threshold": 0.0},
    "4 bits (NF4, double quantisation)": {"bits": 4},
}


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        name = args.model or random_model(Path(folder), outlier_scale=args.outliers)
        text = args.text.read_text() if args.text else TEXT * 40
        expected = None
        print(f"model {args.model or f'random, outliers × {args.outliers:g}'}, text {args.text or 'built in'}")
        print("| base | perplexity | ratio | KL to the first row (nats per token) | tokens/s |\n|---|---|---|---|---|")
        for label, options in ROWS.items():
            base = SharedBase.from_pretrained(name, **options)
            windows = windows_of(text, base.tokenizer, length=args.window, count=args.windows)
            log_probs, speed = read(base, windows)
            expected = log_probs if expected is None else expected
            print(row(label, log_probs, expected, windows, speed), flush=True)
            del base


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path or hub id of a causal LM that is not quantised (default: a random one)")
    parser.add_argument("--text", type=Path, help="file with the text to read (default: two sentences, repeated)")
    parser.add_argument("--window", type=int, default=256, help="tokens read at once (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="how many of them at most (default: %(default)s)")
    parser.add_argument(
        "--outliers", type=float, default=30.0, help="scale of the random model's outlier channels; 1: none"
    )
    args = parser.parse_args()
    if args.window < 2 or args.windows < 1:
        parser.error(f"--window {args.window} --windows {args.windows}: expected at least 2 tokens and 1 window.")
    return args


def random_model(folder: Path, *, outlier_scale: float) -> str:
    """A small Llama, in which a few hidden channels are large everywhere, as in trained models from 6.7B on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<eos>", *alphabet])}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            initializer_range=0.06,
        )
    )
    for layer in model.model.layers:  # what the linear layers read
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[:3] *= outlier_scale
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def windows_of(text: str, tokenizer: PreTrainedTokenizerBase, *, length: int, count: int) -> Tensor:
    """`(N, length)`: the text's first tokens, cut into windows."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    number = min(len(ids) // length, count)
    if not number:
        raise SystemExit(f"int8_threshold: the text has {len(ids)} tokens, fewer than one --window of {length}.")
    return torch.tensor(ids[: number * length]).view(number, length)


@torch.no_grad()
def read(base: SharedBase, windows: Tensor) -> tuple[Tensor, float]:
    """Log-probabilities of every next token, `(N, length, V)` on the CPU, and tokens per second."""
    device = base.model.device
    base.model(windows[:1].to(device))  # warm
    start = time.perf_counter()
    log_probs = [base.model(window[None].to(device)).logits[0].float().log_softmax(-1).cpu() for window in windows]
    return torch.stack(log_probs), windows.numel() / (time.perf_counter() - start)  # logits were copied: all is done


def row(label: str, log_probs: Tensor, expected: Tensor, windows: Tensor, speed: float) -> str:
    perplexity, reference = (math.exp(nll(table, windows)) for table in (log_probs, expected))
    kl = (expected.exp() * (expected - log_probs)).sum(-1).mean().item()
    told = f"{speed:.0f}" if torch.cuda.is_available() else "not on a CPU"
    return f"| {label} | {perplexity:.3f} | {perplexity / reference:.4f} | {kl:.5f} | {told} |"


def nll(log_probs: Tensor, windows: Tensor) -> float:
    """Mean over tokens, in nats."""
    return -log_probs[:, :-1].gather(2, windows[:, 1:, None]).mean().item()


if __name__ == "__main__":
    main()
