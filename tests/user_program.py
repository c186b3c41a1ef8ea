"""A user's program, which is never run: a type checker reads it (test_types.py). What it should object to says so."""

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from trl_ext import (
    EndpointGenerator,
    ImitationRewardConfig,
    ImitationRewardTrainer,
    LearnedReward,
    PPOConfig,
    PPOTrainer,
    R3Reward,
    RAFTConfig,
    RAFTTrainer,
    ReSTConfig,
    ReSTTrainer,
    SharedBase,
    TransformersGenerator,
    VLLMGenerator,
    evaluate,
    memory_plan,
    score,
    vllm_rollouts,
)
from trl_ext.generation import Sampling
from trl_ext.rewards import RepetitionPenalty

pairs = Dataset.from_list([{"prompt": "Why? ", "chosen": "Because.", "rejected": "No."}])
prompts = Dataset.from_dict({"prompt": ["Why? "], "query_type": ["open"]})
lora = LoraConfig(r=16, target_modules="all-linear")


def short(completions: list[str], **columns) -> list[float]:
    return [-float(len(text)) for text in completions]


# As it should be

reward_trainer = ImitationRewardTrainer(
    "model",
    ImitationRewardConfig("reward", imitation_coef=0.1, per_device_train_batch_size=2, learning_rate=1e-4),
    train_dataset=pairs,
    eval_dataset=pairs,
    peft_config=lora,
    imitation_head="model",
)
reward_trainer.train()

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
args = PPOConfig("ppo", gamma=0.9, beta=0.1, learning_rate=1e-6, per_device_train_batch_size=2, stop_tokens=["\n"])
ppo = PPOTrainer(
    model, [short, LearnedReward("reward")], args, prompts, processing_class=tokenizer, ptx_dataset=prompts
)
ppo.train(resume_from_checkpoint=True)
ppo.save_model("policy")

raft = RAFTConfig("raft", num_stages=2, beta=0.01, max_completion_length=64, learning_rate=2e-5, seed=1)
RAFTTrainer("model", R3Reward(), raft, prompts, prompts, peft_config=lora).train()
rest = ReSTConfig("rest", thresholds=[0.5, 0.9], score_map="running", bf16=False, report_to="none")
PPOTrainer("model", short, PPOConfig("ppo"), prompts, generator=VLLMGenerator("model")).train()
GRPOTrainer(
    "model", "reward", GRPOConfig("grpo"), prompts, rollout_func=vllm_rollouts(TransformersGenerator())
).train()
endpoint = EndpointGenerator("model", "http://localhost:8000/v1")
ReSTTrainer(model, RepetitionPenalty(), rest, prompts, generator=endpoint, processing_class=tokenizer).train()

base = SharedBase.from_pretrained("model", bits=8)
PPOTrainer(
    base.policy(lora), base.reward_model("reward"), args, prompts, value_model=base.value_model(init_from="reward")
)
print(memory_plan("ppo", "model"), Sampling(temperature=0.7).top_p + 1)
look = evaluate(base.policy(lora), prompts, [short, "reward"], max_completion_length=64, base=base, reference="model")
print(look.summary["kl"], look.compare(look)["length"]["error"], score(short, ["a"], ["b"], query_type=["open"]))

# Arguments and options that there are not

PPOConfig("ppo", gama=0.9)  # error: "gama"
RAFTConfig("raft", num_stage=2)  # error: "num_stage"
ReSTConfig("rest", threshold=[0.5])  # error: "threshold"
ImitationRewardConfig("reward", imitation_coeff=0.1)  # error: "imitation_coeff"
ImitationRewardTrainer("model", train_datasets=pairs)  # error: "train_datasets"
PPOTrainer("model", short, args, prompts, reference_model="model")  # error: "reference_model"
RAFTTrainer("model", short, raft, prompts, generators=endpoint)  # error: "generators"
ReSTTrainer("model", short, rest, prompts, formatting_func=str)  # error: "formatting_func"
LearnedReward("reward", batchsize=8)  # error: "batchsize"
R3Reward(top_relevence=1.0)  # error: "top_relevence"
base.policy(lora, init="reward")  # error: "init"
Sampling(max_new_tokens=64)  # error: "max_new_tokens"
evaluate(model, prompts, short, max_completion_length=64, references="model")  # error: "references"

# Values of another type

RAFTConfig("raft", num_stages="x")  # error: "num_stages"
PPOConfig("ppo", learning_rate="1e-5")  # error: "learning_rate"
PPOTrainer("model", short, raft, prompts)  # error: "args"
LearnedReward("reward", batch_size="8")  # error: "batch_size"
SharedBase.from_pretrained("model", bits=16)  # error: "bits"

# Names that there are not

from trl_ext import PPOTrainr  # error: "PPOTrainr" # noqa: E402, F401
from trl_ext.rewards import LearntReward  # error: "LearntReward" # noqa: E402, F401

ppo.trian()  # error: "trian"
