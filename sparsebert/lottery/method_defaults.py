"""Settings of a run that its method decides, now and in earlier versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.training.distillation import Distillation

# Method -> option -> its default in earlier versions. All methods then had the distillation of
# ``Distillation()`` and no warm-up, and ramps of the density spanned the whole run without one.
_FORMER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cap-structured": {"instance_weight": 0.1, "label_weight": 10.0}
}


def with_defaults_of_method(config: RunConfig) -> RunConfig:
    """Return the configuration with the method's warm-up if it sets none."""
    training, ratio = config.training, config.method.warmup_ratio
    if ratio is None or training.warmup_steps is not None or training.warmup_ratio is not None:
        return config
    return replace(config, training=replace(training, warmup_ratio=ratio), default_warmup=ratio)


def as_begun(config: RunConfig, folder: RunFolder, say: Callable[[str], object]) -> RunConfig:
    """Return the configuration with the former defaults of a run that an earlier version began.

    Where the run in the folder has a former default and the configuration the present one, the run keeps the
    former, so that the same command resumes it. Dense runs without a warm-up thus serve methods with one.

    Args:
        config: Configuration with the defaults of its method.
        folder: Folder of a run.
        say: Receives a line that names the former defaults.
    """
    stored, method = folder.config(), config.method
    if stored.get("method") != method.name:
        return config
    training, stored_training = config.training, stored.get("training", {})
    kept: dict[str, Any] = {}
    defaults = {each.name: each.default for each in fields(method)}
    options = {
        name: former
        for name, former in _FORMER_OPTIONS.get(method.name, {}).items()
        if stored.get("options", {}).get(name) == former and getattr(method, name) == defaults[name]
    }
    if options:
        config, kept = replace(config, method=replace(method, **options)), dict(options)
    if config.distillation is not None and stored.get("distillation"):
        former, present = Distillation(), method.distillation
        taught = {
            name: getattr(former, name)
            for name in ("weight", "temperature")
            if stored["distillation"].get(name) == getattr(former, name)
            and getattr(config.distillation, name) == getattr(present, name) != getattr(former, name)
        }
        config = replace(config, distillation=replace(config.distillation, **taught))
        kept |= {f"distill_{name}": value for name, value in taught.items()}
    without_warmup = stored_training.get("warmup_ratio") is None and not stored_training.get("warmup_steps")
    if without_warmup and training.warmup_ratio == config.default_warmup is not None:
        config = replace(config, training=replace(training, warmup_ratio=None))
        kept["warmup_steps"] = 0
    if "density_warmup" not in stored and method.density_warmup(config.training):
        config = replace(config, constant_phases=False)
        kept |= {"initial_warmup": 0, "final_warmup": 0}
    if kept:
        values = ", ".join(f"{name} {value:g}" for name, value in kept.items())
        say(f"{folder.path} keeps the defaults with which it began: {values}")
    return config
