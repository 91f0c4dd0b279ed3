"""Tiny random models of the causal model types of the installed transformers."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
SIZES: dict[str, float] = {
    name: size
    for size, names in {
        VOCABULARY: "vocab_size encoder_hash_byte_group_vocab vocab_size_per_layer_input unpadded_vocab_size "
        "shape_vocab_size pronunciation_vocab_size",
        32: "hidden_size d_model n_embd emb_dim embedding_dim embedding_size lru_width "
        "word_embed_proj_dim input_embedding_size output_embedding_size ple_embed_dim",
        48: "intermediate_size moe_intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim dff dim_ff d_inner "
        "shared_expert_intermediate_size shared_experts_intermediate_size ffn_hidden_size shared_intermediate_size "
        "intermediate_size_mlp dense_intermediate_size expert_ffn_hidden_size feed_forward_size n_inner "
        "moe_shared_expert_intermediate_size",
        2: "num_hidden_layers encoder_layers decoder_layers n_layer n_layers num_layers num_encoder_layers "
        "num_decoder_layers num_blocks num_key_value_heads swa_num_key_value_heads num_kv_heads kv_n_heads "
        "num_query_groups num_experts_per_tok moe_topk moe_k moe_top_k num_experts_per_token eos_token_id "
        "forced_eos_token_id linear_num_key_heads zero_expert_num num_layers_per_stack",
        4: "num_attention_heads encoder_attention_heads decoder_attention_heads n_head n_heads num_heads "
        "num_encoder_attention_heads num_decoder_attention_heads attention_heads swa_num_attention_heads index_n_heads "
        "num_experts n_routed_experts num_local_experts moe_num_experts linear_num_value_heads linear_num_heads "
        "mamba_n_heads mamba_dt_rank time_step_rank n_mamba_heads cls_token_id",
        8: "head_dim qk_rope_head_dim v_head_dim qk_nope_head_dim index_head_dim swa_head_dim dim_head d_head "
        "attention_head_size kv_channels rotary_dim linear_key_head_dim linear_value_head_dim linear_head_dim "
        "sliding_window sliding_window_size window_size attention_window_size keep_window_size mamba_d_state "
        "local_attention_window_len index_topk state_size ssm_state_size",
        16: "qk_head_dim kv_lora_rank q_lora_rank o_lora_rank hidden_size_per_layer_input laurel_rank adapter_rank "
        "attention_chunk_size chunk_size mamba_chunk_size block_size mamba_d_head mamba_headdim attention_head_dim",
        64: "mamba_d_ssm attention_hidden_size",
        256: "max_position_embeddings n_positions max_seq_len n_ctx context_length model_max_length "
        "max_target_positions",
        1: "bos_token_id decoder_start_token_id start_token_id n_group topk_group num_expert_group",
        0: "pad_token_id num_kv_shared_layers",
        3: "sep_token_id",
        0.2: "initializer_range",
    }.items()
    for name in names.split()
}
"""Sizes of a tiny model, by the names that configurations have for them."""
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type")
BY_DEFAULT_NONE = ("head_dim", "num_key_value_heads", "num_experts_per_tok", "n_routed_experts", "pad_token_id")
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
MANY_SCORES = {"index_n_heads": 32}
"""Few ties in the choice of the top-k: of fewer heads many scores are 0."""
SPARSE_OF_QWEN4 = {
    "indexer_n_heads": 32,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v32": MANY_SCORES,
    "dory": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_hidden_layers": 3,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite_swa": {"layer_rope_theta": None},
    "glm_moe_dsa": MANY_SCORES,
    "granitemoehybrid": HYBRID,
    "hy_v4": MANY_SCORES,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"num_attention_heads_per_layer": None},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"no_rope_layers": [1, 0], "interleave_moe_layer_step": 2, "num_experts_per_tok": 1},
    "mamba2": {"head_dim": 16, "num_heads": 4, "n_groups": 1},
    "minicpm3": {"scale_emb": 1},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "index_n_heads": 2,
    },
    "moshi": {"sliding_window": 8},
    "qwen4_exp": {"text_config": SPARSE_OF_QWEN4},
    "qwen4_exp_text": SPARSE_OF_QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "rwkv": {"attention_hidden_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs beside its sizes."""
NOT_BUILT = {
    "blt": "holds four models of bytes and patches, whose sizes depend on each other",
    "dots3_note": "holds a vision and an audio tower; dots3_note_text is built",
    "gemma3n": "its vision tower needs the library timm; gemma3n_text is built",
    "gemma4_assistant": "drafts tokens from the states of another model",
    "gemma4_unified_assistant": "drafts tokens from the states of another model",
    "musicgen": "has no forward pass of text alone",
    "musicgen_melody": "has no forward pass of text alone",
}
"""Types that no tiny model is made of, and why."""
AT_RANDOM = {"reformer": "hashes at random: one row has other log-probs each time it is scored"}
"""Types that nothing can be compared with, and why."""
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(kind: str, **overrides: Any) -> Any:
    """Return the type's own default configuration with small sizes, each kind of layer in it."""
    return AutoConfig.for_model(
        kind, **_merged(_small(CONFIG_MAPPING[kind]().to_dict()), OVERRIDES.get(kind, {}) | overrides)
    )


def tiny_model(kind: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """Return a random model of a type; none of its weights is 0 or 1, as norms and biases are at first."""
    torch.manual_seed(0)
    config = tiny_config(kind, **overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    cast = AutoModelForCausalLM.from_config(config, dtype=dtype)  # a type may keep some weights in float32
    cast.load_state_dict(model.state_dict())
    return cast.eval()


def _small(values: dict[str, Any]) -> dict[str, Any]:
    kinds = {name: list(dict.fromkeys(values[name])) for name in KINDS_OF_LAYERS if values.get(name)}
    layers = max([2, *map(len, kinds.values())])
    small: dict[str, Any] = {name: (some * layers)[:layers] for name, some in kinds.items()}
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "per_layer_config":
            small[name] = _small(value)
        elif name in SIZES and not isinstance(value, bool) and (value is not None or name in BY_DEFAULT_NONE):
            small[name] = layers if name == "num_hidden_layers" else SIZES[name]
    if "kv_lora_rank" in small:  # latent attention has as many key heads as query heads
        small["num_key_value_heads"] = small["num_attention_heads"]
    if "per_layer_config" in values:
        small["per_layer_config"] = None
    return small


def _merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merged(values[name], other)
        for name, other in others.items()
        if isinstance(values.get(name), dict) and isinstance(other, dict)
    }
    return {**values, **others, **nested}
