"""Callbacks of a training run."""

from training_runs import make_arguments, make_model, make_trainer

from vanilla_transformer.training.callbacks import SampleTranslations


def test_sample_translations_are_printed_at_each_validation(tmp_path, tokenizer, dataset, capsys):
    arguments = make_arguments(tmp_path, eval_strategy="steps", eval_steps=2)
    samples = SampleTranslations(tokenizer, [("one two", "ONE TWO")])
    make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=[samples]).train()
    assert capsys.readouterr().out.count("source      one two\n  reference   ONE TWO\n  translation ") == 2
