"""Tiny pipelines around a U-Net: Stable Diffusion and SDXL."""

# ruff: noqa: ANN401 (parts of diffusers)

from typing import Any

from steer.bench.tiny_pipelines.parts import autoencoder, clip_text, clip_tokenizer, diffusers


def unet(told: int | None = None, wide: bool = False, **larger: Any) -> Any:
    """The network. told: numbers of a guidance scale's embedding; wide: SDXL's; larger: other sizes by name."""
    sizes: dict[str, Any] = {"block_out_channels": (16, 32), "sample_size": 8, "attention_head_dim": 8}
    if wide:
        sizes |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                  "projection_class_embeddings_input_dim": 6 * 8 + 32}  # fmt: skip
    return diffusers.UNet2DConditionModel(
        layers_per_block=1, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64 if wide else 32, norm_num_groups=8,
        time_cond_proj_dim=told, **sizes | larger,
    )  # fmt: skip


def stable_diffusion(scheduler: Any, told: int | None = None, **larger: Any) -> Any:
    """A StableDiffusionPipeline; see `unet`."""
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(told, **larger),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(scheduler: Any) -> Any:
    """A StableDiffusionXLPipeline."""
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(), text_encoder=clip_text(), text_encoder_2=clip_text(True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet(wide=True), scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip
