"""``MAX_BATCH`` by the names of models, some of which there are not."""

from pathlib import Path

import pytest

from service.repository.loading import check_loadable, load_models
from service.settings import Settings, SettingsError
from tests import graphs


def test_a_batch_for_a_model_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    settings = Settings(repository=tmp_path, device="cpu", max_batch={"tiny-audio": 3, "nosuch": 2})
    for start in (check_loadable, load_models):
        with pytest.raises(
            SettingsError, match=r"CONVSERVE_MAX_BATCH names 'nosuch', .* has tiny-audio, tiny-classify,"
        ):
            start(settings)


def test_a_batch_for_a_model_that_is_there_but_broken_is_not_refused(tmp_path: Path) -> None:
    graphs.write_all(tmp_path)
    (tmp_path / "tiny-video" / "1" / "card.json").write_text("{}")
    settings = Settings(repository=tmp_path, device="cpu", max_batch={"tiny-video": 2, "tiny-audio": 3})
    check_loadable(settings)
    assert {model.max_batch for model in load_models(settings) if model.card.task == "audio"} == {3}
