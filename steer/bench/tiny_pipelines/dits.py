"""Tiny pipelines around a transformer: SD3, FLUX, SANA, PixArt, HunyuanImage and AnyFlow."""

# ruff: noqa: ANN401 (parts of diffusers)

from typing import Any

from steer.bench.tiny_pipelines.parts import (
    autoencoder,
    byt5_text,
    clip_text,
    clip_tokenizer,
    deep_autoencoder,
    diffusers,
    flow_euler,
    gemma_text,
    gemma_tokenizer,
    qwen_text,
    qwen_tokenizer,
    t5_text,
    t5_tokenizer,
    umt5_text,
)  # fmt: skip


def sd3(scheduler: Any, **larger: Any) -> Any:
    """A StableDiffusion3Pipeline; larger: other sizes of its network by name."""
    sizes = {"sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
             "caption_projection_dim": 32}  # fmt: skip
    net = diffusers.SD3Transformer2DModel(
        patch_size=2, in_channels=16, joint_attention_dim=32, pooled_projection_dim=64, out_channels=16,
        **sizes | larger,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=scheduler, vae=autoencoder(16), text_encoder=clip_text(True),
        tokenizer=clip_tokenizer(), text_encoder_2=clip_text(True), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux(scheduler: Any, told: bool = True) -> Any:
    """A FluxPipeline; told: whether its network is told a guidance scale."""
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=told,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=net, scheduler=scheduler, vae=autoencoder(16), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def sana_network(**more: Any) -> Any:
    """The network of SANA; more: other settings of it by name."""
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2,
             "cross_attention_head_dim": 4, "cross_attention_dim": 8, "sample_size": 32}  # fmt: skip
    return diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, caption_channels=8, **sizes | more
    )


def sana(scheduler: Any, timestep_scale: float = 1.0) -> Any:
    """A SanaPipeline."""
    return diffusers.SanaPipeline(
        transformer=sana_network(timestep_scale=timestep_scale), vae=deep_autoencoder(), scheduler=scheduler,
        text_encoder=gemma_text(), tokenizer=gemma_tokenizer(),
    )  # fmt: skip


def sana_sprint(**larger: Any) -> Any:
    """A SanaSprintPipeline; larger: other sizes of its network by name."""
    return diffusers.SanaSprintPipeline(
        transformer=sana_network(guidance_embeds=True, qk_norm="rms_norm_across_heads", **larger),
        vae=deep_autoencoder(), scheduler=diffusers.SCMScheduler(), text_encoder=gemma_text(),
        tokenizer=gemma_tokenizer(),
    )  # fmt: skip


def pixart(scheduler: Any, sigma: bool = False) -> Any:
    """A PixArtAlphaPipeline, or a PixArtSigmaPipeline."""
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8 if sigma else 128, num_layers=1, patch_size=2, attention_head_dim=12, num_attention_heads=2,
        in_channels=4, out_channels=8, cross_attention_dim=24, caption_channels=32,
    )  # fmt: skip
    return (diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline)(
        transformer=net, scheduler=scheduler, vae=autoencoder(), text_encoder=t5_text(), tokenizer=t5_tokenizer()
    )


def hunyuan(shift: float = 5.0, guider: Any = None, **more: Any) -> Any:
    """A HunyuanImagePipeline that reads prompts `briefly`; more: settings of its network by name."""
    from transformers import ByT5Tokenizer

    net = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=16, rope_axes_dim=(4, 4), **more,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(64, 64), layers_per_block=1,
        spatial_compression_ratio=2, sample_size=32, scaling_factor=0.75,
    )  # fmt: skip
    pipe = diffusers.HunyuanImagePipeline(
        transformer=net, vae=vae, scheduler=flow_euler(shift=shift), text_encoder=qwen_text(),
        tokenizer=qwen_tokenizer(), text_encoder_2=byt5_text(), tokenizer_2=ByT5Tokenizer(), guider=guider,
    )  # fmt: skip
    return briefly(pipe)


def briefly(pipe: Any) -> Any:
    """HunyuanImage's pipeline, its prompts read after a shorter instruction and cut after 32 letters."""
    pipe.prompt_template_encode = "<|im_start|>system\nDescribe<|im_end|>\n<|im_start|>user\n{}<|im_end|>"
    pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 24, 32, 24
    return pipe


def mixed_guidance() -> Any:
    """HunyuanImage's guider, of scale 3."""
    return diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.0)


def anyflow(delta: str = "r") -> Any:
    """An AnyFlowPipeline; delta: how its network is told the second time."""
    net = diffusers.AnyFlowTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32, freq_dim=32,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32, deltatime_type=delta,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 0.8, 1.2],
    )  # fmt: skip
    return diffusers.AnyFlowPipeline(
        transformer=net, vae=vae, scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
        text_encoder=umt5_text(), tokenizer=t5_tokenizer(),
    )  # fmt: skip
