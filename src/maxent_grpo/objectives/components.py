"""The components that objectives are made of, and the settings that give them their numbers.

`OBJECTIVE` is the tree of all of them. A component's line names its class and, beside each argument, the setting that
gives it: recipes, command lines, validation, help and documentation follow from these records. A new component is a
function or class in the module of its kind, and a line here. Imports no torch.
"""

from collections.abc import Iterator
from typing import Any, Literal

from maxent_grpo.objectives.composition import Choice, Component, Every, Number, Part, Settings
from maxent_grpo.settings import Setting

TRAINED, MAXENT, DIVERGENCES = "What is trained", "MaxEnt over the group", "Divergences and corrections"
INGREDIENTS = "Advantages, surrogates, regularisers"
INFO_SEED, REPLAY = "InfoSeed", "Verified replay"


def own(name: str, kind: Any, default: Any, text: str, topic: str = INGREDIENTS, **facts: Any) -> Number:
    """A number whose setting, where unset, takes the objective's own value: ``default`` unless that says another."""
    key = facts.pop("key", name)
    return Number(
        name, default, Setting(key, kind | None, None, text, topic, unset="the objective's own", **facts)
    )


def given(name: str, kind: Any, default: Any, text: str, topic: str, **facts: Any) -> Number:
    """A number that the recipe's setting gives in any case."""
    return Number(name, default, Setting(name, kind, default, text, topic, **facts))


def native(name: str, kind: Any, default: Any, text: str, **facts: Any) -> Number:
    """An `own` number that TRL's trainer does not read."""
    return own(name, kind, default, text, route="native", **facts)


def no_risk(value_of: Settings) -> Iterator[str]:
    if value_of("risk_sensitivity") == 0:
        yield "risk_sensitivity: 0 is the limit of plain advantages; use advantage=centered"


def overlong_without_room(value_of: Settings) -> Iterator[str]:
    buffer, longest = value_of("overlong_buffer"), value_of("max_completion_length")
    if buffer and longest is None:
        yield "overlong_buffer: counts back from max_completion_length; set it"
    elif buffer and buffer > longest:
        yield f"overlong_buffer: {buffer} tokens do not fit into max_completion_length={longest}"


def low_cap(value_of: Settings) -> Iterator[str]:
    cap = value_of("epsilon") if value_of("epsilon_high") is None else value_of("epsilon_high")
    if cap <= 1.0:
        yield f"epsilon_high: under cispo it caps the ratio itself, and {cap} is not above 1; use 4 to 5"


def ratios_of_completions(value_of: Settings) -> Iterator[str]:
    corrected = value_of("tis_cap") is not None
    for name in ("importance_sampling_level", *(["tis_level"] if corrected else [])):
        if value_of(name) != "token":
            yield f"{name}: vespo weighs whole completions by itself; use token"
    if value_of("tis_low") is not None:
        yield "tis_low: vespo multiplies the weights of a completion's tokens, so none can be masked; unset it"


def tokens_of_one_mean(value_of: Settings) -> Iterator[str]:
    if value_of("importance_sampling_level") != "token":
        yield "importance_sampling_level: gmpo makes one ratio of a completion's tokens by itself; use token"
    for number in (TOP_ENTROPY, CLIP_COV, TIS_LOW):
        if number.is_on(value_of):
            yield f"{number.name}: gmpo has one loss for a completion, of which no token can be left out; unset it"


def masks_nothing(value_of: Settings) -> Iterator[str]:
    low, cap = value_of("tis_low"), value_of("tis_cap")
    if low is not None and cap is None:
        yield "tis_low: bounds importance weights from below, and there are none; set tis_cap (5 is usual) or unset it"
    elif low is not None and low >= cap:
        yield f"tis_low: {low} must be below tis_cap={cap}"


def empty_range(value_of: Settings) -> Iterator[str]:
    low, high = value_of("clip_cov_low"), value_of("clip_cov_high")
    if low >= high:
        yield f"clip_cov_low: {low} must be below clip_cov_high={high}"


