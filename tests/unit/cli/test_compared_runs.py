"""What of a config and of the figures stands in the table in which runs are compared."""

from __future__ import annotations

from omegaconf import OmegaConf

from twotower.cli.compared_runs import COMPARED, run_figures, run_settings
from twotower.config import compose


def test_settings_are_called_as_an_override_names_them():
    cfg = OmegaConf.create(
        {
            **dict.fromkeys(COMPARED),
            "seed": 3,
            "output_dir": "somewhere",
            "models": {
                "retrieval": {
                    "_target_": "package.towers.Two",
                    "_partial_": True,
                    "hidden": [64, 32],
                    "rate": 0.5,
                    "gated": True,
                    "missing": None,
                }
            },
        }
    )
    assert run_settings(cfg) == {
        "seed": 3,
        "models.retrieval": "Two",
        "models.retrieval.hidden": "[64, 32]",
        "models.retrieval.rate": 0.5,
        "models.retrieval.gated": "true",
    }


def test_every_setting_of_the_real_config_is_a_number_or_a_text():
    given = ["data=synthetic", "losses.retrieval.loss.temperature=0.25"]
    settings = run_settings(compose("train", given))
    assert len(settings) > 60
    assert {type(value) for value in settings.values()} <= {int, float, str}
    assert settings["losses.retrieval.loss.temperature"] == 0.25
    assert settings["models.ranking"] == "DCNv2"


def test_figures_of_the_stages_that_were_trained():
    metrics = {"retrieval/test/recall@50": 0.5, "retrieval/test/recall@10": 0.25}
    metrics |= {"retrieval/test/ndcg@10": 0.125, "retrieval/train/seconds": 3.0}
    assert run_figures(metrics, [10, 50]) == {
        **{"retrieval/recall@50": 0.5, "retrieval/ndcg@10": 0.125, "retrieval/seconds": 3.0}
    }
    assert run_figures({"ranking/test/auc": 0.75}, [10]) == {"ranking/auc": 0.75}
