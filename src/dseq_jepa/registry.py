"""What MLflow shows beside curves: data sets, registered encoders with aliases, and descriptions with links.

Every function makes the store agree with a run and does nothing where it does; the mirror (tracking.py) calls them.

An exported encoder is a version of the registered model <experiment>.<method>.<architecture>, one version per seed and
configuration. Aliases: `selected` is the current one of the first seed; `paper-candidate` the current one with the
highest selection score among those whose code was committed.
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dseq_jepa.tracked import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as StoredRun

_NOTE, _PARENT = "mlflow.note.content", "mlflow.parentRunId"
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"  # else the pages are those of language models
_LONGEST_DIGEST, _LONGEST_NOTE = 36, 7500
_SCORE = "selected/knn_top1"
_SHOWN_METRICS = 12
_VERSION_TAGS: tuple[str, ...] = ("method", "architecture", "seed", "config_digest", "code_version")


def log_datasets(client: "MlflowClient", stored: "StoredRun", run: Run) -> None:
    """The data sets as inputs of the run: name, fingerprint as digest, what they were read for."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    logged = stored.inputs.dataset_inputs if stored.inputs else []
    present = {(entry.dataset.name, entry.dataset.digest) for entry in logged}
    missing = [data for data in run.datasets if (data.name, _digest(data.fingerprint)) not in present]
    if missing:
        inputs = [
            DatasetInput(
                Dataset(data.name, _digest(data.fingerprint), "local", json.dumps({"uri": data.root})),
                [InputTag("mlflow.data.context", data.context), InputTag("fingerprint", data.fingerprint)],
            )
            for data in missing
        ]
        client.log_inputs(stored.info.run_id, inputs)


def _digest(fingerprint: str) -> str:
    return fingerprint[:_LONGEST_DIGEST] or "unknown"


def register(client: "MlflowClient", experiment: str, stored: "StoredRun", run: Run) -> None:
    """The exported encoder as a version of its model, with its card; once per run."""
    from mlflow.exceptions import MlflowException

    if run.export is None:
        return
    name = model_name(experiment, run.tags)
    try:
        client.create_registered_model(name, tags={"experiment": experiment})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run_id = stored.info.run_id
    card = run.export.card
    if not client.search_model_versions(f"name='{name}' and run_id='{run_id}'"):
        wanted = run.tags | {key: str(value) for key, value in card["provenance"].items()}
        tags: dict[str, str] = {key: wanted[key] for key in _VERSION_TAGS if key in wanted}
        source = f"{stored.info.artifact_uri}/export"
        client.create_model_version(name, source, run_id, tags=tags, description=card_text(card))


def model_name(experiment: str, tags: dict[str, str]) -> str:
    """Of the registered model; MLflow allows no slash and no colon."""
    return f"{experiment}.{tags['method']}.{tags['architecture']}"


def card_text(card: dict[str, Any]) -> str:
    """An encoder's card as Markdown."""
    timm = card["timm"]
    kwargs = ", ".join(f"{key}={value!r}" for key, value in timm["kwargs"].items())
    score = "" if card["score"] is None else f", kNN {card['score']:.2f}%"
    return "\n".join([
        f"**{card['architecture']['label']}**, from {card['checkpoint']}{score}",
        "",
        f"Input {card['image_size']} px, patches of {card['patch_size']}; mean {card['mean']}, std {card['std']}.",
        "",
        "```python",
        f'model = timm.create_model("{timm["model"]}", {kwargs})',
        'model.load_state_dict(safetensors.torch.load_file("encoder.safetensors"))',
        "```",
        "",
        *(f"- {key}: {value}" for key, value in card["provenance"].items()),
    ])  # fmt: skip


def set_aliases(client: "MlflowClient", experiment: str, current: Iterable["StoredRun"]) -> None:
    """Point the aliases of every registered model at the versions that they are for."""
    of_model: dict[str, list[StoredRun]] = {}
    for run in current:
        if run.data.tags.get("step") == "select":
            of_model.setdefault(model_name(experiment, run.data.tags), []).append(run)
    for name, runs in of_model.items():
        versions = {version.run_id: version for version in client.search_model_versions(f"name='{name}'")}
        exported = [run for run in runs if run.info.run_id in versions]
        committed = [run for run in exported if not _code(run).endswith("-dirty")]
        chosen = {
            "selected": min(exported, key=lambda run: int(run.data.tags["seed"]), default=None),
            "paper-candidate": max(committed, key=lambda run: run.data.metrics.get(_SCORE, 0.0), default=None),
        }
        held = dict(client.get_registered_model(name).aliases) if versions else {}
        for alias, best in chosen.items():
            wanted = versions[best.info.run_id].version if best else None
            if wanted is not None and str(held.get(alias)) != str(wanted):
                client.set_registered_model_alias(name, alias, wanted)
            elif wanted is None and alias in held:
                client.delete_registered_model_alias(name, alias)


