"""transformers: vision models, CLIP and SigLIP by their halves, built without any download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .base import (
    CLIP_VOCABULARY,
    EncoderFile,
    EncoderFileError,
    Library,
    StateDict,
    TextTower,
    TokenizerFolders,
    Tower,
    check_keys,
    pair,
)
from .building import building
from .description import (
    MEAN_LEAST,
    STD_LEAST,
    Check,
    allowed,
    fields_of,
    layers,
    mapping,
    one_of,
    one_or_pair,
    pixels,
    plain,
    shown,
    statistics,
    whole,
    words,
)
from .tokenizer_files import bad_tokenizer, tokenizer_folder

# Image encoders whose networks are wholly of transformers: nothing of theirs is taken from another library or model.
_KINDS = words(
    """beit bit clip clip_text_model clip_vision_model convnext convnextv2 cvt data2vec-vision deit dinat dinov2
    dinov2_with_registers dinov3_convnext dinov3_vit donut-swin efficientnet focalnet hgnet_v2 hiera ijepa levit
    metaclip_2 mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pp_lcnet pvt pvt_v2 regnet resnet
    segformer siglip siglip2 siglip2_vision_model siglip_text_model siglip_vision_model swiftformer swin swinv2
    textnet vit vit_mae vit_msn"""
)
_FIELDS: dict[str, Check] = {
    **fields_of(
        plain,
        """apply_layernorm attention_dropout attention_drop_rate attention_probs_dropout_prob attention_ratio
        attn_dropout base_attn_unit_dims batch_norm_eps batch_norm_momentum block_configs bos_token_id class_expand
        cls_token conv_kernel_size conv_layer_kernel_sizes conv_layer_strides decoder_depth decoder_hidden_size
        decoder_intermediate_size decoder_num_attention_heads decoder_num_heads depth_coefficient depth_divisible_by
        depth_divisor depth_multiplier depthwise_padding dilations divisor down_ops down_pad down_patch_size
        down_stride downsample_in_bottleneck downsample_in_first_stage downsamples drop_connect_rate
        drop_conv_encoder_rate drop_mlp_rate drop_path_rate drop_rate dropout dropout_rate embed_dim
        embed_dim_multiplier embed_dims embedding_dynamic_padding embedding_size encoder_stride eos_token_id
        expand_ratio expand_ratios ffn_dropout ffn_multiplier finegrained_output first_layer_is_expansion focal_levels
        focal_windows global_padding groups_width hidden_act hidden_dim hidden_dropout_prob hidden_size hidden_sizes
        in_channels initializer_factor initializer_range intermediate_size kernel_qkv kernel_size kernel_sizes
        key_bias key_dim layer_norm_eps layer_norm_init layer_scale_init_value layer_type layerscale_value
        linear_attention mask_ratio masked_unit_attention masked_unit_size min_depth mlp_bias mlp_ratio mlp_ratios
        n_attn_blocks neck_hidden_sizes norm_pix_loss normalize_modulator normalize_pixel_loss num_attention_heads
        num_groups num_heads num_patches num_query_pool num_register_tokens out_channels output_stride pad_token_id
        padding padding_kv padding_q patch_padding patch_sizes patch_stride pool_size pooler_act pooler_output_size
        pooling_type pos_embed_jitter pos_embed_rescale pos_embed_shift pretrained_window_sizes proj_bias
        projection_dim projection_size qkv_bias qkv_projection_method query_bias query_stride reduction rope_theta
        scale sequence_reduction_ratios sr_ratios squeeze_expansion_ratio
        stage_downsample stage_downsample_strides stage_in_channels stage_kernel_size stage_light_block
        stage_mid_channels stage_numb_of_layers stage_out_channels stem_act_func stem_channels stem_kernel_size
        stem_num_channels stem_out_channels stem_stride stem_strides stride stride_kv stride_q strides tf_padding
        use_absolute_embeddings use_absolute_position_embeddings use_conv_embed use_gated_mlp use_layer_scale
        use_layerscale use_learnable_affine_block use_mask_token use_mean_pooling use_post_layernorm
        use_post_layernorm_in_modulation use_relative_position_bias use_shared_relative_position_bias use_swiglu_ffn
        value_bias vision_use_head vocab_size width_coefficient width_factor width_multiplier window_size""",
    ),
    **fields_of(
        layers,
        "num_hidden_layers num_layers num_stages num_encoder_blocks depth depths decoder_num_hidden_layers "
        "num_block_repeats stage_num_blocks",
    ),
    **fields_of(one_or_pair(pixels), "image_size patch_size"),
    "max_position_embeddings": whole(4096),
    "num_channels": one_of(3),
    **fields_of(one_of("float32", "float16", "bfloat16"), "dtype torch_dtype"),
    # Any other implementation may be the name of one to download.
    **fields_of(one_of("eager", "sdpa"), "attn_implementation _attn_implementation"),
}
# Of labels, losses, heads of other tasks, and of how a model was saved: nothing that makes an embedding.
_BOOKKEEPING = words(
    """add_cross_attention add_fpn architectures aspp_dropout_prob aspp_out_channels atrous_rates
    auxiliary_channels auxiliary_concat_input auxiliary_loss_weight auxiliary_num_convs chunk_size_feed_forward
    classifier_dropout_prob id2label is_encoder_decoder label2id logit_scale_init_value model_type num_labels
    out_features out_indices output_attentions output_hidden_states pool_scales problem_type
    reshape_hidden_states reshape_last_stage return_dict semantic_loss_ignore_index stage_names
    tie_word_embeddings transformers_version use_auxiliary_head use_cache"""
)
_HALVES = ("vision_config", "text_config", "vision_config_dict", "text_config_dict")
# Ways to networks, weights or code from elsewhere. Null or false, they say nothing.
_ELSEWHERE = words(
    """backbone backbone_config backbone_kwargs checkpoint_path quantization_config timm_model_name
    trust_remote_code use_pretrained_backbone use_timm_backbone"""
)


def described(given: Any, name: str, default: Any, file: EncoderFile) -> dict[str, Any]:
    """What transformers may see of a description. default: the library's own configuration of that kind of model.

    What describes no part of the network (labels, settings of generation and training) is left out; a part that is
    not known to be plain may only be what it is by default. Raises EncoderFileError naming the field.
    """
    kept = {}
    for key, value in mapping(given, name, file.name).items():
        check = _FIELDS.get(key)
        if key in _HALVES:
            continue  # described by themselves
        if key in _ELSEWHERE and value:
            raise EncoderFileError(
                f"{file.name}: its config.json sets {key} = {shown(value)}, which would take a part of the network "
                "from elsewhere. Use a model without it."
            )
        if check is not None:
            kept[key] = value if value is None else allowed(f"{name}.{key}", check, value, file.name)
        elif key in vars(default) and not _is_bookkeeping(key) and not _same(value, getattr(default, key)):
            raise EncoderFileError(
                f"{file.name}: its config.json sets {name}.{key} = {shown(value)}, which is not taken from files. Use "
                "a model without it."
            )
    return kept


def _is_bookkeeping(key: str) -> bool:
    return key in _BOOKKEEPING or key.startswith("_")


def _same(value: Any, other: Any) -> bool:
    return value == other or (isinstance(other, tuple) and isinstance(value, list) and tuple(value) == other)


class _Pooled(torch.nn.Module):
    """A transformers vision model reduced to its image embedding."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixel_values=pixel_values)
        for attribute in ("image_embeds", "pooler_output"):
            pooled = getattr(outputs, attribute, None)
            if pooled is not None:
                return pooled
        return outputs.last_hidden_state[:, 0]


