"""Papers whose settings a run may have beside its method's own; its card cites them, too."""

from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.trainer_kit.card_files import Paper

RAFT_PLUS_PLUS = Paper(
    name="RAFT++",
    title="A Minimalist Approach to LLM Reasoning: from Rejection Sampling to Reinforce",
    id="2504.11343",
    citation="@article{xiong2025minimalist,\n"
    "  title = {{A Minimalist Approach to LLM Reasoning: from Rejection Sampling to Reinforce}},\n"
    "  author = {Wei Xiong and Jiarui Yao and Yuhui Xu and Bo Pang and Lei Wang and Doyen Sahoo and Junnan Li and Nan "
    "Jiang and Tong Zhang and Caiming Xiong and Hanze Dong},\n  year = 2025,\n  eprint = {arXiv:2504.11343}\n}",
)
REST_EM = Paper(
    name="ReST^EM",
    title="Beyond Human Data: Scaling Self-Training for Problem-Solving with Language Models",
    id="2312.06585",
    citation="@article{singh2024beyond,\n"
    "  title = {{Beyond Human Data: Scaling Self-Training for Problem-Solving with Language Models}},\n"
    "  author = {Avi Singh and John D. Co-Reyes and Rishabh Agarwal and others},\n  year = 2024,\n"
    "  journal = {Transactions on Machine Learning Research},\n  eprint = {arXiv:2312.06585}\n}",
)


def papers_of(args: SelfTrainingConfig) -> tuple[Paper, ...]:
    """Of the options that make RAFT RAFT++, and ReST ReST^EM."""
    of_options = ((args.importance_clip is not None, RAFT_PLUS_PLUS), (args.restart_from_base, REST_EM))
    return tuple(paper for is_set, paper in of_options if is_set)