def best_of_itself(value_of: Settings) -> Iterator[str]:
    if value_of("max_k_baseline") == "within" and value_of("max_k") < 2:
        yield "max_k: 1 leaves no other completion in a set to compare with; use 2 or more, or max_k_baseline=outside"


def share_of_nothing(value_of: Settings) -> Iterator[str]:
    if value_of("maxent_tilted_utility") == "dr_grpo" and value_of("max_completion_length") is None:
        yield "maxent_tilted_utility: dr_grpo divides by max_completion_length; set it"


# fmt: off
OWN_SCALE = frozenset({"own scale"})
ADVANTAGES = {
    "centered": Component("advantages:dr_grpo"),
    "rloo": Component("advantages:rloo"),
    "maxrl": Component("advantages:maxrl", traits=OWN_SCALE),
    "pass_at_k": Component("advantages:PassAtK", {"k": native("pass_k", int, 4,
        "k of the pass_at_k advantage, at most num_generations; unset: the objective's own, 4.", ge=1,
    )}, traits=OWN_SCALE),
    "max_at_k": Component("advantages:MaxAtK", {
        "k": native("max_k", int, 4,
            "k of the max_at_k advantage, below num_generations (within: at most that); unset: the objective's own, 4.",
            ge=1),
        "within": Choice(native("max_k_baseline", str, "outside",
            "What the best of k is compared with: the best of k without the completion (outside), or of the same k "
            "without it (within: PKPO's loo-1); unset: the objective's own, outside."),
            {"outside": False, "within": True}),
    }, traits=OWN_SCALE, refuses=best_of_itself),
    "risk_sensitive": Component("advantages:RiskSensitive", {"sensitivity": native("risk_sensitivity", float, 2.0,
        "β of the risk_sensitive advantage: > 0 seeks risk; unset: the objective's own, 2.",
    )}, traits=OWN_SCALE, refuses=no_risk),
}
SCALES = {
    "group": Component("advantages:over_group_std"),
    "batch": Component("advantages:over_batch_std"),
    "none": Component("advantages:unscaled"),
}
ADVANTAGE = Choice(native("advantage", str, "centered",
    "Advantage of a completion in its group: centered, rloo, maxrl, pass_at_k, max_at_k or risk_sensitive; unset: the "
    "objective's own."), ADVANTAGES)
GROUP_ADVANTAGES = Component("advantages:GroupAdvantages", {
    "kind": ADVANTAGE,
    "scale": Choice(own("scale_rewards", str | bool, "group",
        "Divide advantages by the standard deviation of the group (group, true), of the batch (batch), or not at all "
        "(none, false); unset: the objective's own.", TRAINED), SCALES),
    "positive_only": native("positive_only", bool, False,
        "Drop negative advantages (a control); unset: the objective's own, false."),
})

# Shaping of utilities, in the order in which it is done.
LONGEST = Number("max_completion_length", None)
UNLIKELINESS = native("unlikeliness_coef", float, 0.0,
    "β_rank of the unlikeliness reward, 0 to 1; 0: off; unset: the objective's own.", ge=0, le=1)
ENTROPY_BONUS = native("entropy_bonus_coef", float, 0.0,
    "Utility bonus for completions of high token entropy within their group, in batch standard deviations; unset: "
    "the objective's own.", ge=0, aliases=("policy_entropy_bonus_coef",))
OVERLONG = native("overlong_buffer", int, 0,
    "Soft overlong punishment (DAPO): tokens before max_completion_length over which it grows; 0: off.", ge=0)
KL_IN_REWARD = given("kl_in_reward", bool, False,
    "Subtract beta times the KL to the reference, summed over a completion's tokens, from its utility instead of "
    "adding it to a GRPO loss.", DIVERGENCES, route="native")
MODE_ENTROPY = own("mode_entropy", Literal["none", "group", "leave_one_out", "history"], "none",
    "τ rewards rare right answers of a group: by the surprisal of their share of its right completions (group), of the "
    "others (leave_one_out), or of those and earlier steps (history); none: off; unset: as the objective says.",
    MAXENT, key="maxent_mode_entropy", route="native")
GAPO = native("gapo", str, "none",
    "Right completions earn 1 less how much their answer's share exceeds an even one; wrong ones 0 and right ones on "
    "the same scale (unit), or -1 (paper); none: off; unset: the objective's own.")