def build_transformers(file: EncoderFile) -> Tower:
    """A transformers vision model, CLIP and SigLIP by their vision half. config: the model's `config.json`."""
    import transformers

    def half(kind: str, parsed: Any) -> tuple[Any, Any]:
        vision = getattr(parsed, "vision_config", parsed)
        if kind.startswith("clip"):
            vision.projection_dim = parsed.projection_dim
            return vision, transformers.CLIPVisionModelWithProjection
        if kind.startswith("siglip"):
            return vision, transformers.SiglipVisionModel
        return vision, transformers.MODEL_MAPPING[type(parsed)]

    halves = ("text_model.", "text_projection.", "logit_")
    weights = {key: value for key, value in file.weights.items() if not key.startswith(halves)}
    kind, vision, model = load_transformers(file, "vision", half, weights)
    assert file.config is not None
    preprocess = _transformers_preprocess(kind, vision, file.config.get("preprocessor") or {}, file.name)
    return Tower(_Pooled(model), preprocess, captioned=kind.startswith(("clip", "siglip")))


def load_transformers(
    file: EncoderFile, part: str, choose: Callable[[str, Any], tuple[Any, Any]], weights: StateDict
) -> tuple[str, Any, torch.nn.Module]:
    """The model type of the file's config, the configuration of the half that is wanted, and that half with `weights`.

    part: "vision" or "text", which of the halves' descriptions counts. choose: (model type, parsed configuration) ->
    configuration and class of the half.
    """
    import transformers

    config = file.config
    if not config or "model_type" not in config:
        raise EncoderFileError(
            f"{file.name}: a transformers model is described by its config.json. Put the file and its config.json "
            "into one folder inside ComfyUI's clip_vision folder."
        )
    kind = mapping(config, "config", file.name)["model_type"]
    if not isinstance(kind, str) or kind not in _KINDS or kind not in transformers.CONFIG_MAPPING:
        raise EncoderFileError(
            f"{file.name}: transformers cannot build the model of its config.json here: {shown(kind)} is no image "
            "encoder that it builds alone. Use a CLIP, SigLIP, DINO or ViT model, or a newer transformers."
        )
    default = transformers.CONFIG_MAPPING[kind]()
    settings = described(config, "config", default, file)
    for key in (f"{part}_config{old}" for old in ("", "_dict")):
        if config.get(key) is not None and hasattr(default, f"{part}_config"):
            settings[key] = described(config[key], key, getattr(default, f"{part}_config"), file)
    with building(file, f"transformers {kind}"):
        half, builder = choose(kind, transformers.AutoConfig.for_model(kind, **settings))
        # Only to see how large it is: the library would make room for whatever the file lacks.
        with torch.device("meta"):
            builder._from_config(half)
    # Through from_pretrained, although there is nothing to fetch, because it knows how the key names in files differ
    # from those of the module in each version of the library.
    try:
        model, loading = builder.from_pretrained(None, config=half, state_dict=dict(weights), output_loading_info=True)
    except Exception as error:  # whatever the library raises for weights of other shapes
        raise EncoderFileError(
            f"{file.name} does not fit transformers {kind} as its config.json describes it ({str(error)[:300]}). Use "
            "the config.json that belongs to the file."
        ) from error
    heads = ("classifier.", "head.")
    unexpected = [key for key in loading["unexpected_keys"] if not key.startswith(heads)]
    check_keys(list(loading["missing_keys"]), unexpected, file.name, f"transformers {kind}")
    return kind, half, model


