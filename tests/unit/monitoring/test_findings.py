import pytest

from twotower.monitoring.findings import in_words


@pytest.mark.parametrize(
    ("statistic", "words"),
    [
        ("log_loss", "log loss"),
        ("ctr", "click rate"),
        ("log_loss_adwin", "log loss, ADWIN"),
        ("auc_page_hinkley", "AUC, Page-Hinkley"),
        ("recall@10", "recall@10"),
        ("candidate_recall@200_adwin", "candidate recall@200, ADWIN"),
        ("top_1_percent_share@10", "share of the top 1 percent@10"),
    ],
)
def test_statistics_have_names_for_people(statistic, words):
    assert in_words(statistic) == words