POLY_EPO = native("poly_epo_size", int, 0,
    "Completions in the sets that Poly-EPO rewards for right and different answers, at most num_generations; 4 is "
    "published; 0: off; unset: the objective's own.", ge=0)
SHAPING = Every((
    Component("mode_credit:GAPO", {
        "unit": Choice(GAPO, {"none": False, "unit": True, "paper": False}),
    }, on=GAPO),
    Component("mode_credit:PolyEPO", {"size": POLY_EPO}, on=POLY_EPO),
    Component("shaping:ModeEntropy", {
        "estimator": Choice(MODE_ENTROPY, {name: name for name in ("none", "group", "leave_one_out", "history")}),
    }, on=MODE_ENTROPY),
    Component("shaping:Unlikeliness", {"coefficient": UNLIKELINESS}, on=UNLIKELINESS),
    Component("shaping:SoftOverlong", {
        "buffer": OVERLONG,
        "penalty": native("overlong_penalty", float, 1.0,
            "Utility that a completion at max_completion_length loses to the soft overlong punishment; unset: 1.",
            ge=0),
        "max_length": LONGEST,
    }, on=OVERLONG, refuses=overlong_without_room),
    Component("shaping:EntropyBonus", {"coefficient": ENTROPY_BONUS}, on=ENTROPY_BONUS),
    Component("shaping:KLInReward", on=KL_IN_REWARD),
))

# Changes of the advantages by which right answer it is, in the order in which they are made.
UCPO = native("ucpo_coef", float, 0.0,
    "τ of UCPO, 0 to 1: the part of the right completions' advantages that is shared by inverse likelihood; 0.2 is "
    "published; 0: off; unset: the objective's own.", ge=0, le=1)
SEMANTIC_MAXENT = native("semantic_maxent_coef", float, 0.0,
    "η of Semantic MaxEnt: advantage for answers that are rare in all that was found of the prompt; 0.1 is published; "
    "0: off; unset: the objective's own.", ge=0)
PCMD = native("pcmd_coef", float, 0.0,
    "λ of the PCMD advantage: right completions whose answer fewer of the others give earn more; 0: off; unset: the "
    "objective's own.", ge=0)
SETPO = native("setpo_coef", float, 0.0,
    "λ of SetPO: advantage for what a group's diversity loses without a completion; 0: off; unset: the objective's "
    "own.", ge=0)
CREDIT = Every((
    Component("mode_credit:UCPO", {
        "coefficient": UCPO,
        "per_token": Choice(native("ucpo_likelihood", str, "sequence",
            "Likelihood that UCPO inverts: of the completion (sequence), or its mean per token (token: the authors' "
            "code); unset: the objective's own, sequence."), {"sequence": False, "token": True}),
    }, on=UCPO),
    Component("mode_credit:SemanticMaxEnt", {
        "coefficient": SEMANTIC_MAXENT,
        "cap": native("semantic_maxent_cap", float, 5.0, "κ of Semantic MaxEnt, in nats; unset: 5.", gt=0),
        "is_open": Choice(native("semantic_maxent_support", str, "open",
            "Answers of Semantic MaxEnt's estimate: those found, and a place for unseen ones (open), or those found "
            "and the group's (closed); unset: the objective's own, open."), {"open": True, "closed": False}),
    }, on=SEMANTIC_MAXENT),
    Component("mode_credit:PCMD", {"coefficient": PCMD}, on=PCMD),
    Component("mode_credit:SetPO", {
        "coefficient": SETPO,
        "kernel": native("setpo_kernel", str, "answer",
            "Similarity of SetPO: answer (1 for the same right answer), or module:NAME, a function of a Batch to "
            "[P, G, G] in [0, 1]; unset: answer."),
    }, on=SETPO),
))

