"""The arms: which trainer, with what. All begin with one policy, and are paid by one proxy."""

from pathlib import Path

from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from examples.benchmarks.common.quiet_runs import on_cpu
from examples.benchmarks.frontier import passes
from examples.benchmarks.frontier.best_of import sampled, tokens_of
from examples.benchmarks.frontier.looks import Looks
from examples.benchmarks.frontier.setting import TOKENS, Look, Setting
from examples.benchmarks.ppo.tasks import ContinuedReward
from trl_ext import PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer, ReSTConfig, ReSTTrainer

BEST_OF_N = "best of n"
SAMPLES = 8  # answers to a question: RAFT, ReST, GRPO, RLOO, DPO's pool
BATCH = 64  # completions of a batch of rollouts
PAIRS = 32  # of a step of DPO
STAGE = 64  # questions of a Grow
POOL = 128  # questions of DPO's pool
RATES = (3e-4, 1e-3)  # tried by --tune, on a seed of its own
TUNED = {
    "RAFT": 5e-4,
    "ReST": 5e-4,
    "PPO": 3e-4,
    "GRPO": 3e-4,
    "RLOO": 1e-3,
    "DPO, best and worst": 3e-4,
    "DPO, original pairs": 3e-4,
}
RAFT_SLOW, RAFT_FAST = "RAFT, 0.3 × rate", "RAFT, 3 × rate"
ONLINE = {  # epochs as `ppo.vs_grpo_rloo --tune` chose them
    "PPO": (PPOTrainer, PPOConfig, {"num_iterations": 4, "beta": 0.02}),
    "GRPO": (GRPOTrainer, GRPOConfig, {"num_iterations": 4, "beta": 0.02, "num_generations": SAMPLES}),
    "RLOO": (RLOOTrainer, RLOOConfig, {"num_iterations": 1, "beta": 0.02, "num_generations": SAMPLES}),
}
STAGED = {
    "RAFT": (RAFTTrainer, RAFTConfig, {"level_stages": 0}),
    "ReST": (ReSTTrainer, ReSTConfig, {"thresholds": [0.6, 0.7, 0.8], "score_map": "grow", "temperature": 1.0}),
}
ARMS = {name: (name, 1.0) for name in TUNED} | {RAFT_SLOW: ("RAFT", 0.3), RAFT_FAST: ("RAFT", 3.0)}
ORDER = (BEST_OF_N, "RAFT", RAFT_SLOW, RAFT_FAST, "ReST", "PPO", "GRPO", "RLOO", *list(TUNED)[-2:])


def train(method: str, rate: float, setting: Setting, folder: Path, *, budget: float, samples: int) -> dict:
    """One run to the end of its budget: its points.

    Args:
        method: One of TUNED.
        rate: Learning rate.
        setting: Of the seed.
        folder: For what the run leaves.
        budget: Token passes.
        samples: Answers to each held-out question in a look.
    """
    look = Look(setting, samples=samples)
    run = online if method in ONLINE else staged if method in STAGED else dpo
    trainer, looks = run(method, rate, setting, folder, look, budget)
    trainer.add_callback(looks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"points": looks.points, "samples": samples, "rate": rate, "steps": trainer.state.global_step}


def online(method: str, rate: float, setting: Setting, folder: Path, look: Look, budget: float):
    """PPO, or TRL's GRPO or RLOO as they come."""
    trainer, config, options = ONLINE[method]
    fields = common(folder, setting, rate) | {"max_completion_length": TOKENS, "per_device_train_batch_size": BATCH}
    reward = setting.proxy if method == "PPO" else ContinuedReward(setting.proxy, setting.tokenizer())
    made = trainer(str(setting.start), reward, config(**fields | options), setting.prompts)
    epochs = options["num_iterations"]
    each = passes.online(epochs, before=method != "GRPO" or epochs > 1)
    return made, Looks(look, lambda: each * made.state.num_input_tokens_seen, budget, steps=epochs)


def staged(method: str, rate: float, setting: Setting, folder: Path, look: Look, budget: float):
    """RAFT or ReST; the learning rate falls within each Improve, as in the paper."""
    trainer, config, options = STAGED[method]
    fields = on_cpu(folder, setting.seed) | {
        "learning_rate": rate,
        "max_completion_length": TOKENS,
        "per_device_train_batch_size": 32,
        "num_generations": SAMPLES,
        "num_stages": 200,
        "stage_batch_size": STAGE,
    }
    made = trainer(str(setting.start), setting.proxy, config(**fields | options), setting.prompts)
    improves = made.args.improves_per_stage
    cost = lambda: made.table.cost + passes.scored_in_grows(folder)  # noqa: E731
    return made, Looks(look, cost, budget, steps=None, improves=improves)


def dpo(method: str, rate: float, setting: Setting, folder: Path, look: Look, budget: float):
    """TRL's DPO, on the best and the worst of the first pool, or on the pairs that the proxy has learned from."""
    pairs, spent = (setting.pairs, 0) if "original" in method else best_and_worst(setting)
    config = DPOConfig(
        **common(folder, setting, rate),
        per_device_train_batch_size=PAIRS,
        include_num_input_tokens_seen="non_padding",
    )
    made = DPOTrainer(str(setting.start), args=config, train_dataset=pairs, processing_class=setting.tokenizer())
    return made, Looks(look, lambda: spent + passes.DPO * made.state.num_input_tokens_seen, budget, steps=1)


def best_and_worst(setting: Setting) -> tuple[Dataset, int]:
    """Pairs by the proxy, of the samples of each question that ended; and the token passes that they cost."""
    found = sampled(setting, setting.prompts.select(range(POOL)), n=SAMPLES, gold=False)
    ended: dict[int, list[dict]] = {}
    for sample in found.samples:
        if sample["ended"]:
            ended.setdefault(sample["row"], []).append(sample)
    ordered = [sorted(group, key=lambda sample: sample["proxy"]) for group in ended.values()]
    pairs = [
        {"prompt": group[0]["prompt"], "chosen": group[-1]["completion"], "rejected": group[0]["completion"]}
        for group in ordered
        if group[0]["proxy"] < group[-1]["proxy"]
    ]
    return Dataset.from_list(pairs), passes.SAMPLED_AND_SCORED * tokens_of(found, setting)


def common(folder: Path, setting: Setting, rate: float) -> dict:
    """Of all that run to a budget, at a constant learning rate."""
    fields = on_cpu(folder, setting.seed)
    return fields | {"learning_rate": rate, "lr_scheduler_type": "constant", "max_steps": 100_000}