def _transformers_preprocess(kind: str, vision: Any, given: Any, file_name: str) -> Preprocess:
    settings = mapping(given, "preprocessor", file_name)
    size: Any = settings.get("crop_size") or settings.get("size") or getattr(vision, "image_size", 224)
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    allowed("preprocessor.size", one_or_pair(pixels), size, file_name)
    if kind.startswith("clip"):
        mean, std = CLIP_MEAN, CLIP_STD
    elif kind.startswith("siglip"):
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return Preprocess(
        pair(size),
        statistics(settings.get("image_mean") or mean, "preprocessor.image_mean", file_name, MEAN_LEAST),
        statistics(settings.get("image_std") or std, "preprocessor.image_std", file_name, STD_LEAST),
    )


def build_transformers_text(file: EncoderFile, folders: TokenizerFolders) -> TextTower:
    """The text half of a transformers CLIP or SigLIP model. config: the model's `config.json`."""
    import transformers

    parsed: list[Any] = []

    def half(kind: str, whole: Any) -> tuple[Any, Any]:
        parsed.append(whole)
        text = getattr(whole, "text_config", None)
        if text is None or not kind.startswith(("clip", "siglip")):
            raise EncoderFileError(f"{file.name}: {kind} models read no text. Use a CLIP or SigLIP model.")
        if kind.startswith("siglip"):
            return text, transformers.SiglipTextModel
        text.projection_dim = whole.projection_dim
        return text, transformers.CLIPTextModelWithProjection

    weights = {key: value for key, value in file.weights.items() if key.startswith(("text_model.", "text_projection."))}
    kind, text, model = load_transformers(file, "text", half, weights)
    model.float().eval().requires_grad_(False)
    own_pairs = kind.startswith("clip") and text.vocab_size == CLIP_VOCABULARY
    folder = tokenizer_folder(file, folders, own_pairs)
    try:
        reader = transformers.CLIPTokenizer if folder == folders.clip else transformers.AutoTokenizer
        known = {} if folder == folders.clip else {"config": parsed[0]}  # it would build all of config.json itself
        tokenizer = reader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **known)
    except Exception as error:  # whatever the files' reader raises
        raise bad_tokenizer(file, folder, error) from error

    def tokenize(prompt: str) -> torch.Tensor:
        # SigLIP reads its padding and was trained with it; CLIP stops at the end of the text.
        padding = "max_length" if kind.startswith("siglip") else False
        length = text.max_position_embeddings
        return tokenizer(prompt, padding=padding, max_length=length, truncation=True, return_tensors="pt")["input_ids"]

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        outputs = model(input_ids=tokens)
        return outputs.pooler_output if kind.startswith("siglip") else outputs.text_embeds

    return TextTower(forward, tokenize, file.name)


def _recognises(weights: StateDict, config: Mapping[str, Any] | None) -> bool:
    return config is not None and "model_type" in config


TRANSFORMERS = Library(
    "transformers",
    "transformers",
    "transformers",
    _recognises,
    build_transformers,
    certainty=1,  # what the config.json says is more than what names of weights suggest
    build_text=build_transformers_text,
    text_prefixes=("text_model.",),
    beside="its config.json in the same folder",
)