def _code(run: "StoredRun") -> str:
    return str(run.data.tags.get("code_version", ""))


class Links:
    """Descriptions in Markdown: the experiment leads to its models, a model to its children, a child to its model.

    Args:
        client: of the store.
        experiment_id: all runs are of this experiment.
        runs: the current ones.
    """

    def __init__(self, client: "MlflowClient", experiment_id: str, runs: Iterable["StoredRun"]) -> None:
        self._client, self._experiment_id = client, experiment_id
        self._runs = sorted(runs, key=lambda run: str(run.info.run_name))
        self._names = {run.info.run_id: str(run.info.run_name) for run in self._runs}
        self._children: dict[str, list[StoredRun]] = {}
        for run in self._runs:
            if parent := run.data.tags.get(_PARENT):
                self._children.setdefault(parent, []).append(run)

    def write(self) -> None:
        """Set every description that is not yet as it should be."""
        for run in self._runs:
            text = "\n".join(self._describe(run))[:_LONGEST_NOTE]
            if run.data.tags.get(_NOTE) != text:
                self._client.set_tag(run.info.run_id, _NOTE, text)
        tags = self._client.get_experiment(self._experiment_id).tags
        for key, text in {_NOTE: "\n".join(self._overview())[:_LONGEST_NOTE], _KIND: _TRAINING}.items():
            if tags.get(key) != text:
                self._client.set_experiment_tag(self._experiment_id, key, text)

    def _link(self, run_id: str) -> str:
        return f"[{self._names[run_id]}](#/experiments/{self._experiment_id}/runs/{run_id})"

    def _describe(self, run: "StoredRun") -> Iterator[str]:
        tags = run.data.tags
        yield f"**{run.info.run_name}**: {tags.get('state', run.info.status.lower())}"
        parent = tags.get(_PARENT)
        if parent and parent in self._names:
            yield f"\nOf the model {self._link(parent)}."
        if children := self._children.get(run.info.run_id):
            yield "\nMeasured and chosen from it:\n"
            yield from (f"- {self._link(child.info.run_id)}: {_values(child)}" for child in children)
        if tags.get("step") == "workflow":
            yield f"\n`{tags.get('command', '')}`\n"
            of_it = [other for other in self._runs if other.data.tags.get("workflow") == tags.get("workflow")]
            yield from (f"- {self._link(other.info.run_id)}" for other in of_it if other is not run)
        if failures := tags.get("failures"):
            yield f"\n{failures}"
        yield f"\nCode `{_code(run)}`, configuration `{tags.get('config_digest', '')}`."

    def _overview(self) -> Iterator[str]:
        yield "Mirrored from the journals of this configuration; `dseq-jepa sync` fills it again.\n"
        yield "| model | state | chosen and measured |\n| --- | --- | --- |"
        for run in self._runs:
            if run.data.tags.get("step") == "pretrain":
                children = "; ".join(filter(None, (_values(c) for c in self._children.get(run.info.run_id, []))))
                yield f"| {self._link(run.info.run_id)} | {run.data.tags.get('state')} | {children} |"
        others = [run for run in self._runs if run.data.tags.get("step") in ("tables", "workflow")]
        yield ""
        yield from (f"- {self._link(run.info.run_id)}: {run.data.tags.get('state')}" for run in others)


def _values(run: "StoredRun") -> str:
    """The last values of a child that people look for."""
    wanted = {
        name: value
        for name, value in sorted(run.data.metrics.items())
        if name == _SCORE or name.rpartition("/")[2] in ("top1", "miou", "box_ap", "mask_ap")
    }
    return ", ".join(f"{name} {value:.2f}" for name, value in list(wanted.items())[:_SHOWN_METRICS])