# Losses of single tokens. Of the reductions, the last three are TRL's names for a surrogate and what goes with it.
REDUCTION = Choice(own("loss_type", str, "grpo",
    "Denominator of the token losses: grpo, bnpo, dapo, dr_grpo, luspo, or cispo, sapo, vespo, which name a surrogate "
    "too; unset: the objective's own (TRL's dapo where none is named).", TRAINED, aliases=("grpo_loss_type",)), {
    "grpo": Component("reduce:sequence_mean"),
    "bnpo": Component("reduce:token_mean"),
    "dapo": Component("reduce:token_mean"),
    "dr_grpo": Component("reduce:fixed_length"),
    "luspo": Component("reduce:sequence_sum"),
    "cispo": Component("reduce:token_mean"),
    "sapo": Component("reduce:sequence_mean"),
    "vespo": Component("reduce:token_mean"),
})
EPSILON = own("epsilon", float, 0.2,
    "Lower clip range of the probability ratio (gmpo: of its logarithm); unset: the objective's own (TRL's 0.2).",
    TRAINED, ge=0,
    aliases=("clip_range",))
EPSILON_HIGH = own("epsilon_high", float, None,
    "Upper clip range of the probability ratio; unset: the objective's own, else equal to epsilon.", TRAINED, ge=0,
    aliases=("clip_range_high",))
SURROGATES = {
    "clip": Component("surrogates:Clip", {
        "low": EPSILON,
        "high": EPSILON_HIGH,
        "delta": own("delta", float, None,
            "Cap on the probability ratio for negative advantages (dual clip), above 1 + epsilon; unset: none.",
            TRAINED),
    }),
    "unclipped": Component("surrogates:Unclipped"),
    "cispo": Component("surrogates:CISPO", {"cap": EPSILON_HIGH}, refuses=low_cap),
    "sapo": Component("surrogates:SAPO", {
        "temperature_pos": Number("sapo_temperature_pos", 1.0),
        "temperature_neg": Number("sapo_temperature_neg", 1.05),
    }),
    "vespo": Component("surrogates:VESPO", {
        "k_pos": Number("vespo_k_pos", 2.0),
        "lambda_pos": Number("vespo_lambda_pos", 3.0),
        "k_neg": Number("vespo_k_neg", 3.0),
        "lambda_neg": Number("vespo_lambda_neg", 2.0),
    }, refuses=ratios_of_completions),
    "gmpo": Component("surrogates:GMPO", {"low": EPSILON, "high": EPSILON_HIGH}, refuses=tokens_of_one_mean),
}


def surrogate_of_loss_type(value_of: Settings) -> str:
    """The surrogate that ``loss_type`` names, as in TRL; else ``clip``."""
    loss_type: str = value_of("loss_type")
    return loss_type if loss_type in SURROGATES else "clip"


SURROGATE = Choice(native("surrogate", str, None,
    "Loss of the probability ratio: clip, unclipped, cispo, sapo, vespo or gmpo; unset: what loss_type or the "
    "objective says."),
    SURROGATES, own="surrogates:own_surrogate", implied=surrogate_of_loss_type)
OFF_POLICY = Number("off_policy_mask_threshold", None)
TOP_ENTROPY = own("top_entropy_quantile", float, 1.0,
    "Share of a group's tokens, those of highest entropy, that keep their policy gradient; unset: the objective's own, "
    "1.", gt=0, le=1)
CLIP_COV = native("clip_cov_fraction", float, 0.0,
    "Clip-Cov: share of tokens that lose their gradient for a high covariance; 0: off.", ge=0, lt=1)
KL_COV = native("kl_cov_fraction", float, 0.0,
    "KL-Cov: share of tokens, of highest covariance, that a KL holds; 0: off.", ge=0, lt=1)
TIS_CAP = given("tis_cap", float | None, None,
    "Cap of the truncated importance weights learner / sampler; 0: no correction; unset: 2 where vLLM samples and the "
    "loss is one of single tokens, else none.", DIVERGENCES, ge=0, route="native", unset="2 where vLLM samples")
TIS_LEVEL = given("tis_level", Literal["token", "sequence"], "token",
    "What these importance weights are of: each token, or each completion.", DIVERGENCES, route="native")
TIS_LOW = given("tis_low", float | None, None,
    "IcePop: least importance weight; tokens below it, and above tis_cap, lose their gradient instead of being "
    "truncated (0.5 with tis_cap 5 is usual); unset: truncation.", DIVERGENCES, ge=0, route="native")
