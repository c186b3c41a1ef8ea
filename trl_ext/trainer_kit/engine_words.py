"""What trainers say of engines that they do not run under, for whoever plans a run too."""

_TOO_LARGE = "a model too large for that may train an adapter on a base in 8 or 4 bits (SharedBase)"
DDP = f"Launch it with `accelerate launch --multi_gpu`; {_TOO_LARGE}"
FSDP2_OR_DDP = f"Launch it with `accelerate launch --config_file examples/accelerate/fsdp2.yaml`, or with --multi_gpu; {_TOO_LARGE}"
SELF_TRAINING = {
    "runs": "on one device, with data parallelism or under FSDP2",
    "why": "engines shard the model that is sampled from, and under FSDP2 alone its weights are put together for that",
    "instead": f"{FSDP2_OR_DDP}; one that is served already may be sampled there (EndpointGenerator)",
}
# Of the base under a SharedBase's roles.
CUT_BASE = "as the part of one role: the others would find pieces or rounded weights, or keep all of it"
# Of the embedding that a reward model's imitation term reads.
CUT_HEAD = "FSDP and ZeRO-3 cut into pieces"


def engine_refusal(engine: str, *, trainer: str, why: str, runs: str, instead: str) -> str:
    """What `refuse_engine` says."""
    return f"{trainer} runs {runs}, not under {engine}: {why}. {instead}."
