"""RAFT: best of K, then fine-tuning, again and again."""

from trl_ext.self_training.raft_config import RAFTConfig
from trl_ext.self_training.self_training_trainer import SelfTrainingTrainer


class RAFTTrainer(SelfTrainingTrainer[RAFTConfig]):
    """RAFT, reward ranked fine-tuning (Dong et al., 2023, arXiv:2304.06767).

        stage t:  for each of b prompts x: y* = argmax over K samples y ~ π_t of  r(x, y) − λ · log π_t(y|x) / π_0(y|x)
                  π_{t+1} = π_t fine-tuned on the pairs (x, y*) by cross-entropy on y*

    Relations: K = 1 selects nothing and is SFT on the policy's own samples, whatever the scores. A constant added to all
    scores of a prompt changes nothing. λ → ∞ leaves the scores out and draws the policy back to π_0. RAFT++
    (`importance_clip`) weighs each token by ρ = π / π_t, clipped: at ρ = 1, in a stage's first step, its gradient is that
    of plain fine-tuning.

    Everything else is `SelfTrainingTrainer`'s, and its arguments are the same; `args` is a `RAFTConfig`.
    """

    _tag_names = ["trl", "trl-ext", "raft"]  # noqa: RUF012 - as TRL declares it
    _name = "RAFT"
    _paper = {  # noqa: RUF012
        "title": "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
        "id": "2304.06767",
        "citation": "@article{dong2023raft,\n  title = {{RAFT: Reward rAnked FineTuning for Generative Foundation Model "
        "Alignment}},\n  author = {Hanze Dong and Wei Xiong and Deepanshu Goyal and Yihan Zhang and Winnie Chow and Rui Pan "
        "and Shizhe Diao and Jipeng Zhang and Kashun Shum and Tong Zhang},\n  year = 2023,\n"
        "  journal = {Transactions on Machine Learning Research},\n  eprint = {arXiv:2304.06767}\n}",
    }
    config_class = RAFTConfig
