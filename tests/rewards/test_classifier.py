"""Classes by a classifier: log-probabilities, names looked up, real pictures, weights in files."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

import rewards
from rewards.imagenet import PACKAGE, imagenet_classes
from rewards.towers import mend_torchvision
from rewards.vision import Look

COLOURS = ("red, scarlet", "green", "blue", "green blue")


class Means(nn.Module):
    """Logits: ten times the mean colours, and a learned fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.cat([10 * x.mean((2, 3)), self.last.expand(len(x), 1)], 1))


def colours() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_scores_are_log_probabilities() -> None:
    """Against the formula; over all classes they sum to one; a module in training mode is taken out of it."""
    x, module = colours(), Means()
    logits = torch.cat([10 * x.mean((2, 3)), torch.full((3, 1), 0.5)], 1)
    r = torch.stack([rewards.Classifier(i, module)(x, ["x"] * 3) for i in range(4)], 1)
    assert_close(r, logits - logits.exp().sum(1, keepdim=True).log())
    assert_close(r.exp().sum(1), torch.ones(3))
    assert not module.training and not r.requires_grad


def test_the_class_is_the_one_that_the_prompt_names() -> None:
    x, module = colours(), Means()
    reward = rewards.Classifier(model=module, classes=COLOURS)
    prompts = ["a Scarlet fox", "a fox (BLUE)", "a green-blue fox"]
    each = [rewards.Classifier(i, module)(x, ["x"] * 3)[row] for row, i in enumerate((0, 2, 3))]
    assert_close(reward(x, prompts), torch.stack(each))
    assert reward.places(["green then blue", "blue then green", "bluegreen red"]) == [1, 2, 0]
    named = rewards.Classifier("scarlet", module, classes=COLOURS)
    assert_close(named(x, ["x"] * 3), rewards.Classifier(0, module)(x, ["x"] * 3))


def test_gradients_reach_the_picture_s_own_row_alone() -> None:
    x = colours().double().requires_grad_(True)
    r = rewards.Classifier("red", Means(), classes=COLOURS)(x, ["x"] * 3)
    assert r.dtype == torch.float64
    (gradient,) = torch.autograd.grad(r[1], x)
    p = torch.cat([10 * x[1].mean((1, 2)), torch.tensor([0.5]).double()]).softmax(0)
    truth = (10 / 64 * (torch.eye(4).double()[0] - p)[:3]).view(3, 1, 1).expand(3, 8, 8)
    assert_close(gradient[1], truth.detach(), rtol=1e-4, atol=1e-6)
    assert gradient[[0, 2]].abs().sum() == 0


def test_the_look_is_used() -> None:
    """Colours doubled by a look of std 1/2."""
    x, look = colours(), Look(8, (0.0,) * 3, (0.5,) * 3)
    assert_close(
        rewards.Classifier(1, Means(), look=look)(x, ["x"] * 3), rewards.Classifier(1, Means())(2 * x, ["x"] * 3)
    )


class TestImageNet:
    """The network that comes in a package."""

    @pytest.fixture(autouse=True)
    def weights(self) -> None:
        pytest.importorskip(PACKAGE)

    def test_a_photograph_is_known(self) -> None:
        """Grace Hopper in her uniform, as matplotlib ships her: the class is the likeliest of the 1000."""
        cbook = pytest.importorskip("matplotlib.cbook")
        photo = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
        x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255
        scores = torch.stack([rewards.Classifier(i)(x, ["x"])[0] for i in (652, 1, 457, 834)])
        assert rewards.Classifier("military uniform").places(["x"]) == [652]
        assert scores.argmax() == 0 and scores[0] > torch.tensor(0.2).log()

    def test_names_are_looked_up(self) -> None:
        assert len(imagenet_classes()) == 1000
        reward = rewards.get("imagenet")
        assert isinstance(reward, rewards.Classifier)
        assert reward.places(["a goldfish in a bowl", "Siamese cat", "a giant panda", "tench"]) == [1, 284, 388, 0]
        with pytest.raises(ValueError, match=r"'crane' may be any of the classes \[134, 517\]; use a longer name"):
            reward.places(["a crane"])
        with pytest.raises(ValueError, match="the prompt 'a unicorn' names no class"):
            reward.places(["a unicorn"])
        with pytest.raises(ValueError, match="target='unicorn' is no class"):
            rewards.Classifier("unicorn").places(["x"])

    def test_a_gradient_step_raises_the_class(self) -> None:
        x, reward = colours().requires_grad_(True), rewards.Classifier("goldfish")
        r = reward(x, ["x"] * 3)
        (gradient,) = torch.autograd.grad(r.sum(), x)
        assert (reward(x + 0.1 * gradient / gradient.flatten(1).norm(dim=1).view(3, 1, 1, 1), ["x"] * 3) > r).all()


@pytest.mark.parametrize(
    ("model", "suffix"), [("torchvision/squeezenet1_1", ".pth"), ("timm/test_convnext", ".safetensors")]
)
def test_a_named_model_with_weights_in_a_file(model: str, suffix: str, tmp_path: Path) -> None:
    """Random weights, saved and loaded: the same log-probabilities as the library's own module with the same look."""
    mend_torchvision()
    import timm
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    name = model.split("/")[1]
    own = (timm if model.startswith("timm") else torchvision.models).__dict__
    module = (
        own["create_model"](name, num_classes=4) if "create_model" in own else own["get_model"](name, num_classes=4)
    )
    file = tmp_path / f"weights{suffix}"
    torch.save(module.state_dict(), file) if suffix == ".pth" else save_file(module.state_dict(), file)
    reward = rewards.Classifier("blue", model, str(file), COLOURS)
    assert rewards.missing(reward) is None
    r = reward(colours(), ["x"] * 3)
    cfg = getattr(
        module,
        "pretrained_cfg",
        {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    )
    look = Look(cfg["input_size"][-1], cfg["mean"], cfg["std"])
    assert_close(r, module.eval()(look(colours())).log_softmax(1)[:, 2].detach(), rtol=1e-4, atol=1e-5)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="are damaged or of another model"):
        dataclasses.replace(reward)(colours(), ["x"] * 3)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="lacks weights='.*'; name a file with the tensors of"):
        reward(colours(), ["x"] * 3)


def test_settings_that_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="model='resnet18' is unknown; known: 'efficientnet-lite0', 'torchvision/NAME'"
    ):
        rewards.Classifier(1, "resnet18")
    with pytest.raises(ValueError, match="model='timm/resnet18' needs weights=FILE"):
        rewards.Classifier(1, "timm/resnet18")
    with pytest.raises(ValueError, match="target='pink' is no class"):
        rewards.Classifier("pink", Means(), classes=COLOURS)
    (tmp_path / "w.pth").touch()
    for library in ("timm", "torchvision"):
        with pytest.raises(ValueError, match=f"model='{library}/nothing' is unknown to {library}"):
            rewards.Classifier(1, f"{library}/nothing", str(tmp_path / "w.pth"))(colours(), ["x"] * 3)
    with pytest.raises(ValueError, match=r"gives \[3, 4\], the class is at \[7, 7, 7\]"):
        rewards.Classifier(7, Means())(colours(), ["x"] * 3)
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # as Python marks a module that cannot be imported
    with pytest.raises(ModuleNotFoundError, match=f"reward 'imagenet' lacks the Python package {PACKAGE}"):
        rewards.Classifier(1)(colours(), ["x"] * 3)
