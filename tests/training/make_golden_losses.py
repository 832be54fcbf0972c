"""Makes `golden/losses.json`: losses, gradients and metrics that TRL's own trainers compute, in float64.

The trainers' loss methods run as they are, on a stand-in for the trainer and a model that returns given
log-probabilities. Run in the repository's root, where TRL 1.16 and PyTorch are installed:

    python -m tests.training.make_golden_losses
"""

import collections
import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "kl", "nll_loss",
)  # fmt: skip
ROWS, WIDTH, PROMPT = 5, 7, 2
DPO_NAMES = (
    "sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
    "discopop", "sft", "sigmoid_norm",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings as in `LossSettings`; what is not given here has its default there, too."""

    loss_type: tuple[str, ...]
    beta: float = 0.3
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return {"loss_type": self.loss_type, "beta": self.beta, **dict(self.options)}


CASES = [
    *(Case((name,)) for name in DPO_NAMES),
    *(Case((name,), beta=2.0) for name in ("sigmoid", "ipo", "discopop", "apo_down")),
    *(Case((name,), options=(("label_smoothing", 0.1),)) for name in ("robust", "exo_pair", "aot", "aot_unpaired")),
    Case(("sigmoid",), options=(("label_smoothing", 0.1),)),
    Case(("exo_pair",), options=(("label_smoothing", 1e-3),)),
    Case(("discopop",), options=(("discopop_tau", 0.5),)),
    *(Case((name,), options=(("ld_alpha", 0.4),)) for name in ("sigmoid", "ipo", "aot", "sigmoid_norm", "apo_zero")),
    Case(("sigmoid", "bco_pair", "sft"), options=(("loss_weights", (0.8, 0.2, 1.0)),)),
    Case(("ipo", "sft")),
    Case(("simpo",), beta=2.0),
    Case(("simpo",), beta=2.0, options=(("label_smoothing", 0.2), ("simpo_gamma", 1.5))),
    Case(("orpo",)),
    Case(("kto",)),
    Case(("kto",), beta=1.5, options=(("desirable_weight", 1.33), ("undesirable_weight", 0.7))),
]


def make_inputs() -> dict[str, np.ndarray]:
    """Log-probabilities of tokens, [2, R, W], 0 beyond the end of an answer; its tokens; and which are desirable."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, WIDTH + 1, (2, ROWS))
    inside = np.arange(WIDTH) < lengths[..., None]
    draw = lambda: np.where(inside, -rng.exponential(1.5, inside.shape), 0.0)  # noqa: E731
    policy = draw()
    reference = np.where(inside, policy + rng.normal(0, 0.7, inside.shape), 0.0)
    return {
        "lengths": lengths,
        "policy": policy,
        "reference": np.minimum(reference, 0),
        "desirable": np.array([True, False, False, True, True]),
    }


def trl_loss(case: Case, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Loss, gradient with respect to the policy's log-probabilities [2, R, W], and the trainer's metrics."""
    import torch

    policy = torch.tensor(inputs["policy"], requires_grad=True)
    reference = torch.tensor(inputs["reference"])
    lengths = torch.tensor(inputs["lengths"])
    by_name = {"kto": _kto, "simpo": _simpo, "orpo": _orpo}
    compute = by_name.get(case.loss_type[0], _dpo)
    if case.loss_type == ("sigmoid",) and "label_smoothing" in case.settings:
        compute = _smoothed
    loss, metrics = compute(case.settings, policy, reference, lengths, inputs["desirable"])
    loss.backward()
    assert policy.grad is not None
    inside = np.arange(WIDTH) < inputs["lengths"][..., None]  # the trainers rely on zeros beyond the ends
    return {
        "loss": loss.item(),
        "gradient": np.where(inside, policy.grad.numpy(), 0.0).tolist(),
        "metrics": {name: metrics[name] for name in METRICS if name in metrics},
    }


def _trainer(settings: dict[str, Any], reference_model, **more: Any) -> tuple[Any, dict[str, dict[str, list]]]:
    import torch

    metrics = {"train": collections.defaultdict(list)}
    same = lambda x: x  # noqa: E731
    model = torch.nn.Module()  # a real one: with PEFT installed, the trainers look whether an adapter is inside
    model.is_gradient_checkpointing = False
    trainer = SimpleNamespace(
        model=model,
        ref_model=reference_model,
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        args=SimpleNamespace(discopop_tau=settings.get("discopop_tau", 0.05), gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        beta=settings["beta"],
        label_smoothing=settings.get("label_smoothing", 0.0),
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        **more,
    )
    return trainer, metrics


def _answers(logps_BW, lengths_B, prefix: str = "") -> dict[str, Any]:
    """A batch of answers after a prompt, as the trainers' collators make it; the ids are only counted."""
    import torch

    B, W = logps_BW.shape
    mask = torch.nn.functional.pad((torch.arange(W) < lengths_B[:, None]).long(), (PROMPT, 0))
    attention = mask.clone()
    attention[:, :PROMPT] = 1
    return {
        f"{prefix}input_ids": torch.ones(B, PROMPT + W, dtype=torch.long),
        f"{prefix}attention_mask": attention,
        f"{prefix}completion_mask": mask,
    }


def _model(*parts):
    """A model that returns these log-probabilities [B, W] one after the other, whatever it is asked."""
    import torch

    waiting = [torch.nn.functional.pad(part, (PROMPT - 1, 0)) for part in parts]

    def model(**_):
        logps = waiting.pop(0)
        none = torch.zeros_like(logps)
        return SimpleNamespace(log_probs=logps, entropy=none, mean_logits=none, is_top1=none.bool())

    return model


def _dpo(settings, policy, reference, lengths, desirable):
    from trl import DPOTrainer

    flat = lambda x: x.reshape(2 * ROWS, *x.shape[2:])  # noqa: E731
    trainer, metrics = _trainer(
        settings,
        _model(flat(reference)),
        loss_types=list(settings["loss_type"]),
        loss_weights=settings.get("loss_weights", [1.0] * len(settings["loss_type"])),
        ld_alpha=settings.get("ld_alpha"),
    )
    batch = _answers(flat(policy), flat(lengths))
    loss = DPOTrainer._compute_loss(trainer, _model(flat(policy)), batch, False)
    if settings["loss_type"] == ("sft",):
        return loss, {}  # here no reference is computed for it, so rewards are others
    return loss, {name: values[0] for name, values in metrics["train"].items() if values}


def _kto(settings, policy, reference, lengths, desirable):
    import torch
    from trl import KTOTrainer

    trainer, metrics = _trainer(
        settings,
        _model(reference[1], reference[0]),
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=settings.get("desirable_weight", 1.0),
        undesirable_weight=settings.get("undesirable_weight", 1.0),
    )
    trainer._compute_kl_logps = functools.partial(KTOTrainer._compute_kl_logps, trainer)
    batch = _answers(policy[0], lengths[0]) | _answers(policy[1], lengths[1], "KL_")
    batch["label"] = torch.tensor(desirable)
    loss = KTOTrainer._compute_loss(trainer, _model(policy[1], policy[0]), batch, False)
    return loss, {name: values[0] for name, values in metrics["train"].items() if values}


def _simpo(settings, policy, reference, lengths, desirable):
    from trl.experimental.cpo import CPOTrainer

    gamma = settings.get("simpo_gamma", 0.5)
    trainer, _ = _trainer(settings, None, loss_type="simpo", alpha=0.0, simpo_gamma=gamma)
    losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, *(policy.sum(-1) / lengths))
    return losses.mean(), _means({"rewards/chosen": chosen, "rewards/rejected": rejected})


def _smoothed(settings, policy, reference, lengths, desirable):
    """DPOTrainer's `sigmoid` takes no smoothing; CPOTrainer's does, of log-probabilities, here of log-ratios."""
    from trl.experimental.cpo import CPOTrainer

    trainer, _ = _trainer(settings, None, loss_type="sigmoid", alpha=0.0)
    losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, *(policy - reference).sum(-1))
    return losses.mean(), _means({"rewards/chosen": chosen, "rewards/rejected": rejected})


def _orpo(settings, policy, reference, lengths, desirable):
    """The likelihood is added here over the answers' tokens, as in the paper; the trainer's has the prompts', too."""
    from trl.experimental.orpo import ORPOTrainer

    trainer, _ = _trainer(settings, None)
    gains, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(trainer, *(policy.sum(-1) / lengths))
    likelihood = -policy[0].sum() / lengths[0].sum()
    return likelihood - gains.mean(), _means(
        {"rewards/chosen": chosen, "rewards/rejected": rejected, "nll_loss": likelihood}
    )


def _means(metrics):
    return {name: value.mean().item() for name, value in metrics.items()}


if __name__ == "__main__":
    inputs = make_inputs()
    cases = [{"settings": case.settings, **trl_loss(case, inputs)} for case in CASES]
    GOLDEN.parent.mkdir(exist_ok=True)
    rounded = lambda x: json.loads(json.dumps(x), parse_float=lambda number: round(float(number), 9))  # noqa: E731
    arrays = {name: array.tolist() for name, array in inputs.items()}
    GOLDEN.write_text(json.dumps({"inputs": arrays, "cases": rounded(cases)}, indent=None) + "\n")
