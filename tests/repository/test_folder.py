import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import ModelRefused
from service.repository.card import ModelCard
from service.repository.folder import file_entry, find_models, next_version, publish, read_graph
from tests import graphs


def _only_refusal(repository: Path) -> ModelRefused:
    """What is wrong with the only model of the repository."""
    models, refused = find_models(repository)
    if refused:
        assert not models and len(refused) == 1
        return refused[0]
    with pytest.raises(ModelRefused) as caught:
        read_graph(models[0])
    return caught.value


def test_every_model_with_a_card_is_found_and_its_bytes_are_read(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    graphs.write_model(tmp_path, "classify", version=2)
    models, refused = find_models(tmp_path)
    assert not refused
    keys = [model.card.key for model in models]
    assert keys == ["tiny-audio:1", "tiny-classify:1", "tiny-classify:2", "tiny-segment:1", "tiny-video:1"]
    assert read_graph(models[1]) == graphs.grey_classifier()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_models(tmp_path / "nowhere")


def test_hidden_folders_and_loose_files_are_no_models(tmp_path: Path) -> None:
    graphs.write_model(tmp_path / ".publishing", "classify")
    (tmp_path / "README").write_text("hello")
    assert find_models(tmp_path) == ([], [])


def test_other_bytes_than_the_cards_are_refused(tmp_path: Path) -> None:
    folder = graphs.write_model(tmp_path, "classify")
    (folder / "model.onnx").write_bytes(graphs.grey_classifier(8))
    refusal = _only_refusal(tmp_path)
    assert (refusal.model, refusal.reason) == ("tiny-classify:1", "sha256")


def test_a_missing_graph_is_refused(tmp_path: Path) -> None:
    (graphs.write_model(tmp_path, "classify") / "model.onnx").unlink()
    assert _only_refusal(tmp_path).reason == "files"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}'])
def test_a_card_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (graphs.write_model(tmp_path, "classify") / "card.json").write_text(text)
    assert _only_refusal(tmp_path).reason == "card"


def test_a_card_of_an_unknown_task_is_refused_by_the_tasks_name(tmp_path: Path) -> None:
    card = graphs.write_model(tmp_path, "classify") / "card.json"
    card.write_text(card.read_text().replace('"task": "classify"', '"task": "guess"'))
    refusal = _only_refusal(tmp_path)
    assert refusal.reason == "card" and "card.json: task: " in str(refusal)
    assert "no task is called 'guess'; there are classify, segment, audio, video" in str(refusal)


def test_a_card_of_another_model_is_refused(tmp_path: Path) -> None:
    graphs.write_model(tmp_path, "classify").rename(tmp_path / "tiny-classify" / "7")
    assert "tiny-classify:1" in str(_only_refusal(tmp_path))


def test_a_card_cannot_name_files_outside_of_its_folder(tmp_path: Path) -> None:
    graph = graphs.grey_classifier()
    entry = {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
    (tmp_path / "outside").write_bytes(graph)
    graphs.write_model(tmp_path, "classify", files={"model.onnx": entry, "../../outside": entry})
    assert _only_refusal(tmp_path).reason == "card"


def test_bytes_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    graphs.write_model(tmp_path, "classify", graph=b"\xffgarbage\xff")
    assert _only_refusal(tmp_path).reason == "graph"


def test_external_data_is_refused_in_graphs_and_subgraphs(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(4, np.float32), "weights")
    weights.data_location = TensorProto.EXTERNAL
    weights.ClearField("raw_data")
    weights.external_data.add(key="location", value="../../../etc/passwd")
    plain = onnx.load_model_from_string(graphs.grey_classifier())
    plain.graph.initializer.append(weights)
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("weights", 1, [4])], [weights])
    nested = onnx.load_model_from_string(graphs.grey_classifier())
    nested.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))
    for number, model in enumerate((plain, nested)):
        repository = tmp_path / str(number)
        graphs.write_model(repository, "classify", graph=model.SerializeToString())
        refusal = _only_refusal(repository)
        assert (refusal.reason, "weights" in str(refusal)) == ("external-data", True)


def test_custom_operators_are_refused(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(graphs.grey_classifier())
    model.opset_import.append(helper.make_opsetid("com.example.evil", 1))
    graphs.write_model(tmp_path, "classify", graph=model.SerializeToString())
    refusal = _only_refusal(tmp_path)
    assert refusal.reason == "operators" and "com.example.evil" in str(refusal)


def test_publishing_puts_a_whole_model_in_place_and_never_changes_a_version(tmp_path: Path) -> None:
    graph = tmp_path / "made.onnx"
    graph.write_bytes(graphs.grey_classifier())
    card = ModelCard.model_validate_json(json.dumps(graphs.card_content("classify", graph.read_bytes())))
    assert card.files["model.onnx"] == file_entry(graph)
    repository = tmp_path / "repository"
    assert next_version(repository, card.name) == 1
    folder = publish(card, graph, repository)
    assert folder == repository / "tiny-classify" / "1"
    models, refused = find_models(repository)
    assert (models[0].card, refused) == (card, [])
    assert read_graph(models[0]) == graph.read_bytes()
    with pytest.raises(FileExistsError):
        publish(card, graph, repository)
    assert next_version(repository, card.name) == 2
    assert sorted(entry.name for entry in repository.iterdir()) == ["tiny-classify"]


def test_a_failed_publication_leaves_nothing(tmp_path: Path) -> None:
    card = ModelCard.model_validate_json(json.dumps(graphs.card_content("classify", b"")))
    with pytest.raises(FileNotFoundError):
        publish(card, tmp_path / "no-such-file", tmp_path / "repository")
    assert list((tmp_path / "repository").iterdir()) == []
