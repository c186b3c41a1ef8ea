"""The combinations of `plan_error.py`: sizes, precisions, methods, lengths and batches."""

from dataclasses import dataclass, field
from typing import Any

SIZES = {
    "llama-64": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4},
    "llama-256": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8},
    "qwen2-128": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "qwen2-256": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
NARROW = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_attention_heads": 8}
NARROW |= {"num_key_value_heads": 2}
SIZES |= {
    "gemma3_text-128": NARROW | {"head_dim": 32, "sliding_window": 64},
    "phi3-128": NARROW,
    "olmo2-128": NARROW,
    "granite-128": NARROW,
    "smollm3-128": NARROW,
    "qwen3_moe-128": NARROW
    | {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
}
BARE = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 8}
SIZES |= {
    "opt-128": BARE | {"ffn_dim": 352, "word_embed_proj_dim": 128},
    "gptj-128": BARE | {"n_inner": 352, "rotary_dim": 8},
    "falcon-128": BARE | {"ffn_hidden_size": 352},
    "gpt_oss-128": NARROW
    | {"head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 96},
}
SIZES["llama-1024"] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
}
VOCABULARY = {"llama-1024": 32_000, "llama-64": 512, "llama-256": 4096, "qwen2-128": 2048, "qwen2-256": 8192}
COUNTED = [size for size in SIZES if size not in VOCABULARY]  # of no table: counted on the meta device
VOCABULARY |= dict.fromkeys(COUNTED, 2048)


@dataclass(frozen=True)
class Case:
    """A run.

    Args:
        size: Of `SIZES`.
        settings: Arguments of `memory_plan`.
    """

    size: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        s = self.settings
        kind = f"{s['bits']}-bit" if s.get("bits") else {"float32": "fp32"}.get(s["dtype"], "bf16")
        extras = [f"LoRA {s['lora']}" if s["lora"] else "full"]
        extras += [] if s["gradient_checkpointing"] else ["no ckpt"]
        extras += ["reentrant"] if s.get("reentrant") else []
        extras += [word for word in ("autocast", "imitation") if s.get(word)]
        extras += [] if s.get("shared", True) else ["separate"]
        extras += [] if s.get("value_model", True) else ["head"]
        lengths = f"{s['batch']}/{s['micro_batch']}×{s['prompt_length']}+{s['completion_length']}"
        return f"{s['method']} {self.size} {kind} {lengths} {' '.join(extras)}"


DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "lora": 8,
    "batch": 8,
    "micro_batch": 2,
    "prompt_length": 48,
    "completion_length": 32,
    "gradient_checkpointing": True,
    "value_model": True,
}


def case(method: str, size: str, **settings) -> Case:
    return Case(size, DEFAULTS | {"method": method} | settings)


BF16, BITS8, BITS4 = {"dtype": "bfloat16"}, {"bits": 8}, {"bits": 4}
PLAIN = {"gradient_checkpointing": False}
LONG = {"prompt_length": 112, "completion_length": 64}

