"""Options of the train command: those of a resumed run."""

from vanilla_transformer.commands.train_arguments import make_options, merge_options


def test_another_metric_has_its_own_direction():
    before = {"metric_for_best_model": "loss", "greater_is_better": False, "max_steps": 9}
    merged = merge_options(before, {"metric_for_best_model": "bleu", "output_dir": "unused"})
    assert merged == {"metric_for_best_model": "bleu", "max_steps": 9, "output_dir": "unused"}
    assert make_options(merged)[2].greater_is_better is True
    assert merge_options(before, {"max_steps": 12}) == before | {"max_steps": 12}


def test_the_direction_of_another_metric_can_be_given():
    given = {"metric_for_best_model": "bleu", "greater_is_better": False}
    assert merge_options({"metric_for_best_model": "loss", "greater_is_better": True}, given) == given
