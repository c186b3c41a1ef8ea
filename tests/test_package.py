import subprocess
import sys

import pytest

import trl_ext


def test_import_is_lazy():
    code = "import sys, trl_ext; assert 'torch' not in sys.modules; trl_ext.PPOConfig; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", trl_ext.__all__)
def test_public_names(name):
    assert getattr(trl_ext, name).__name__ == name
    assert getattr(trl_ext, name).__doc__


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'PPO'; its public names are"):
        trl_ext.PPO  # noqa: B018


def test_dir_lists_public_names():
    assert set(trl_ext.__all__) <= set(dir(trl_ext))


def test_star_imports_the_public_names():
    names: dict = {}
    exec("from trl_ext.sequences import *", names)
    assert set(names) - {"__builtins__"} == {"last_user_text", "text_of"}
