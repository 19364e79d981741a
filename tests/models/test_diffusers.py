"""Pipelines as models: loaded from folders, held, steered, tuned, and native maps exported."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import steer
from steer.bench.tiny_pipelines import build, draw_noise
from steer.flow_map import OdeFlowMap, jump
from steer.models.diffusers import PipelineModel, from_pipeline, import_diffusers, load, plain
from steer.models.families import family_of, known, register
from steer.models.families.base import Choices, LinearFlow, Prompted, size_of
from steer.models.families.rectified import times_of, with_two_times

CPU = torch.device("cpu")
PROMPTS = ["a red heart", "two blue cats"]


def bright(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "tcd"
    build("sd-tcd").save_pretrained(folder)
    return folder


@cache
def held(name: str) -> PipelineModel:
    return from_pipeline(build(name))


@torch.no_grad()
def drawn(model: PipelineModel, steps: int = 4) -> Tensor:
    x0 = draw_noise(model, seed=3)
    return model.decode(plain(model, x0, model.encode(PROMPTS), steps))


def test_a_folder_is_loaded_offline_and_is_the_pipeline(saved: Path) -> None:
    model = steer.load_model(saved, "cpu")
    assert isinstance(model, PipelineModel) and model.name == str(saved)
    assert torch.equal(drawn(model), drawn(held("sd-tcd")))
    assert not any(p.requires_grad for p in model.family.flow.parameters())


def test_dtype_tiling_slicing_and_checkpointing_change_no_more_than_rounding(saved: Path) -> None:
    plainly = drawn(held("sd-tcd"))
    half = steer.load_model(saved, "cpu", dtype="bfloat16")
    assert isinstance(half, PipelineModel) and half.family.flow.dtype == torch.bfloat16
    x = draw_noise(half)
    assert half.flow(x, 0.2, 0.9, half.encode(PROMPTS)).dtype == torch.float32
    assert 0 < (drawn(half) - plainly).abs().max() < 0.1
    sliced = steer.load_model(saved, "cpu", slicing=True, tiling=True)
    assert_close(drawn(sliced), plainly, rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_a_decoder_that_computes_again_gives_the_same_gradient(saved: Path) -> None:
    gradients = []
    for again in (True, False):
        model = steer.load_model(saved, "cpu", checkpoint_decoder=again)
        x = draw_noise(model, n=1).requires_grad_()
        gradients += torch.autograd.grad(bright(model.decode(x)).sum(), x)
    assert gradients[0].abs().max() > 0
    assert_close(gradients[0], gradients[1])


def test_each_prompt_is_encoded_once() -> None:
    model = from_pipeline(build("sd-tcd"))
    asked: list[list[str]] = []
    encode = model.family.encode
    model.family.encode = lambda prompts: asked.append(prompts) or encode(prompts)
    first = model.encode(["a", "b", "a"])
    second = model.encode(["b", "c"])
    assert asked == [["a", "b"], ["c"]]
    assert torch.equal(first["words"][0], first["words"][2]) and torch.equal(first["words"][1], second["words"][0])


@torch.no_grad()
def test_a_plain_model_is_an_ode_and_choices_are_taken() -> None:
    model = held("sd3")
    assert isinstance(model.flow, OdeFlowMap) and model.flow.steps == 4
    x, cond = draw_noise(model), model.encode(PROMPTS)
    assert model.step is not None
    few = jump(model.step, x, 0.0, 1.0, cond)
    exact = jump(OdeFlowMap(model.flow.velocity, 24), x, 0.0, 1.0, cond)
    near = jump(model.flow, x, 0.0, 1.0, cond)
    assert (near - exact).square().mean() < 0.2 * (few - exact).square().mean()
    fast = from_pipeline(build("sd3"), Choices(kind="jump", guidance=1.0, height=32))
    assert fast.flow is fast.family.flow and fast.shape[1:] == (16, 8)


def test_guidance_leads_from_the_negative_prompt() -> None:
    pipe = build("sd3")
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    models = {w: from_pipeline(pipe, Choices(guidance=w, negative="blue")) for w in (0.0, 1.0, 3.0)}
    v = {w: m.step(x, 0.5, 0.5, m.encode(["a cat"])) for w, m in models.items() if m.step is not None}
    alone = models[1.0].step
    assert alone is not None
    assert_close(v[0.0], alone(x, 0.5, 0.5, models[1.0].encode(["blue"])), rtol=1e-4, atol=1e-5)
    assert_close(v[3.0], v[0.0] + 3 * (v[1.0] - v[0.0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["smc", "tds", "guidance", "beam"])
def test_steering_a_pipeline_that_is_held(method: str) -> None:
    steered = steer.pipeline(build("sd-tcd"))
    out = steered(PROMPTS, reward=bright, method=method, n=4, steps=3, seed=0, progress=False)
    assert out.images.shape == (2, 4, 3, 16, 16)
    assert_close(bright(out.images.flatten(0, 1)).view(2, 4), out.rewards, rtol=1e-4, atol=1e-5)
    assert (out.rewards.amax(1) > out.unsteered_rewards.mean(1)).all()


def test_loading_draws_no_bars_and_leaves_those_of_others(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging as one
    from transformers.utils import logging as other

    steer.load_model(saved, "cpu")
    said = capfd.readouterr()
    assert said.out == "" and "Loading" not in said.err and "it/s" not in said.err
    assert one.is_progress_bar_enabled() and other.is_progress_bar_enabled()


def test_the_command_line_takes_a_folder(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from steer.cli import main

    out = tmp_path / "out"
    command = ["sample", f"model={saved}", "prompt=a red heart", "reward=brightness", "n=2", "method=best_of_n"]
    command += ["seed=0", "device=cpu", f"out={out}"]
    assert main(command) == 0
    assert json.loads((out / "report.json").read_text())["model"] == str(saved)
    assert main([*command, "pipeline.height=24", "pipeline.dtype=bfloat16"]) == 0
    from PIL import Image

    assert Image.open(next(out.glob("best-*.png"))).size == (16, 24)
    assert main([*command, "pipeline.height=25"]) == 2
    assert "height=25 is no multiple of 2" in capsys.readouterr().err


def test_tuning_a_pipeline_and_its_adapters_in_diffusers(saved: Path, tmp_path: Path) -> None:
    start = steer.load_model(saved, "cpu")
    before = drawn(start)  # type: ignore[arg-type]
    tuned = steer.finetune(
        start, bright, [f"{i} cats" for i in range(8)], held_out_prompts=PROMPTS, objective="draft",
        steps=4, batch=4, lr=5e-3, rank=4,
        held_out=None, guard_every=2, guard_pictures=4, calls=2, save_every=2, out=tmp_path / "tuned", progress=False,
        rounds={"prompts": 2, "group": 2, "updates": 1}, device="cpu",
    )  # fmt: skip
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["best"]["reward"] > report["before"]["reward"]
    assert torch.equal(drawn(start), before)  # type: ignore[arg-type]
    one = steer.load_model(tmp_path / "tuned", "cpu")
    assert isinstance(tuned, PipelineModel) and isinstance(one, PipelineModel)
    assert (drawn(tuned) - before).abs().max() > 1e-3
    assert_close(drawn(one), drawn(tuned), rtol=0, atol=1e-5)
    pipe = build("sd-tcd")  # its weights are those of the folder
    pipe.load_lora_weights(str(tmp_path / "tuned"))
    assert_close(drawn(from_pipeline(pipe)), drawn(tuned), rtol=0, atol=1e-5)


def test_a_tuning_that_gained_nothing_leaves_the_pipeline_as_it_was(saved: Path, tmp_path: Path) -> None:
    steer.finetune(
        steer.load_model(saved, "cpu"), lambda images: -bright(images), [f"{i} cats" for i in range(8)],
        held_out_prompts=PROMPTS, objective="draft", steps=1, batch=2, lr=1e-3, rank=2, held_out=None, guard_every=1,
        guard_pictures=2, calls=1, out=tmp_path / "tuned", progress=False, device="cpu",
        rounds={"prompts": 2, "group": 1, "updates": 1}, guard={"kl_most": 0.0},
    )  # fmt: skip
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["best"] is None and "left as it was" in report["words"]
    assert not (tmp_path / "tuned" / "pytorch_lora_weights.safetensors").exists()
    again = steer.load_model(tmp_path / "tuned", "cpu")
    assert torch.equal(drawn(again), drawn(held("sd-tcd")))  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "words"), [({"rank": 0}, "rank"), ({"objective": "noise"}, "noise")])
def test_what_cannot_be_tuned_is_said(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        steer.finetune(held("sd-tcd"), bright, PROMPTS, held_out=None, out=tmp_path, progress=False, **given)


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_two_times_leave_the_velocity_and_split_the_jumps(name: str, tmp_path: Path) -> None:
    small = Choices(height=32, width=32, guidance=1.0 if name == "sd3" else None, kind="map")
    one = from_pipeline(build(name), small)
    pipe = with_two_times(build(name))
    two = from_pipeline(pipe, Choices(height=32, width=32, guidance=small.guidance))
    assert two.family.kind == "map"
    x, cond = draw_noise(one), one.encode(PROMPTS)
    assert_close(two.flow(x, 0.3, 0.3, cond), one.flow(x, 0.3, 0.3, cond), rtol=1e-4, atol=1e-4)
    assert (two.flow(x, 0.3, 0.9, cond) - one.flow(x, 0.3, 0.9, cond)).abs().max() > 1e-3


def test_a_published_kind_of_flow_map_adapter_loads(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(0)
    layers = {"time_text_embed.second_embedder.timestep_embedder.linear_1": (256, 32),
              "transformer_blocks.0.attn.to_q": (32, 32)}  # fmt: skip
    weights = {}
    for layer, (wide, out) in layers.items():
        weights[f"transformer.{layer}.lora_A.weight"] = torch.randn(4, wide, generator=rng)
        weights[f"transformer.{layer}.lora_B.weight"] = torch.randn(out, 4, generator=rng)
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    small = Choices(height=32, width=32)
    two = from_pipeline(with_two_times(build("flux-dev")), small)
    tuned = from_pipeline(with_two_times(build("flux-dev"), str(tmp_path)), small)
    x, cond = draw_noise(two, n=1), two.encode(["a cat"])
    assert (tuned.flow(x, 0.2, 0.7, cond) - two.flow(x, 0.2, 0.7, cond)).abs().max() > 1e-2
    save_file({k: w for k, w in weights.items() if "second" not in k}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="second time"):
        with_two_times(build("flux-dev"), str(tmp_path))


def test_errors_name_the_argument_and_the_cure(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="height=17 is no multiple of 2.*take 16"):
        from_pipeline(build("sd-tcd"), Choices(height=17))
    with pytest.raises(ValueError, match="heigth.*did you mean 'height'"):
        load(saved, CPU, heigth=16)
    with pytest.raises(ValueError, match="dtype='int4' is unknown"):
        load(saved, CPU, dtype="int4")
    with pytest.raises(ValueError, match="offload"):
        load(saved, CPU, offload="disk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype: for diffusers pipelines"):
        steer.load_model("emoji", dtype="bfloat16")
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    with pytest.raises(ValueError, match="KolorsPipeline.*is not known.*FluxPipeline.*30"):
        steer.load_model(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        steer.load_model(tmp_path)


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="someone/nothing.*cannot be fetched"):
        steer.load_model("someone/nothing-here")


def test_a_folder_never_names_code_to_run(saved: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "hostile"
    shutil.copytree(saved, folder)
    (folder / "evil.py").write_text("raise SystemExit('ran')\nclass StableDiffusionPipeline: pass")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["evil", "StableDiffusionPipeline"]}))
    with pytest.raises((ValueError, OSError, ImportError, AttributeError)):
        steer.load_model(folder)
    index["_class_name"] = ["evil", "StableDiffusionPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is not known"):
        steer.load_model(folder)


def test_another_family_takes_thirty_lines() -> None:
    diffusers = import_diffusers()

    class MyPipeline(diffusers.StableDiffusion3Pipeline):
        pass

    class MyFlow(LinearFlow):
        def velocity(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Any) -> Tensor:  # noqa: ANN401
            return self.network(x, cond["words"], cond["pooled"], 1000 * sigma, return_dict=False)[0]

    class MyFamily(Prompted):
        renoises, noise_scale, kind, guidance = False, 1.0, "velocity", 1.0

        def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
            self.pipe = pipe
            _, _, h, w = size_of(pipe, choices, pipe.transformer.config.sample_size)
            self.shape = (pipe.transformer.config.in_channels, h, w)
            self.path = steer.interpolants.Shifted(pipe.scheduler.config.shift)
            self.flow = MyFlow(pipe.transformer, self.path)

        def encode(self, prompts: list[str]) -> dict[str, Tensor]:
            words, _, pooled, _ = self.pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
            return {"words": words, "pooled": pooled}

        def times(self, steps: int) -> list[float]:
            return times_of(self.pipe.scheduler, self.path, steps)

    pipe = build("sd3")
    pipe.__class__ = MyPipeline
    with pytest.raises(ValueError, match="MyPipeline"):
        family_of("MyPipeline")
    register("MyPipeline", MyFamily)
    assert "MyPipeline" in known()
    mine, ours = from_pipeline(pipe), from_pipeline(build("sd3"), Choices(guidance=1.0))
    assert_close(drawn(mine), drawn(ours))


def test_native_maps_are_exported(tmp_path: Path) -> None:
    from steer.collecting import jumps
    from steer.models.exporting import FlowMapPipeline, export

    model = steer.load_model("emoji", "cpu")
    export(model, tmp_path)
    pipe = FlowMapPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    x0, cond = draw_noise(model), model.encode(PROMPTS)
    for steps in (1, 4):
        ours = model.decode(jumps(lambda x, s, t, _=None: model.flow(x, s, t, cond), x0, steps))
        assert_close(pipe(PROMPTS, steps, latents=x0, output_type="pt").images, ours, rtol=0, atol=1e-5)
    assert pipe("a red heart", generator=torch.Generator().manual_seed(0)).images[0].size == (64, 64)
    with pytest.raises(ValueError, match="is a diffusers pipeline"):
        export(held("sd-tcd"), tmp_path)
