"""Networks of Hugging Face transformers, from small configurations: text, audio, images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from benchmarks.zoo.entry import Input, Tokens

WORDS = 96
TEXT: tuple[Input, ...] = (Tokens(shape=(2, 16), below=WORDS),)
IMAGE: tuple[Input, ...] = ((1, 3, 64, 64),)
SOUND: tuple[Input, ...] = ((1, 4000),)


def _create(config: str, model: str, settings: dict[str, Any], part: str | None) -> nn.Module:
    from benchmarks.zoo.torchvision_networks import declare_operators

    declare_operators()  # some image models import torchvision
    import transformers

    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return made.get_submodule(part) if part else made


# Widths under the names that most configurations use.
_ENCODER = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
_PAIR = {
    "vocab_size": WORDS,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 40,
    "use_cache": False,
}
_SPEECH = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_PATCHES = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}

# Name, configuration, model, settings, submodule or None, inputs.
_TABLE: tuple[tuple[str, str, str, dict[str, Any], str | None, tuple[Input, ...]], ...] = (
    ("bert", "BertConfig", "BertForSequenceClassification", _ENCODER, None, TEXT),
    ("bert_model", "BertConfig", "BertModel", _ENCODER, None, TEXT),
    ("bert_masked", "BertConfig", "BertForMaskedLM", _ENCODER, None, TEXT),
    ("distilbert", "DistilBertConfig", "DistilBertForSequenceClassification",
     {"vocab_size": WORDS, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80}, None, TEXT),
    ("albert", "AlbertConfig", "AlbertModel", {**_ENCODER, "embedding_size": 32}, None, TEXT),
    ("electra", "ElectraConfig", "ElectraModel", {**_ENCODER, "embedding_size": 32}, None, TEXT),
    ("roberta", "RobertaConfig", "RobertaModel", _ENCODER, None, TEXT),
    ("deberta_v2", "DebertaV2Config", "DebertaV2Model",
     {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, None, TEXT),
    ("mobilebert", "MobileBertConfig", "MobileBertModel",
     {**_ENCODER, "embedding_size": 32, "intra_bottleneck_size": 32}, None, TEXT),
    ("squeezebert", "SqueezeBertConfig", "SqueezeBertModel",
     {**_ENCODER, "embedding_size": 48, "q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1,
      "intermediate_groups": 4, "output_groups": 4}, None, TEXT),
    ("modernbert", "ModernBertConfig", "ModernBertModel",
     {**_ENCODER, "pad_token_id": 0, "attn_implementation": "sdpa"}, None, TEXT),
    ("fnet", "FNetConfig", "FNetModel", _ENCODER, None, TEXT),
    ("xlnet", "XLNetConfig", "XLNetModel",
     {"vocab_size": WORDS, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 80}, None, TEXT),
    ("longformer", "LongformerConfig", "LongformerModel", {**_ENCODER, "attention_window": 8}, None, TEXT),
    ("gpt2", "GPT2Config", "GPT2LMHeadModel",
     {"vocab_size": WORDS, "n_positions": 40, "n_embd": 48, "n_layer": 2, "n_head": 4, "use_cache": False}, None, TEXT),
    ("gpt_neo", "GPTNeoConfig", "GPTNeoForCausalLM",
     {"vocab_size": WORDS, "hidden_size": 48, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 40,
      "attention_types": [[["global", "local"], 1]], "use_cache": False}, None, TEXT),
    ("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**_ENCODER, "use_cache": False}, None, TEXT),
    ("gptj", "GPTJConfig", "GPTJForCausalLM",
     {"vocab_size": WORDS, "n_positions": 40, "n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 8,
      "use_cache": False}, None, TEXT),
    ("opt", "OPTConfig", "OPTForCausalLM",
     {"vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 80,
      "max_position_embeddings": 40, "word_embed_proj_dim": 48, "use_cache": False}, None, TEXT),
    ("bloom", "BloomConfig", "BloomForCausalLM",
     {"vocab_size": WORDS, "hidden_size": 48, "n_layer": 2, "n_head": 4, "use_cache": False}, None, TEXT),
    ("llama", "LlamaConfig", "LlamaForCausalLM", _DECODER, None, TEXT),
    ("mistral", "MistralConfig", "MistralForCausalLM", _DECODER, None, TEXT),
    ("qwen2", "Qwen2Config", "Qwen2ForCausalLM", _DECODER, None, TEXT),
    ("qwen3", "Qwen3Config", "Qwen3ForCausalLM", {**_DECODER, "head_dim": 12}, None, TEXT),
    ("gemma", "GemmaConfig", "GemmaForCausalLM", {**_DECODER, "head_dim": 12}, None, TEXT),
    ("gemma2", "Gemma2Config", "Gemma2ForCausalLM", {**_DECODER, "head_dim": 12}, None, TEXT),
    ("phi", "PhiConfig", "PhiForCausalLM", {**_DECODER, "num_key_value_heads": 4}, None, TEXT),
    ("phi3", "Phi3Config", "Phi3ForCausalLM", {**_DECODER, "eos_token_id": 1, "bos_token_id": 1}, None, TEXT),
    ("mixtral", "MixtralConfig", "MixtralForCausalLM",
     {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}, None, TEXT),
    ("falcon", "FalconConfig", "FalconForCausalLM",
     {"vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "use_cache": False},
     None, TEXT),
    ("mpt", "MptConfig", "MptForCausalLM",
     {"vocab_size": WORDS, "d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 40, "use_cache": False},
     None, TEXT),
    ("mamba", "MambaConfig", "MambaForCausalLM",
     {"vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}, None, TEXT),
    ("rwkv", "RwkvConfig", "RwkvForCausalLM",
     {"vocab_size": WORDS, "hidden_size": 48, "attention_hidden_size": 48, "intermediate_size": 80,
      "num_hidden_layers": 2, "use_cache": False}, None, TEXT),
    ("t5_encoder", "T5Config", "T5EncoderModel",
     {"vocab_size": WORDS, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4}, None, TEXT),
    ("bart", "BartConfig", "BartModel", _PAIR, None, TEXT),
    ("marian", "MarianConfig", "MarianModel", {**_PAIR, "pad_token_id": 0}, "encoder", TEXT),
    ("whisper_encoder", "WhisperConfig", "WhisperModel",
     {**_PAIR, "num_mel_bins": 20, "max_source_positions": 24, "pad_token_id": 0}, "encoder", ((1, 20, 48),)),
    ("wav2vec2", "Wav2Vec2Config", "Wav2Vec2Model", _SPEECH, None, SOUND),
    ("hubert", "HubertConfig", "HubertModel", _SPEECH, None, SOUND),
    ("vit", "ViTConfig", "ViTForImageClassification", _PATCHES, None, IMAGE),
    ("deit", "DeiTConfig", "DeiTForImageClassification", _PATCHES, None, IMAGE),
    ("dinov2", "Dinov2Config", "Dinov2ForImageClassification", {**_PATCHES, "mlp_ratio": 2}, None, IMAGE),
    ("siglip_vision", "SiglipVisionConfig", "SiglipVisionModel", _PATCHES, None, IMAGE),
    ("clip_text", "CLIPTextConfig", "CLIPTextModelWithProjection",
     {**_ENCODER, "projection_dim": 32, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}, None, TEXT),
    ("clip_vision", "CLIPVisionConfig", "CLIPVisionModelWithProjection", {**_PATCHES, "projection_dim": 32},
     None, IMAGE),
    ("swin", "SwinConfig", "SwinForImageClassification",
     {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, None, IMAGE),
    ("segformer", "SegformerConfig", "SegformerForSemanticSegmentation",
     {"num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 40, 48], "decoder_hidden_size": 32,
      "num_attention_heads": [1, 2, 4, 4]}, None, IMAGE),
    ("mobilevit", "MobileViTConfig", "MobileViTForImageClassification",
     {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]}, None, IMAGE),
    ("convnext", "ConvNextConfig", "ConvNextForImageClassification",
     {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}, None, IMAGE),
    ("resnet", "ResNetConfig", "ResNetForImageClassification",
     {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 80], "depths": [1, 1, 1, 1]}, None, IMAGE),
    ("poolformer", "PoolFormerConfig", "PoolFormerForImageClassification",
     {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}, None, IMAGE),
)  # fmt: skip

TABLE: dict[str, tuple[Callable[[], nn.Module], tuple[Input, ...]]] = {
    name: (partial(_create, config, model, settings, part), inputs)
    for name, config, model, settings, part, inputs in _TABLE
}
