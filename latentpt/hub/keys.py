"""The keys of a Hugging Face configuration: each is understood, known to be harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from latentpt.config import ConfigError

_WHY = {
    "where the weights come from, and which software wrote them": (
        "_name_or_path _commit_hash architectures auto_map dtype torch_dtype transformers_version transformers.js_config "
        "is_llama_config model_name unsloth_fixed unsloth_version"
    ),
    "how the same numbers are computed": (
        "_attn_implementation _attn_implementation_autoset attn_implementation use_flash_attn pretraining_tp use_cache "
        "reorder_and_upcast_attn chunk_size_feed_forward torchscript use_bfloat16"
    ),
    "what is returned beside the logits, and other heads": (
        "output_attentions output_hidden_states output_scores return_dict return_dict_in_generate id2label label2id "
        "num_labels problem_type finetuning_task summary_type summary_use_proj summary_activation summary_proj_to_labels "
        "summary_first_dropout classifier_dropout tf_legacy_loss"
    ),
    "training": (
        "initializer_range attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop gradient_checkpointing"
    ),
    "ids of tokens, and the tokenizer": (
        "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix"
    ),
    "generation": (
        "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
        "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
        "bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values "
        "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens task_specific_params"
    ),
    "of no meaning to a decoder alone": "is_decoder tie_encoder_decoder n_ctx",
}
HARMLESS = frozenset(key for keys in _WHY.values() for key in keys.split())
"""Keys that change no logit."""


class Keys(Mapping[str, Any]):
    """A configuration that remembers which of its keys were asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config, self._asked = config, {"model_type"}

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self._config[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)

    def only(self, key: str, *values: Any) -> None:
        """Raise ConfigError unless the key is absent or has one of `values`: what the decoder does not have must not be dropped in silence."""
        if key in self and self[key] not in values:
            raise ConfigError(f"{key} = {self[key]} is not supported; the supported value is {values[0]}")

    def check(self, understood: Collection[str] = ()) -> None:
        """Raise ConfigError for the first key that nobody asked for, `understood` ones and harmless ones aside."""
        for key in self._config:
            if key not in self._asked and key not in HARMLESS and key not in understood:
                raise ConfigError(
                    f"the key {key} = {self._config[key]!r} is not understood and may change the model's computation; "
                    "if it does not, remove it from config.json"
                )
