"""Export of a run to a published model: the graph answers like PyTorch, at any batch, and is self-contained."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from models import evaluate as evaluation
from models import export as exporting
from models.convert import ExportError, halve_graph, parity, require_as_good
from models.datasets import Example
from models.evaluate import torch_predict
from models.export import export, main
from models.recipes import RECIPES, Source
from models.runs import Run
from models.tasks import TASKS
from models.trainer import Trainer
from service.engines.onnxruntime import Engine
from service.repository.card import Metric, ModelCard
from service.repository.folder import CARD, GRAPH, StoredModel, find_models, read_graph
from service.tasks.task import Outputs
from tests.folders import SCENE, small_recipe, write_data

NAMES = tuple(TASKS)
CATEGORIES: dict[str, tuple[str, ...]] = {
    "classify": ("green", "red"),
    "segment": SCENE,
    "audio": ("high", "low"),
    "video": ("green", "red"),
}
SAMPLES: dict[str, tuple[int, ...]] = {
    "classify": (16, 16, 3),
    "segment": (48, 64, 3),
    "audio": (1, 1600),
    "video": (8, 32, 32, 3),
}
ROOT = Path(__file__).resolve().parents[2]


class Published(NamedTuple):
    run: Run
    folder: Path  # the run's
    data: Path
    repository: Path
    card: ModelCard

    @property
    def model(self) -> StoredModel:
        return StoredModel(self.card, self.repository / self.card.name / str(self.card.version))

    def engine(self) -> Engine:
        return Engine(self.card, read_graph(self.model))


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def all_published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    """One epoch of the smallest networks, through the whole of ``export`` into one repository."""
    folder = tmp_path_factory.mktemp("export")
    found = {}
    for task in NAMES:
        data = write_data(folder / "data" / task, task, train=4, test=3)
        recipe = small_recipe(task, epochs=1, source=Source("mine", "mine", "a folder", "not stated"))
        examples = TASKS[task].load(data, "train", CATEGORIES[task], recipe.preprocess)
        trainer = Trainer(recipe, CATEGORIES[task], examples, torch.device("cpu"))
        trainer.epoch()
        run = trainer.run({"train": 8, "test": 6})
        run.save(folder / "runs" / task)
        card = export(run, data, folder / "repository", name=f"tiny-{task}", default=True)
        found[task] = Published(run, folder / "runs" / task, data, folder / "repository", card)
    return found


@pytest.fixture(params=NAMES)
def published(request: pytest.FixtureRequest, all_published: dict[str, Published]) -> Published:
    return all_published[request.param]


@pytest.fixture
def segmenter(all_published: dict[str, Published]) -> Published:
    return all_published["segment"]


def random_samples(task: str, count: int, shape: tuple[int, ...] | None = None) -> list[NDArray[np.generic]]:
    random = np.random.default_rng(count)
    shape = shape or SAMPLES[task]
    if task == "audio":
        return [random.uniform(-0.5, 0.5, shape).astype(np.float32) for _ in range(count)]
    return [random.integers(0, 256, shape, np.uint8) for _ in range(count)]


def views(run: Run, sample: NDArray[np.generic]) -> list[tuple[float, NDArray[np.generic]]]:
    """Views of a sample that the network runs on, and their weights."""
    if run.recipe.views == 1:
        return [(1.0, sample)]
    height, width, _ = sample.shape
    wider = np.pad(sample, ((1, 1), (1, 1), (0, 0)), "reflect")
    shifted = [(0.25, 1), (0.125, 0), (0.125, 2)]
    upright = [(weight, wider[start : start + height, start : start + width]) for weight, start in shifted]
    return upright + [(weight, view[:, ::-1]) for weight, view in upright]


def by_pytorch(run: Run, samples: list[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Each output for all samples, by the network alone: one view of one sample at a time, softmax in numpy."""
    served = run.served()

    def logits(view: NDArray[np.generic]) -> NDArray[np.float64]:
        with torch.inference_mode():
            found: torch.Tensor = served.network(served.prepare(torch.from_numpy(view[None].copy())))
        return found.double().numpy()

    means = [sum(weight * logits(view) for weight, view in views(run, sample)) for sample in samples]
    exponentials = np.exp(np.concatenate(means))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    if run.recipe.task == "segment":
        return [probabilities.argmax(axis=1).astype(np.uint8), probabilities.max(axis=1)]
    return [probabilities]