TOKENS: dict[str, Part] = {
    "surrogate": SURROGATE,
    "ratio": Choice(own("importance_sampling_level", str, "token",
        "Ratio per token, per sequence (GSPO), or sequence_token (GSPO-token); unset: the objective's own (TRL's "
        "token).", TRAINED), {
        "token": Component("surrogates:token_ratio"),
        "sequence": Component("surrogates:sequence_ratio"),
        "sequence_token": Component("surrogates:sequence_token_ratio"),
    }),
    "selection": Every((
        Component("selection:OffPolicyMask", {"threshold": OFF_POLICY}, on=OFF_POLICY),
        Component("selection:TopEntropy", {"share": TOP_ENTROPY}, on=TOP_ENTROPY),
        Component("selection:ClipCov", {
            "share": CLIP_COV,
            "low": native("clip_cov_low", float, 1.0, "Least covariance that Clip-Cov drops; unset: 1."),
            "high": native("clip_cov_high", float, 5.0, "Largest covariance that Clip-Cov drops; unset: 5."),
        }, on=CLIP_COV, refuses=empty_range),
    )),
    "correction": Component("surrogates:TruncatedImportance", {
        "cap": TIS_CAP,
        "ratios": Choice(TIS_LEVEL, {
            "token": Component("surrogates:token_importance"),
            "sequence": Component("surrogates:sequence_importance"),
        }),
        "low": TIS_LOW,
    }, on=TIS_CAP, refuses=masks_nothing),
}
SEED_GRPO = Component("semantic:SeedGRPO", {
    "alpha": own("seed_grpo_alpha", float, 0.0417, "α of SEED-GRPO, ≥ 0; unset: 0.0417.", ge=0),
    "normalize_by_max_entropy": own("seed_grpo_alpha_normalize_by_max_entropy", bool, True,
        "Divide α by ln num_generations, the largest semantic entropy; unset: true."),
    "length_normalize_logprobs": own("seed_grpo_length_normalize_logprobs", bool, True,
        "Weigh completions in the semantic entropy by their log-prob per token; unset: true."),
}, on=own("seed_grpo_enabled", bool, False,
    "Scale advantages by 1 / (1 + α·semantic entropy of the answers); unset: the objective's own."))

# Weights over the group, and the losses that learn from them.
REF_PER_TOKEN = own("maxent_length_normalize_ref", bool, False,
    "Divide the reference's sequence log-prob by its length before it enters the weights; unset: false, which kept "
    "most diversity where it was measured.", MAXENT)