CASES = [
    # PPO: precisions, checkpointing, sizes, lengths, batches, critics, separate models, full fine-tuning
    case("ppo", "llama-64"),
    case("ppo", "llama-64", **PLAIN),
    case("ppo", "llama-256", **BF16),
    case("ppo", "llama-256", **BITS8),
    case("ppo", "llama-256", **BITS8, reentrant=True),
    case("ppo", "llama-256", **BITS4),
    case("ppo", "llama-256", **BITS8 | PLAIN),
    case("ppo", "qwen2-128", **LONG),
    case("ppo", "qwen2-128", **BITS4 | LONG | PLAIN),
    case("ppo", "qwen2-256", **BITS8, batch=16, micro_batch=4),
    case("ppo", "qwen2-256", **BF16 | PLAIN, batch=4, micro_batch=4),
    case("ppo", "llama-256", batch=4, micro_batch=1, lora=32),
    case("ppo", "llama-256", value_model=False),
    case("ppo", "qwen2-128", **BF16, value_model=False, batch=16, micro_batch=4),
    case("ppo", "llama-256", shared=False),
    case("ppo", "qwen2-256", **PLAIN, shared=False, batch=4, micro_batch=4),
    case("ppo", "llama-64", lora=None, shared=False),
    # GRPO
    case("grpo", "llama-64", num_generations=4),
    case("grpo", "llama-256", **BITS8, num_generations=4, batch=16, micro_batch=4),
    case("grpo", "llama-256", **BITS4 | PLAIN, num_generations=4),
    case("grpo", "qwen2-128", **BF16 | LONG, num_generations=4),
    case("grpo", "qwen2-256", **LONG, num_generations=4, micro_batch=1),
    case("grpo", "qwen2-128", num_generations=2, reference=False, batch=4),
    case("grpo", "llama-256", num_generations=4, lora=None, shared=False),
    # RAFT and ReST
    case("raft", "llama-64", num_generations=4),
    case("raft", "llama-256", **BITS8, num_generations=4),
    case("raft", "llama-256", **BF16 | LONG, num_generations=4, batch=16),
    case("raft", "qwen2-128", **BITS4 | LONG, num_generations=4, micro_batch=4),
    case("raft", "qwen2-256", **PLAIN, num_generations=4),
    case("raft", "llama-256", lora=None, shared=False, num_generations=4),
    case("rest", "llama-256", num_generations=4),
    case("rest", "qwen2-128", **BITS8 | PLAIN, num_generations=4, batch=16),
    case("rest", "qwen2-256", **BF16, num_generations=4, micro_batch=4),
    # SFT
    case("sft", "llama-64"),
    case("sft", "llama-256", **BITS8 | PLAIN),
    case("sft", "llama-256", **BF16 | LONG, micro_batch=4),
    case("sft", "qwen2-128", **BITS4 | LONG, batch=4, micro_batch=4),
    case("sft", "qwen2-256", **PLAIN, batch=4, micro_batch=4),
    case("sft", "llama-256", lora=None, shared=False),
    case("sft", "qwen2-128", **PLAIN, lora=None, shared=False),
    # Reward models
    case("reward", "llama-64"),
    case("reward", "llama-256", **BITS8),
    case("reward", "llama-256", **BITS8, reentrant=True),
    case("reward", "llama-256", **BITS4 | PLAIN),
    case("reward", "qwen2-128", **BF16 | LONG, micro_batch=4),
    case("reward", "qwen2-256", **PLAIN, shared=False),
    case("reward", "llama-256", lora=None, shared=False),
]
AUTOCAST = {"autocast": True}
CASES += [
    # Weights in fp32 trained in 16 bits, and the imitation term
    case("sft", "llama-256", **AUTOCAST),
    case("sft", "llama-256", **AUTOCAST | PLAIN),
    case("sft", "qwen2-128", **AUTOCAST, lora=None, shared=False),
    case("ppo", "llama-256", **AUTOCAST | PLAIN, value_model=False),
    case("reward", "llama-256", imitation=True),
    case("reward", "llama-256", **BF16, imitation=True, micro_batch=4),
    case("reward", "llama-256", **BITS8, imitation=True, reentrant=True),
    case("reward", "llama-64", **AUTOCAST, imitation=True, lora=None, shared=False),
]
for size in COUNTED:
    CASES += [
        case("sft", size, **BITS4 | LONG, batch=4, micro_batch=4),
        case("sft", size, **BF16 | PLAIN),
        case("sft", size, **PLAIN, lora=None, shared=False),
    ]
    if not size.startswith("granite"):  # which has no sequence classification, and so no reward model
        CASES += [
            case("ppo", size),
            case("ppo", size, **BF16 | PLAIN, value_model=False),
            case("grpo", size, **BITS8, reentrant=True, num_generations=4),
            case("reward", size, **PLAIN, lora=None, shared=False),
        ]
QUICK = [CASES[i] for i in (0, 3, 17, 24, 33, 40)]
WIDE = BF16 | {"batch": 16, "micro_batch": 4, "prompt_length": 448, "completion_length": 64}
CARD = [  # so wide that a card's own rounding and workspaces are small beside them
    case("ppo", "llama-1024", **WIDE),
    case("ppo", "llama-1024", **WIDE | BITS8, reentrant=True),
    case("ppo", "llama-1024", **WIDE | BITS4),
    case("grpo", "llama-1024", **WIDE, num_generations=4),
    case("sft", "llama-1024", **WIDE),
    case("reward", "llama-1024", **WIDE | BITS8, imitation=True, reentrant=True),
]
