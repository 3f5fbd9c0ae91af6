"""transformers' own tests of a model, for MarianMT and for our model, tied and untied.

test_transformers_common.py runs this file in a pytest of its own, with the folder `tests` of transformers' sources
on the import path.
"""

import importlib.util
import sys
import types
import unittest

import torch
from transformers import MarianConfig, MarianModel, MarianMTModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerModel,
)

# The source distribution on PyPI has tests/test_*.py but no folder below tests, and test_modeling_common.py imports a
# class from each of two such folders. Where they are missing, empty classes take their places and add no tests.
for _name, _mixin in (
    ("tests.exporters.test_export", "ExportTesterMixin"),
    ("tests.generation.test_utils", "GenerationTesterMixin"),
):
    if importlib.util.find_spec(_name.rpartition(".")[0]) is None:
        sys.modules[_name] = types.ModuleType(_name)
        setattr(sys.modules[_name], _mixin, type(_mixin, (), {}))

from tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin, ids_tensor  # noqa: E402

# The tests look up by name which classes have no loss, and which take labels.
MODEL_MAPPING_NAMES["vanilla_transformer"] = VanillaTransformerModel.__name__
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["vanilla_transformer"] = (
    VanillaTransformerForConditionalGeneration.__name__
)


class ModelTester:
    """What the common tests ask for: a small configuration, and inputs that fit it."""

    batch_size = 13
    seq_length = 7
    is_training = True
    vocab_size = 99
    hidden_size = 16
    num_hidden_layers = 2
    num_attention_heads = 4
    pad_token_id = 1
    eos_token_id = 2

    def __init__(self, config_class: type[PreTrainedConfig], **fields: object) -> None:
        self.config_class = config_class
        self.fields = fields

    def get_config(self) -> PreTrainedConfig:
        """A configuration with which tests run in milliseconds."""
        return self.config_class(
            vocab_size=self.vocab_size,
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            decoder_layers=self.num_hidden_layers,
            encoder_attention_heads=self.num_attention_heads,
            decoder_attention_heads=self.num_attention_heads,
            encoder_ffn_dim=4,
            decoder_ffn_dim=4,
            dropout=0.1,
            attention_dropout=0.1,
            bos_token_id=0,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
            decoder_start_token_id=3,
            **self.fields,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        """The configuration, and the arguments of `forward`: sources without padding, each with its end."""
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(3)
        input_ids[:, -1] = self.eos_token_id
        decoder_input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(3)
        return self.get_config(), {
            "input_ids": input_ids,
            "decoder_input_ids": decoder_input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "decoder_attention_mask": torch.ones_like(decoder_input_ids),
        }


class MarianModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """The yardstick, as transformers' own test of it is set up."""

    all_model_classes: tuple[type[PreTrainedModel], ...] = (MarianModel, MarianMTModel)
    is_encoder_decoder = True
    test_missing_keys = False

    def setUp(self) -> None:
        self.model_tester = ModelTester(MarianConfig, max_position_embeddings=100)


class VanillaTransformerModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """Our model as it is by default: one matrix for both embeddings and the output layer."""

    all_model_classes: tuple[type[PreTrainedModel], ...] = (
        VanillaTransformerModel,
        VanillaTransformerForConditionalGeneration,
    )
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True  # is skipped unless asked for, or the file tells a later year

    def setUp(self) -> None:
        self.model_tester = ModelTester(VanillaTransformerConfig)


class VanillaTransformerUntiedModelTest(VanillaTransformerModelTest):
    """Our model with three matrices."""

    def setUp(self) -> None:
        self.model_tester = ModelTester(VanillaTransformerConfig, tie_word_embeddings=False)

    @unittest.skip("embeds the target by the source's matrix; untied they are two, see tests/test_modeling.py")
    def test_inputs_embeds_matches_input_ids(self) -> None:
        pass