TILT = Component("weights:Tilt", {
    "by_length_share": Choice(own("maxent_tilted_utility", Literal["length_free", "dr_grpo"], "length_free",
        "Utility behind tilted weights: the advantage alone, or times its length over max_completion_length; unset: as "
        "the objective says.", MAXENT), {"length_free": False, "dr_grpo": True}),
    "max_length": LONGEST,
    "length_normalize_ref": REF_PER_TOKEN,
    "mode_adaptive": own("maxent_tau_mode_adaptive", bool, False,
        "Tilted weights: divide τ by ln(1 + right answers of the prompt); unset: false.", MAXENT),
}, refuses=share_of_nothing)
CLOSED_FORM = Component("weights:ClosedForm", {
    "q_temperature": given("maxent_q_temperature", float, 1.0,
        "Temperature of the target q = softmax(utility / temperature) within a group, > 0.", MAXENT, gt=0),
    "q_epsilon": given("maxent_q_epsilon", float, 1e-6,
        "Least probability of a completion under q, so that log q stays finite; below 1 / num_generations.",
        MAXENT, gt=0),
    "denominator": own("maxent_weight_denominator", Literal["tau_plus_beta", "tau"], "tau_plus_beta",
        "Denominator of the closed-form weights: tau_plus_beta penalises KL to the reference, tau rewards the "
        "reference's log-prob; unset: tau_plus_beta.", MAXENT),
    "length_normalize_ref": REF_PER_TOKEN,
})
SKIP = Number("skip_zero_spread_groups", True)
WEIGHTS, TOKEN_LOSS = frozenset({"weights"}), frozenset({"tokens"})
POLICY_LOSS = Choice(own("policy_loss", Literal["listwise", "likelihood", "tilted"], "clip",
    "How the weights train the policy: cross-entropy to its within-group softmax, weighted likelihood, or a tilted Dr. "
    "GRPO surrogate; unset: as the objective says.", MAXENT, key="maxent_loss",
    choices=("listwise", "likelihood", "tilted")), {
    "clip": Component("token_loss:TokenLoss", {**TOKENS, "reweighting": SEED_GRPO}, traits=TOKEN_LOSS),
    "tilted": Component("token_loss:TokenLoss", {**TOKENS, "reweighting": TILT}, traits=TOKEN_LOSS | WEIGHTS),
    "listwise": Component("group_losses:Listwise", {
        "target": CLOSED_FORM,
        "length_normalize_policy": own("maxent_length_normalize_policy", bool, False,
            "Divide the policy's sequence scores by length in the listwise loss; unset: as the reference, since a "
            "mismatch drives the policy towards the uniform distribution.", MAXENT),
        "skip_zero_spread": SKIP,
    }, traits=WEIGHTS),
    "likelihood": Component("group_losses:Likelihood", {
        "target": CLOSED_FORM,
        "skip_zero_spread": SKIP,
    }, traits=WEIGHTS),
    "flow": Component("group_losses:Flow", {
        "reward_scale": native("flow_reward_scale", float, 15.0,
            "FlowRL's β: nats per token that one unit of advantage is worth; unset: 15.", gt=0),
        "clip": Component("surrogates:Clip", {"low": EPSILON, "high": EPSILON_HIGH}),
        "skip_zero_spread": SKIP,
    }, traits=frozenset({"reference"})),
})

# Rehearsal of right answers that earlier steps found.


def replayed(name: str, kind: Any, default: Any, text: str, **facts: Any) -> Number:
    """A `native` number of replay."""
    return own(name, kind, default, text, REPLAY, route="native", **facts)


def replay_of_nothing(value_of: Settings) -> Iterator[str]:
    if value_of("replay_coef") == 0:
        for name in ("replay_balance_coef", "replay_control"):
            if value_of(name):
                yield f"{name}: there is no replay at replay_coef=0; set it above 0, or leave {name} out"
    if value_of("replay_scope") == "own_prompts" and value_of("replay_banks_per_step") != 1:
        yield (
            "replay_banks_per_step: replay_scope=own_prompts replays the banks of all of a step's prompts; leave it "
            "out, or use round_robin"
        )


REPLAY_COEF = replayed("replay_coef", float, 0.0,
    "λ of verified replay: likelihood of one exemplar for each right answer found so far; the published value is 0.1; "
    "0: off; unset: the objective's own.", ge=0)
VERIFIED_REPLAY = Component("replay:Replay", {
    "coefficient": REPLAY_COEF,
    "balance": replayed("replay_balance_coef", float, 0.0,
        "λ_b of replay's balance term, the KL from equal weights to the policy's softmax over a bank; 0: none; unset: "
        "the objective's own.", ge=0),
    "by_frequency": Choice(replayed("replay_weighting", Literal["uniform", "frequency"], "uniform",
        "Weight of an exemplar in its bank: equal, or as often as fresh right completions gave its answer; unset: "
        "uniform."), {"uniform": False, "frequency": True}),
    "capacity": replayed("replay_capacity", int, 16,
        "Exemplars in a prompt's bank, each of another answer and kept for ever; 1: the first right answer alone; "
        "unset: 16.", ge=1),
    "max_prompts": replayed("replay_max_prompts", int, None,
        "Most prompts that get a bank; later ones get none; unset: no limit.", ge=1),
    "own_prompts": Choice(replayed("replay_scope", Literal["round_robin", "own_prompts"], "round_robin",
        "Banks that a step replays: the next ones of all, in turn, or those of its own prompts; unset: round_robin."),
        {"round_robin": False, "own_prompts": True}),
    "banks_per_step": replayed("replay_banks_per_step", int, 1,
        "Banks that a step replays in turn, their losses averaged; unset: 1.", ge=1),
    "as_lone_success": Choice(replayed("replay_scale", Literal["lone_success", "plain"], "lone_success",
        "What replay_coef is times: (G−1)/G², the weight of a lone success in a group of G (the published scale), or "
        "1 (plain); unset: lone_success."), {"lone_success": True, "plain": False}),
    "is_control": replayed("replay_control", bool, False,
        "Make all of replay's passes with a gradient of exactly 0: parameters as without replay; unset: false."),
}, on=REPLAY_COEF, refuses=replay_of_nothing)

