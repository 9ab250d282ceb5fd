"""Which version of a registered encoder the aliases point at, in a real store with several seeds.

pytest tests/test_aliases.py
"""

from typing import Any

import pytest

from dseq_jepa.registry import model_name, set_aliases

MODEL = model_name("demo", {"method": "dseq-jepa", "architecture": "vit-b"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def client(store: Any) -> Any:
    """The store, with an empty registered model."""
    store.create_registered_model(MODEL)
    yield store
    store.delete_registered_model(MODEL)


def selection(client: Any, seed: int, score: float, code: str = "c0de", exported: bool = True) -> Any:
    """The run of a model's selection; its exported encoder is the next version."""
    tags = {"step": "select", "method": "dseq-jepa", "architecture": "vit-b", "seed": str(seed), "code_version": code}
    run = client.create_run("0", tags=tags)
    client.log_metric(run.info.run_id, "selected/knn_top1", score)
    if exported:
        client.create_model_version(MODEL, f"/export/{seed}", run.info.run_id)
    return client.get_run(run.info.run_id)


def aliases(client: Any, *current: Any) -> dict[str, str]:
    """What the aliases point at, as the folder of the version's weights."""
    set_aliases(client, "demo", current)
    held = client.get_registered_model(MODEL).aliases
    return {alias: client.get_model_version(MODEL, version).source for alias, version in held.items()}


def test_selected_is_the_first_seed_as_a_number_and_the_candidate_the_best_score(client: Any) -> None:
    runs = [selection(client, 10, 30.0), selection(client, 9, 50.0), selection(client, 11, 70.0)]
    assert aliases(client, *runs) == {"selected": "/export/9", "paper-candidate": "/export/11"}


def test_code_that_was_never_committed_is_no_candidate(client: Any) -> None:
    runs = [selection(client, 0, 70.0, code="c0de-dirty"), selection(client, 1, 30.0)]
    assert aliases(client, *runs) == {"selected": "/export/0", "paper-candidate": "/export/1"}


def test_aliases_move_to_what_is_better_and_leave_what_is_no_longer_current(client: Any) -> None:
    first = selection(client, 1, 30.0)
    assert aliases(client, first) == {"selected": "/export/1", "paper-candidate": "/export/1"}
    better = selection(client, 2, 40.0)
    assert aliases(client, first, better) == {"selected": "/export/1", "paper-candidate": "/export/2"}
    assert aliases(client, better) == {"selected": "/export/2", "paper-candidate": "/export/2"}


def test_a_candidate_is_taken_back_when_no_committed_code_is_left(client: Any) -> None:
    assert "paper-candidate" in aliases(client, selection(client, 0, 30.0))
    assert aliases(client, selection(client, 0, 30.0, code="c0de-dirty")) == {"selected": "/export/0"}


def test_no_alias_is_left_when_nothing_is_exported(client: Any) -> None:
    aliases(client, selection(client, 0, 30.0))
    assert aliases(client, selection(client, 0, 30.0, exported=False)) == {}


def test_only_selections_have_versions(client: Any) -> None:
    """A child of another step has the same method, architecture and seed."""
    chosen = selection(client, 5, 30.0)
    other = selection(client, 0, 90.0)
    client.set_tag(other.info.run_id, "step", "evaluate")
    assert aliases(client, chosen, client.get_run(other.info.run_id)) == {
        "selected": "/export/5",
        "paper-candidate": "/export/5",
    }


def test_aliases_that_are_right_are_not_written_again(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = selection(client, 0, 30.0)
    aliases(client, run)
    for name in ("set_registered_model_alias", "delete_registered_model_alias"):
        monkeypatch.setattr(client, name, None)
    aliases(client, run)


def test_a_model_that_was_never_exported_has_no_aliases_to_set(store: Any) -> None:
    """Its registered model does not exist."""
    tags = {"step": "select", "method": "i-jepa", "architecture": "vit-b", "seed": "0"}
    set_aliases(store, "demo", [store.get_run(store.create_run("0", tags=tags).info.run_id)])
