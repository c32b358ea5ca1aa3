"""The state of the controllers, and its plain forms: a JSON file, and numbers for a broadcast."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from maxent_grpo.controllers.feedback import EntropyState
from maxent_grpo.controllers.meta import MetaState, Moments
from maxent_grpo.controllers.settings import ControllerSettings, MetaSettings
from maxent_grpo.errors import UsageError
from maxent_grpo.files import replace_file

META_VERSION = 1

SETTING_KEYS = {"learning_rate": "lr", "tau_learning_rate": "tau_lr", "beta_learning_rate": "beta_lr"} | {
    name: name for name in (f.name for f in fields(MetaSettings)) if name not in ("lr", "tau_lr", "beta_lr")
}
"""Key of the state file → field of `MetaSettings`."""


def log_tau(tau: float) -> float | None:
    """ln τ, None at τ = 0."""
    return math.log(tau) if tau > 0 else None


@dataclass(frozen=True)
class ControllerState:
    """Everything that the controllers remember from step to step."""

    tau: float
    beta: float
    tau_log: float | None = None
    """What the τ controller integrates; derived from tau where not given."""
    entropy_ema: float | None = None
    """Nats; None until an entropy was measured."""
    meta: MetaState = field(default_factory=MetaState)
    entropy: EntropyState | None = None
    """None where the coefficient of the token entropy is constant."""

    def __post_init__(self) -> None:
        if self.tau_log is None:
            object.__setattr__(self, "tau_log", log_tau(self.tau))

    def moved(self, tau: float, beta: float, meta: MetaState) -> "ControllerState":
        """The state after a meta-update."""
        return replace(self, tau=tau, tau_log=log_tau(tau), beta=beta, meta=meta)


def to_json(state: ControllerState, meta: MetaSettings) -> dict[str, Any]:
    """The state file's content; a ``meta`` block only where the meta-controller is enabled."""
    plain: dict[str, Any] = {
        "beta": state.beta,
        "tau": state.tau,
        "tau_log": state.tau_log,
        "tau_entropy_ema": state.entropy_ema,
    }
    if state.entropy is not None:
        plain["entropy"] = asdict(state.entropy)
    if meta.enabled:
        controller = {key: getattr(meta, name) for key, name in SETTING_KEYS.items()}
        controller["last_tau_grad"] = state.meta.last_tau_grad
        controller["last_beta_grad"] = state.meta.last_beta_grad
        moments = {"tau": asdict(state.meta.tau_moments), "beta": asdict(state.meta.beta_moments)}
        plain["meta"] = {"version": META_VERSION, "controller": controller, "optimizer_state": moments}
    return plain


def from_json(
    plain: dict[str, Any], settings: ControllerSettings, source: str
) -> tuple[ControllerState, MetaSettings]:
    """The state, and the meta-controller's settings: those of ``plain`` if both sides have it enabled.

    Raises `UsageError` that starts with ``source`` and names the key.
    """
    tau = _number(plain, "tau", source, least=0.0)
    beta = _number(plain, "beta", source, least=0.0)
    state = ControllerState(
        tau, beta, _optional(plain, "tau_log", source), _optional(plain, "tau_entropy_ema", source)
    )
    if settings.entropy.enabled:
        state = replace(state, entropy=_entropy_from_json(plain, settings, source))
    try:
        settings.refuse_stuck(tau, beta)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    if not settings.meta.enabled or "meta" not in plain:
        return state, settings.meta
    memory, meta = _meta_from_json(_block(plain, "meta", source), f"{source}: meta")
    return replace(state, meta=memory), meta


def _entropy_from_json(plain: dict[str, Any], settings: ControllerSettings, source: str) -> EntropyState:
    """The saved state; the start where a run without the controller saved none."""
    if "entropy" not in plain:
        return EntropyState(settings.entropy.coef)
    block = _block(plain, "entropy", source)
    place = f"{source}: entropy"
    coef = _number(block, "coef", place, least=0.0)
    return EntropyState(coef, _optional(block, "entropy", place), _optional(block, "kl", place))