def assert_same(task: str, found: list[Outputs], expected: list[NDArray[np.generic]]) -> None:
    outputs = [np.stack([row[number] for row in found]) for number in range(len(expected))]
    for ours, theirs in zip(outputs, expected, strict=True):
        if ours.dtype == np.uint8:
            assert np.mean(ours != theirs) < 1e-3  # two categories may tie
        else:
            assert np.allclose(ours, theirs, atol=1e-4)


# The graph


@pytest.mark.parametrize("batch", [1, 3, 8, 5])
def test_the_graph_answers_like_pytorch_at_any_batch_size(published: Published, batch: int) -> None:
    task = published.card.task
    samples = random_samples(task, batch)
    assert_same(task, published.engine().run(samples), by_pytorch(published.run, samples))


@pytest.mark.parametrize("height, width", [(32, 32), (33, 47), (64, 48), (100, 36)])
def test_a_segmenters_graph_takes_any_height_and_width(segmenter: Published, height: int, width: int) -> None:
    samples = random_samples("segment", 2, (height, width, 3))
    found = segmenter.engine().run(samples)
    assert found[0][0].shape == found[0][1].shape == (height, width)
    assert_same("segment", found, by_pytorch(segmenter.run, samples))


def test_the_weights_are_inside_of_the_file(published: Published, tmp_path: Path) -> None:
    assert sorted(path.name for path in published.model.folder.iterdir()) == [CARD, GRAPH]
    graph = shutil.copy(published.model.folder / GRAPH, tmp_path)
    Engine(published.card, Path(graph).read_bytes()).run(random_samples(published.card.task, 1))
    model = onnx.load(graph, load_external_data=False)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_the_published_files_name_no_path_of_this_machine(published: Published) -> None:
    paths = [ROOT, Path.home(), published.data, published.folder, published.repository]
    for path in published.model.folder.iterdir():
        content = path.read_bytes()
        for found in (*(str(path).encode() for path in paths), b"/site-packages", b"/torch/", b'File "', b".py"):
            assert found not in content


def test_the_graph_holds_the_networks_weights_once_and_no_auxiliary_head(published: Published) -> None:
    """Weights may be folded into others; what the export cannot do is to hold more than the network has."""
    model = onnx.load(published.model.folder / GRAPH)
    assert not any("aux_classifier" in tensor.name for tensor in model.graph.initializer)
    held = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == 1)
    state = published.run.averaged
    served = {name: value for name, value in state.items() if not name.startswith("aux_classifier")}
    weights = sum(value.numel() for name, value in served.items() if value.dim() > 1)
    # Weights of convolutions and of linear layers, then at most four numbers a channel: batch norms, biases, the mean.
    rest = sum(value.numel() for value in served.values() if value.dim() == 1)
    assert weights <= held <= weights + rest + 16
    if published.card.task == "segment":
        auxiliary = sum(value.numel() for name, value in state.items() if name.startswith("aux_classifier"))
        assert auxiliary > 16 and held < weights + rest + auxiliary
        assert published.card.complexity.parameters == weights + sum(
            value.numel() for name, value in served.items() if value.dim() == 1 and "running" not in name
        )