# What is added to the loss, and the whole.
ESTIMATORS = {name: Component(f"regularizers:{name}") for name in ("k1", "k2", "k3")}
OBJECTIVE = Component("objective:Objective", {
    "policy_loss": POLICY_LOSS,
    "advantages": GROUP_ADVANTAGES,
    "shaping": SHAPING,
    "credit": CREDIT,
    "reduction": REDUCTION,
    "kl": Component("regularizers:ReferenceKL", {
        "estimator": Choice(own("kl_estimator", Literal["k1", "k2", "k3"], "k3",
            "Per-token KL estimator (Schulman, 2020); unset: the objective's own, k3 for GRPO.", DIVERGENCES,
            route="native"), ESTIMATORS),
        "in_loss": Number("kl_in_loss", True),
        "measure": given("log_reference_kl", bool, False,
            "Measure the KL to the frozen reference even where the loss does not need it: one more forward a step.",
            DIVERGENCES, route="native"),
    }),
    "behaviour_kl": Component("regularizers:BehaviourKL", {
        "coefficient": given("behaviour_kl_coef", float, 0.0,
            "Coefficient of the KL to the policy that sampled, which limits a step's drift; ≥ 0.", DIVERGENCES, ge=0,
            route="native"),
        "estimator": Choice(Number("behaviour_kl_estimator", "k2"), ESTIMATORS),
    }),
    "entropy": Component("regularizers:TokenEntropy", {
        "coefficient": Number("entropy_coef", 0.0),
        "adaptive": Number("use_adaptive_entropy", False),
    }),
    "penalties": Every((
        Component("selection:KLCov", {
            "share": KL_COV,
            "coefficient": native("kl_cov_coef", float, 1.0, "Coefficient of KL-Cov's penalty, ≥ 0; unset: 1.", ge=0),
        }, on=KL_COV),
    )),
    "info_seed": Component("infoseed:InfoSeed", {
        "num_seeds": given("info_seed_num_seeds", int, 0,
            "Seeded completions per prompt, one per seed id 0 … S − 1, on top of num_generations; 4 to 8 is usual.",
            INFO_SEED, ge=0),
        "classifies": Choice(given("info_seed_loss_type", Literal["infonce", "ce"], "infonce",
            "Seed loss: contrastive over pooled states, or cross-entropy of a linear seed head.", INFO_SEED),
            {"infonce": False, "ce": True}),
        "coefficient": given("info_seed_lambda", float, 0.0,
            "Coefficient of the seed loss; 0.01 is usual, more invites stylistic tricks.", INFO_SEED, ge=0),
        "temperature": given("info_seed_temperature", float, 0.1,
            "Temperature of the contrastive similarities, > 0.", INFO_SEED, gt=0),
        "alpha_entropy": given("info_seed_alpha_entropy", float, 0.0,
            "Coefficient of the entropy gap between original and seeded completions, ≥ 0.", INFO_SEED, ge=0),
    }, on=given("info_seed_enabled", bool, False,
        "Add seeded prompts to every group and train the seed auxiliary loss.", INFO_SEED)),
    "replay": VERIFIED_REPLAY,
})
# fmt: on

NUMBERS = {number.name: number for number in OBJECTIVE.numbers()}
"""Everything that an objective may set."""
SETTINGS = {number.setting.name: number.setting for number in NUMBERS.values() if number.setting}
"""The settings of this package that feed an objective, in the order of the tree."""
SYNONYMS = {"centred": "centered"}
"""Values that recipes may still hold → today's."""
