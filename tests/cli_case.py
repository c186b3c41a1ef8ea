"""A command in process that is refused."""

import pytest

from trl_ext.cli import main


def refused(capsys, *argv) -> str:
    """What a command says on stderr that ends with code 2, and without a traceback."""
    with pytest.raises(SystemExit) as raised:
        main(argv)
    told = capsys.readouterr().err
    assert raised.value.code == 2 and "Traceback" not in told, told
    return told