def _meta_from_json(block: dict[str, Any], source: str) -> tuple[MetaState, MetaSettings]:
    if block.get("version") != META_VERSION:
        raise UsageError(
            f"{source}: version is {block.get('version')!r}, not {META_VERSION}; delete the block"
        )
    controller = _block(block, "controller", source)
    missing = [key for key in SETTING_KEYS if key not in controller]
    if missing:
        raise UsageError(
            f"{source}: controller lacks {', '.join(missing)}; delete the meta block to start it afresh"
        )
    try:
        settings = MetaSettings(
            **{name: controller[key] for key, name in SETTING_KEYS.items()} | {"enabled": True}
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source}: controller: {error}") from None
    moments = _block(block, "optimizer_state", source)
    memory = MetaState(
        _number(controller, "last_tau_grad", source),
        _number(controller, "last_beta_grad", source),
        _moments(_block(moments, "tau", source), source),
        _moments(_block(moments, "beta", source), source),
    )
    return memory, settings


def _moments(block: dict[str, Any], source: str) -> Moments:
    first, second = _number(block, "first", source), _number(block, "second", source, least=0.0)
    return Moments(first, second, int(_number(block, "count", source, least=0.0)))


def _block(plain: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    value = plain.get(key)
    if not isinstance(value, dict):
        raise UsageError(
            f"{source}: {key} must be an object; restore the file from a checkpoint, or delete it"
        )
    return value


def _number(plain: dict[str, Any], key: str, source: str, least: float = -math.inf) -> float:
    value = plain.get(key)
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not usable or not math.isfinite(value) or value < least:  # type: ignore[arg-type, operator]
        wanted = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
        raise UsageError(
            f"{source}: {key} is {value!r}, not {wanted}; restore the file from a checkpoint, or delete it"
        )
    return float(value)  # type: ignore[arg-type]


def _optional(plain: dict[str, Any], key: str, source: str) -> float | None:
    return None if plain.get(key) is None else _number(plain, key, source)


def to_numbers(state: ControllerState) -> list[float]:
    """The state in a fixed order, each value as two numbers: 1 and the value, or 0 and 0 for None."""
    meta, entropy = state.meta, state.entropy
    values: list[float | None] = [state.tau, state.beta, state.tau_log, state.entropy_ema]
    values += [
        meta.last_tau_grad,
        meta.last_beta_grad,
        *astuple(meta.tau_moments),
        *astuple(meta.beta_moments),
    ]
    values += (None, None, None) if entropy is None else astuple(entropy)
    return [number for value in values for number in ((0.0, 0.0) if value is None else (1.0, float(value)))]


def from_numbers(numbers: Sequence[float]) -> ControllerState:
    """The inverse of `to_numbers`. Raises ``ValueError`` on another length."""
    values = [
        value if is_there else None for is_there, value in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    tau, beta, tau_log, ema, tau_grad, beta_grad, t1, t2, tn, b1, b2, bn, coef, entropy, kl = values
    meta = MetaState(tau_grad, beta_grad, Moments(t1, t2, int(tn)), Moments(b1, b2, int(bn)))  # type: ignore[arg-type]
    last = None if coef is None else EntropyState(coef, entropy, kl)
    return ControllerState(tau, beta, tau_log, ema, meta, last)  # type: ignore[arg-type]


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace ``path`` by ``state`` as JSON, all or nothing: a reader sees the old file or the new one.

    Raises ``ValueError`` if the state holds a number that JSON has no word for (NaN, infinity).
    """
    replace_file(path, json.dumps(state, indent=2, allow_nan=False) + "\n")


def read_state(path: Path) -> dict[str, Any]:
    """The state that `write_state` left at ``path``. Raises `UsageError` if it is missing or broken."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no controller state there; name an existing file or checkpoint") from None
    except ValueError as error:  # JSON and UTF-8 decoding alike
        raise UsageError(f"{path}: not JSON ({error}); restore it from a checkpoint, or delete it") from None
    if not isinstance(state, dict):
        raise UsageError(
            f"{path}: holds a {type(state).__name__}, not an object; restore it from a checkpoint"
        )
    return state
