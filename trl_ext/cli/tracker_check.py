"""Whether what `--report_to` names is there, before anything is loaded."""

from importlib.util import find_spec

from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from trl_ext.trainer_kit.near_names import near_name

PACKAGES = {"azure_ml": "azureml-mlflow", "flyte": "flytekit"}  # of trackers that are called otherwise
WORDS = ("none", "all")


def check_trackers(names: list[str] | str | None, *, flag: str = "--report_to") -> None:
    """Raise a ValueError for a tracker that there is not, or that is not installed."""
    names = [names] if isinstance(names, str) else names or []
    for name in names:
        if name in WORDS:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = near_name(name, [*INTEGRATION_TO_CALLBACK, *WORDS])
            said = f" Did you mean {near}?" if near else ""
            raise ValueError(
                f"{flag} {name}: there is no such tracker.{said} Trackers are {', '.join(sorted(INTEGRATION_TO_CALLBACK))} and none."
            )
        package = PACKAGES.get(name, name)
        if name not in get_available_reporting_integrations() and find_spec(package.partition("-")[0]) is None:
            raise ValueError(
                f"{flag} {name}: it is not installed. pip install {package}, or leave it out: the run's own log has the same."
            )
