"""Parts of tiny pipelines, of random weights, with tokenizers built here: nothing is downloaded."""

# ruff: noqa: ANN401 (parts of diffusers and transformers)

from typing import Any

from steer.models.diffusers import import_diffusers

diffusers = import_diffusers()
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]


def clip_tokenizer() -> Any:
    """A CLIPTokenizer of letters, 16 words at most."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16)


def t5_tokenizer() -> Any:
    """A T5Tokenizer of letters, 16 words at most."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("\u2581", -2.0), *((c, -3.0) for c in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=16)


def gemma_tokenizer() -> Any:
    """A GemmaTokenizer of letters."""
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", *LETTERS]
    return GemmaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])


def qwen_tokenizer() -> Any:
    """A Qwen2Tokenizer of bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=[], additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )


def clip_text(projection: bool = False) -> Any:
    """The text tower of a CLIP, of width 32."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = len(clip_tokenizer())
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=32, bos_token_id=size - 2, eos_token_id=size - 1,
        pad_token_id=size - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_text() -> Any:
    """The encoder of a T5, of width 32."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer()), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    )


def gemma_text() -> Any:
    """A Gemma 2 of width 8."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(gemma_tokenizer()), hidden_size=8, intermediate_size=16, num_hidden_layers=1, head_dim=4,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return Gemma2Model(config)


def qwen_text() -> Any:
    """A Qwen 2.5 VL of width 16."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"vocab_size": len(qwen_tokenizer()), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
            "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def byt5_text() -> Any:
    """The encoder of a ByT5, of width 16."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(ByT5Tokenizer()), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def umt5_text() -> Any:
    """The encoder of a UMT5, of width 32."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(vocab_size=len(t5_tokenizer()), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    )


def autoencoder(channels: int = 4) -> Any:
    """A convolutional autoencoder of factor 2."""
    return diffusers.AutoencoderKL(
        block_out_channels=[16, 32], norm_num_groups=8, latent_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        scaling_factor=0.6, shift_factor=0.1 if channels == 16 else None,
    )  # fmt: skip


def deep_autoencoder() -> Any:
    """A deep-compression autoencoder, as SANA has one, of factor 2."""
    return diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.4,
    )  # fmt: skip


def alphas(scheduler: str, **more: Any) -> Any:
    """A scheduler of diffusers by its name, with the noise levels of Stable Diffusion."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} | more
    return getattr(diffusers, scheduler)(**settings)


def flow_euler(**more: Any) -> Any:
    """The Euler scheduler of a rectified flow, shifted by 3."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | more)


def flow_dpm() -> Any:
    """DPM-Solver of order 1 on the levels of a rectified flow."""
    return diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=1
    )