def test_the_graphs_input_and_outputs_are_named_and_typed_as_the_card_says(published: Published) -> None:
    model = onnx.load(published.model.folder / GRAPH)
    types = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT: "float32"}
    for values, specs in ((model.graph.input, (published.card.input,)), (model.graph.output, published.card.outputs)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for value, spec in zip(values, specs, strict=True):
            assert types[value.type.tensor_type.elem_type] == spec.dtype
            sizes = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
            assert sizes == list(spec.shape)


# The card and the repository


def test_what_was_published_is_found_and_accepted(all_published: dict[str, Published]) -> None:
    models, refused = find_models(all_published["classify"].repository)
    assert not refused
    assert sorted(model.card.key for model in models) == sorted(f"tiny-{task}:1" for task in NAMES)
    for model in models:
        assert model.card == all_published[model.card.task].card
        read_graph(model)


def test_the_card_says_how_the_model_came_to_be(published: Published) -> None:
    card, recipe = published.card, published.run.recipe
    assert (card.task, card.default, card.categories) == (recipe.task, True, CATEGORIES[recipe.task])
    assert card.preprocess == recipe.preprocess
    assert (card.training.recipe, card.training.epochs, card.training.seed) == (recipe.name, 1, recipe.seed)
    assert card.dataset.name == "mine" and card.dataset.splits == {"train": 8, "test": 6}
    assert card.parity.samples == 12 and 0 <= card.parity.largest_difference <= 1e-4
    assert card.complexity.macs > 0 and card.architecture.startswith(f"{recipe.architecture}(")
    assert {metric.split for metric in card.metrics} == {"test"}
    assert {metric.samples for metric in card.metrics} == {6}


def test_the_description_speaks_of_the_data_that_was_trained_on(published: Published) -> None:
    assert published.card.description == "Trained on mine."  # not of spoken digits
    recipe = RECIPES[published.card.task]
    assert exporting._description(recipe) == recipe.description


def test_pytorch_and_onnx_have_the_same_metrics_by_the_same_code(published: Published) -> None:
    card = published.card
    examples = TASKS[card.task].load(published.data, "test", card.categories, card.preprocess)
    reference = torch_predict(published.run.served(), torch.device("cpu"))
    by_torch = TASKS[card.task].evaluate(reference, examples, len(card.categories), "test").metrics
    by_onnx = TASKS[card.task].evaluate(published.engine().run, examples, len(card.categories), "test").metrics
    assert [metric.name for metric in by_torch] == [metric.name for metric in by_onnx]
    for ours, theirs, stated in zip(by_torch, by_onnx, card.metrics, strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=2e-4)
        assert theirs == stated


def test_the_command_line_evaluates_a_run_and_its_export_alike(
    published: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for folder in (published.folder, published.model.folder):
        evaluation.main([str(folder), "--data", str(published.data)])
        printed.append([line.split() for line in capsys.readouterr().out.splitlines()])
    assert len(printed[0]) == 3
    for ours, theirs in zip(*printed, strict=True):
        numbers = [float(word) for line in (ours, theirs) for word in line if "." in word and word[0].isdigit()]
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)
        assert ours[-6:] == theirs[-6:]  # "on 6 files of …/test"


# In float16, which ONNX Runtime computes on the CPU by casting


@pytest.fixture
def halved(published: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Published:
    """The same run exported in float16; its graph in float32 is the one that was exported before."""

    def copied(served: object, task: str, samples: object, path: Path) -> None:
        shutil.copy(published.model.folder / GRAPH, path)

    monkeypatch.setattr(exporting, "export_graph", copied)
    card = export(published.run, published.data, tmp_path, name="half", default=False, precision="float16")
    return published._replace(repository=tmp_path, card=card)


def test_in_float16_inputs_and_outputs_stay_and_answers_do_within_2e_3(published: Published, halved: Published) -> None:
    task = published.card.task
    assert (published.card.precision, halved.card.precision) == ("float32", "float16")
    assert halved.card.parity.largest_difference <= 2e-3 and halved.card.parity.samples == 12
    assert (halved.card.input, halved.card.outputs) == (published.card.input, published.card.outputs)
    examples = TASKS[task].load(published.data, "test", published.card.categories, published.card.preprocess)
    for batch in (1, 3):
        samples = exporting._varied_samples(examples)[:batch]
        found = halved.engine().run(samples)
        for ours, theirs in zip(found, published.engine().run(samples), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == b.dtype
                assert np.mean(a != b) < 2e-3 if a.dtype == np.uint8 else np.allclose(a, b, atol=2e-3)


def test_in_float16_the_weights_take_half_of_the_bytes(published: Published, halved: Published) -> None:
    def weights(model: StoredModel) -> dict[int, int]:
        found: dict[int, int] = {}
        for tensor in onnx.load(model.folder / GRAPH).graph.initializer:
            if len(tensor.dims) > 1:
                found[tensor.data_type] = found.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
        return found

    single, half = weights(published.model), weights(halved.model)
    assert half[onnx.TensorProto.FLOAT16] + half.get(onnx.TensorProto.FLOAT, 0) == single[onnx.TensorProto.FLOAT]
    assert half[onnx.TensorProto.FLOAT16] > 2 * half[onnx.TensorProto.FLOAT] or published.card.task == "audio"


def test_float16_that_costs_accuracy_is_not_published(
    quick: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def damaged(path: Path) -> None:
        halve_graph(path)
        change_one_weight(path)

    monkeypatch.setattr(exporting, "halve_graph", damaged)
    with pytest.raises(ExportError, match=r"differs from PyTorch by .*; at most 0.002 is allowed in float16"):
        export(quick.run, quick.data, quick.repository, name="pets", default=False, precision="float16")
    assert not quick.repository.exists()


@pytest.mark.parametrize(
    "name, exact, half, refused",
    [
        ("accuracy", 0.9, 0.898, False),
        ("accuracy", 0.9, 0.8979, True),
        ("accuracy", 0.9, 0.95, False),
        ("mIoU", 0.5566, 0.5540, True),
        ("negative log likelihood", 0.9, 0.5, False),
    ],
)
def test_float16_may_cost_a_fifth_of_a_point(name: str, exact: float, half: float, refused: bool) -> None:
    one, other = ([Metric(name=name, value=value, samples=1000, split="test")] for value in (exact, half))
    if refused:
        with pytest.raises(ExportError, match=f"in float16 the {name} on test is .*; at most 0.2 points less"):
            require_as_good(one, other)
    else:
        require_as_good(one, other)


def test_a_card_that_does_not_say_its_precision_is_of_float32(published: Published) -> None:
    content = json.loads((published.model.folder / CARD).read_text())
    assert content.pop("precision") == "float32"
    assert ModelCard.model_validate(content).precision == "float32"


# Exporting again, without the exporter: it copies the graph that was exported before.


@pytest.fixture
def quick(all_published: dict[str, Published], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Published:
    """The classifier with an empty repository, its export being a copy."""
    classifier = all_published["classify"]

    def copied(served: object, task: str, samples: object, path: Path) -> None:
        shutil.copy(classifier.model.folder / GRAPH, path)

    monkeypatch.setattr(exporting, "export_graph", copied)
    return classifier._replace(repository=tmp_path / "repository")


def test_versions_count_up_and_none_is_overwritten(quick: Published) -> None:
    cards = [export(quick.run, quick.data, quick.repository, name="pets", default=False) for _ in range(3)]
    assert [card.version for card in cards] == [1, 2, 3]
    shutil.rmtree(quick.repository / "pets" / "1")
    before = (quick.repository / "pets" / "3" / CARD).read_bytes()
    assert export(quick.run, quick.data, quick.repository, name="pets", default=False).version == 4
    assert (quick.repository / "pets" / "3" / CARD).read_bytes() == before
    assert sorted(path.name for path in (quick.repository / "pets").iterdir()) == ["2", "3", "4"]
    assert [path.name for path in quick.repository.iterdir()] == ["pets"]  # nothing half done beside it


def change_one_weight(path: Path) -> None:
    model = onnx.load(path)
    last = model.graph.initializer[-1]
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            last = tensor
    values = onnx.numpy_helper.to_array(last).copy()
    values.flat[0] += 0.5
    last.CopyFrom(onnx.numpy_helper.from_array(values, last.name))
    onnx.save(model, path)


def test_a_graph_that_differs_from_pytorch_is_not_published(
    quick: Published,
    all_published: dict[str, Published],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def damaged(served: Any, task: str, samples: Any, path: Path) -> None:
        shutil.copy(all_published["classify"].model.folder / GRAPH, path)
        change_one_weight(path)

    monkeypatch.setattr(exporting, "export_graph", damaged)
    with pytest.raises(ExportError, match=r"the graph differs from PyTorch by .*; at most 0.0001 is allowed"):
        export(quick.run, quick.data, quick.repository, name="pets", default=False)
    assert not quick.repository.exists()
    with pytest.raises(SystemExit, match="cannot export: the graph differs from PyTorch"):
        main([str(quick.folder), "--data", str(quick.data), "--repository", str(quick.repository)])


def test_the_command_publishes_and_says_where(quick: Published, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(quick.folder), "--data", str(quick.data), "--repository", str(quick.repository)]
    main([*arguments, "--name", "pets"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"published pets:1 in {quick.repository}/pets/1: accuracy ")
    card = json.loads((quick.repository / "pets" / "1" / CARD).read_text())
    assert (card["name"], card["version"], card["default"]) == ("pets", 1, False)
    main([*arguments, "--default"])
    assert json.loads((quick.repository / "classify" / "1" / CARD).read_text())["default"] is True


@pytest.mark.parametrize("split, judged", [("test", "test"), ("val", "val"), (None, "train")])
def test_metrics_are_of_the_test_split_or_the_best_there_is(
    quick: Published, tmp_path: Path, split: str | None, judged: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(quick.data / "train", data / "train")
    if split:
        shutil.copytree(quick.data / "test", data / split)
    card = export(quick.run, data, quick.repository, name="pets", default=False)
    assert {metric.split for metric in card.metrics} == {judged}


@pytest.mark.parametrize("name", ["My Pets", "../pets", "", "-"])
def test_a_name_that_cannot_stand_in_a_repository_is_refused(
    quick: Published, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(quick.folder), "--data", str(quick.data), f"--name={name}"])
    assert "is not of the form" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"cannot export: {tmp_path} holds no checkpoint.pt"):
        main([str(tmp_path), "--data", str(tmp_path)])


def test_data_of_other_categories_is_refused(quick: Published, tmp_path: Path) -> None:
    shutil.copytree(quick.data / "test" / "red", tmp_path / "test" / "purple")
    with pytest.raises(SystemExit, match=r"cannot export: .*\['purple'\], which are none of the categories"):
        main([str(quick.folder), "--data", str(tmp_path), "--repository", str(quick.repository)])


# Parity


def answers(*outputs: NDArray[np.generic]) -> Any:
    """A model that always answers the same."""
    return lambda samples: [outputs for _ in samples]


SAMPLE = [np.zeros((2, 2, 3), np.uint8)] * 12


def test_parity_is_the_largest_difference_over_batches_of_1_3_and_8() -> None:
    sizes: list[int] = []

    def exported(samples: Any) -> list[Outputs]:
        sizes.append(len(samples))
        difference = 5e-5 if len(samples) == 3 else 1e-5
        return [(np.array([0.5 + difference, 0.5]),) for _ in samples]

    found = parity(answers(np.array([0.5, 0.5])), exported, SAMPLE)
    assert sizes == [1, 3, 8]
    assert found.largest_difference == pytest.approx(5e-5) and found.samples == 12


@pytest.mark.parametrize("difference, refused", [(9e-5, False), (1.1e-4, True), (-1.1e-4, True), (0.5, True)])
def test_a_difference_above_1e_4_is_refused(difference: float, refused: bool) -> None:
    reference, exported = answers(np.array([0.3, 0.7])), answers(np.array([0.3, 0.7 + difference]))
    if refused:
        with pytest.raises(ExportError, match="the graph differs from PyTorch by"):
            parity(reference, exported, SAMPLE)
    else:
        parity(reference, exported, SAMPLE)


@pytest.mark.parametrize("ours, theirs", [(0.5, np.nan), (np.nan, 0.5), (np.nan, np.nan), (np.inf, 0.5)])
def test_what_is_not_a_number_is_refused(ours: float, theirs: float) -> None:
    with pytest.raises(ExportError, match="not finite"):
        parity(answers(np.array([ours, 0.5], np.float32)), answers(np.array([theirs, 0.5], np.float32)), SAMPLE)


def test_masks_may_differ_where_categories_tie_but_not_more() -> None:
    mask, confidence = np.zeros((200, 200), np.uint8), np.ones((200, 200), np.float32)
    for changed, refused in ((3, False), (5, True)):  # of 40,000 pixels; 4 are 1e-4
        other = mask.copy()
        other.flat[:changed] = 1
        if refused:
            with pytest.raises(ExportError, match="of the mask's pixels differ"):
                parity(answers(mask, confidence), answers(other, confidence), SAMPLE)
        else:
            assert parity(answers(mask, confidence), answers(other, confidence), SAMPLE).largest_difference == 0


def test_samples_for_parity_come_from_all_over_the_split_and_have_one_shape() -> None:
    def example(level: int, shape: tuple[int, ...]) -> Example:
        return Example([np.full(shape, level, np.uint8)], np.ones(1), 0)

    many = exporting._varied_samples([example(number, (2, 2, 3)) for number in range(240)])
    assert len(many) == 12 and int(many[0].max()) == 0 and int(many[-1].max()) >= 100
    mixed = exporting._varied_samples([example(number, (2, 2 + number % 2, 3)) for number in range(4)])
    assert len(mixed) == 12 and {sample.shape for sample in mixed} == {(2, 2, 3)}
