"""One name for one thing in all configs, and the former ones still work."""

import json
import warnings

import pytest
from self_training_case import trainer
from trl import TrlParser

from trl_ext import RAFTConfig, ReSTConfig, SelfTrainingConfig
from trl_ext.trainer_kit.run_record import FORMER, RECORD, read_record

ON_CPU = {"output_dir": "unused", "bf16": False, "report_to": "none", "max_completion_length": 8}


@pytest.mark.parametrize("config", [SelfTrainingConfig, RAFTConfig, ReSTConfig])
def test_a_former_name_works_with_a_warning_at_the_callers_line(config):
    with pytest.warns(FutureWarning, match=rf"{config.__name__}\(kl_coef=0.1\): `kl_coef` is now `beta`") as caught:
        args = config(**ON_CPU, kl_coef=0.1)
    assert (args.beta, args.kl_coef) == (0.1, None)
    assert caught[0].filename == __file__


def test_the_new_name_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert RAFTConfig(**ON_CPU, beta=0.1).beta == 0.1


def test_both_names_are_refused():
    with pytest.raises(ValueError, match=r"RAFTConfig\(kl_coef=0.1, beta=0.2\).*Give `beta` alone"):
        RAFTConfig(**ON_CPU, kl_coef=0.1, beta=0.2)


def test_a_former_name_works_on_the_command_line():
    command = "--output_dir unused --bf16 false --report_to none --max_completion_length 8 --kl_coef 0.1"
    with pytest.warns(FutureWarning, match="is now `beta`"):
        (args,) = TrlParser(RAFTConfig).parse_args_and_config(command.split())
    assert args.beta == 0.1


def test_a_run_begun_under_the_former_name_is_gone_on_with(tmp_path):
    options = {"num_stages": 1, "beta": 0.1, "save_strategy": "steps", "save_steps": 1}
    one = trainer(tmp_path, **options)
    one.train()
    record = read_record(tmp_path)
    record["config"]["kl_coef"] = record["config"].pop("beta")
    (tmp_path / RECORD).unlink()
    (tmp_path / FORMER).write_text(json.dumps(record))
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == one.state.global_step
    with pytest.raises(ValueError, match=r"beta: 0.1 then, 0.2 now"):
        trainer(tmp_path, **options | {"beta": 0.2}).train(resume_from_checkpoint=True)
