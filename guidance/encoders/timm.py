"""timm: vision models, built without weights and without any download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..preprocess import Preprocess
from .base import EncoderFile, Library, StateDict, Tower, check_weights, pair, unknown_name
from .building import building
from .description import (
    Check,
    checked,
    fields_of,
    flag,
    layers,
    listed_name,
    mapping,
    one_of,
    one_or_pair,
    pixels,
    plain,
)

# What timm's vision networks are made with, as far as it is plain: no classes, no weights from elsewhere, nothing of
# how they are placed or trained.
_ARGUMENTS: dict[str, Check] = {
    **fields_of(
        plain,
        """aa_layer aa_stem_only abs_win_pos_embed act_layer always_partition attn_act_layer attn_drop_rate
        attn_only_layer_scale attn_pool_mlp_ratio attn_pool_num_heads attn_ratio attn_type attn_types avg_down
        base_dim base_width basic bias block_config block_reduce_first block_type bn_size bottle_ratio
        bottleneck_width_ratio cardinality channel_attn_v2 channels class_token cls_ratio conv_bias conv_mlp
        conv_ratio cpe_act crop_scale crpe_window d2_scales depth_token_only dim_mul dims distillation
        down_kernel_size down_op down_patch_size down_stride downsample downsamples drop drop_block_rate
        drop_path_rate drop_rate dropout dynamic_img_pad dynamic_img_size embed_dim embed_dims embed_norm_layer
        eta expand_ratio expansion_ratio fc_norm ffn final_norm fix_init fix_stem focal_levels focal_windows
        global_att_blocks global_pool global_pos_size growth_rate growth_rates head_dim head_hidden_size
        head_init_scale head_mul head_norm_first head_widths heads hidden_size img_scale init_values kernel_size
        kernel_sizes key_dim layer_scale_init_value layer_scale_init_values layerscale_value legacy linear
        lkc_use_act local_conv_size local_up_to_layer locality_strength ls_init_value mask_unit_attn
        mask_unit_size mbconv_expand_ratio mlp_bias mlp_ratio mlp_ratio_token_only mlp_ratios multi_conv nlhb
        no_embed_class norm_eps norm_layer norm_layer_cl normalize_modulator num_features num_heads
        num_init_features num_kv_heads num_levels num_reg_tokens outlook_attention output_stride pad_type
        patch_drop_rate patch_kernel patch_padding patch_stride pool_include_prefix pool_type pooling_scale
        pos_drop_rate pos_embed pos_embs pre_norm preact pretrained_window_sizes proj_bias proj_drop_rate q_pool
        q_stride qk_norm qkv_bias qkv_fused ref_feat_shape reg_tokens rel_pos_dim rel_pos_type replace_stem_pool
        repmixer_kernel_size res_scale_init_values rope_grid_indexing rope_grid_offset rope_rotate_half
        rope_temperature rope_type scale_attn_inner scale_attn_norm scale_mlp scale_mlp_norm se_downsamples
        se_layer sep_pos_embed shared_rel_pos sr_ratios stem_chs stem_hidden_dim stem_kernel_size stem_mid_norm
        stem_norm stem_size stem_stride stem_type stem_use_scale_branch stem_width strict_img_size
        swiglu_align_to swiglu_mlp token_mixers tokens_norm transition_compression_ratio use_abs_pos_emb
        use_conv use_expand_proj use_fc_norm use_grn use_lab use_mlp_head use_overlap_down use_pos_emb
        use_pos_embed use_post_norm use_post_norm_in_modulation use_post_transformer_norm
        use_pre_transformer_norm use_rel_pos_bias use_rot_pos_emb use_shared_rel_pos_bias width_factor widths
        window_size window_sizes zero_init_last""",
    ),
    **fields_of(
        layers,
        "depth depths layers num_blocks num_blocks_list global_block_counts parallel_depth serial_depths post_layers "
        "cls_attn_layers",
    ),
    **fields_of(one_or_pair(pixels), "img_size patch_size"),
    # Overruled below; files may carry them.
    "num_classes": plain,
    "pretrained": flag,
    "in_chans": one_of(3),
    # How new weights would begin, which the file's replace.
    "weight_init": one_of("", "jax", "jax_nlhb", "moco", "reset", "skip"),
}


def build_timm(file: EncoderFile) -> Tower:
    """A timm model without its classifier. config: {"name": architecture, "kwargs": arguments of create_model}."""
    import timm

    config = mapping(file.config or {"name": file.model_name}, "config", file.name)
    name = config.get("name")
    if not isinstance(name, str) or not listed_name(timm.is_model, name):
        named = name if isinstance(name, str) else ""
        raise unknown_name(
            "timm", replace(file, model_name=named[:80]), "vit_small_patch16_dinov3 or vit_base_patch14_dinov2"
        )
    arguments = checked(config.get("kwargs") or {}, _ARGUMENTS, "kwargs", file.name)
    with building(file, f"timm {name}"):
        module = timm.create_model(name.split(".")[0], **{**arguments, "pretrained": False, "num_classes": 0})
    data = module.pretrained_cfg
    size = getattr(getattr(module, "patch_embed", None), "img_size", None) or data["input_size"][-2:]
    heads = ("head.", "head_dist.", "fc.", "classifier.", "mask_token")
    check_weights(module, file.weights, file.name, f"timm {name}", ignored_prefixes=heads)
    return Tower(module, Preprocess(pair(size), tuple(data["mean"]), tuple(data["std"])), captioned="clip" in name)


def _recognises(weights: StateDict, config: Mapping[str, Any] | None) -> bool:
    return any("patch_embed." in key for key in weights)


TIMM = Library("timm", "timm", "timm", _recognises, build_timm)
