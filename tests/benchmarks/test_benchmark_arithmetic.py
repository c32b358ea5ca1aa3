"""The numbers behind the tables: FLOPs, medians, ratios, lengths, and what counts as which work."""

import numpy as np
import pytest
import torch
from benchmarks.guard import Disagreement, check_tokens, check_update
from benchmarks.measure import Cost, Measured, alternate
from benchmarks.models import SIZES, build_model, build_tokenizer, stop_count
from benchmarks.options import parser, workloads
from benchmarks.profile import kind_of
from benchmarks.tables import cost, ratio
from benchmarks.workload import Workload
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops

TINY = SIZES["tiny"]


def counted(ids: torch.Tensor) -> int:
    model = build_model(TINY, 0, 64, seed=0)
    model.set_attn_implementation("eager")  # whose products are plain matrix products
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    return counter.get_total_flops()


def test_flops_of_a_forward_equal_torch_s_count() -> None:
    n = 20
    linear = n * (flops.linear_flops_per_token(TINY) + flops.head_flops_per_token(TINY))
    whole_square = 4 * TINY.layers * TINY.hidden * n * n  # eager attention computes what the mask then hides
    assert counted(torch.zeros(1, n, dtype=torch.long)) == linear + whole_square


def test_causal_attention_counts_pairs() -> None:
    each_pair = 4 * TINY.layers * TINY.hidden
    assert flops.attention_flops(TINY, queries=3, before=5) == each_pair * (6 + 7 + 8)


def test_needed_work_reads_a_prompt_once_per_group() -> None:
    linear, head = flops.linear_flops_per_token(TINY), flops.head_flops_per_token(TINY)
    one = flops.forward_flops(TINY, 7, [[3]])
    two = flops.forward_flops(TINY, 7, [[3, 3]])
    assert one == 7 * linear + head + flops.attention_flops(TINY, 7, 0) + two - one
    assert two - one == 2 * (linear + head) + flops.attention_flops(TINY, 2, 7)
    assert flops.update_flops(TINY, 7, [[3, 3]]) == 3 * two


@pytest.mark.parametrize(("name", "millions"), [("0.5m", 0.5), ("4m", 4), ("30m", 30)])
def test_sizes_have_the_parameters_that_they_are_named_for(name: str, millions: float) -> None:
    parameters = sum(p.numel() for p in build_model(SIZES[name], 0, 64, seed=0).parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=0.1)


@pytest.mark.parametrize(("name", "billions"), [("0.5b", 0.494), ("1.5b", 1.544)])
def test_large_sizes_are_those_of_qwen(name: str, billions: float) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(SIZES[name], 0, 64, seed=0).parameters())
    assert parameters == pytest.approx(billions * 1e9, rel=0.002)


def measured(cpu: float, tokens: int, score: float = 0.0) -> Measured:
    return Measured({"sample": Cost(cpu, 2 * cpu), "score": Cost(score, score)}, tokens)


def test_medians_and_ratios() -> None:
    ours, theirs = [measured(c, 10, 1.0) for c in (1.0, 9.0, 2.0)], [measured(c, 20) for c in (8.0, 6.0, 1.0)]
    assert cost(ours, "sample") == Cost(2.0, 4.0)
    assert cost(ours, "step").cpu == 3.0
    # Per token: ours 0.2, theirs 6 / 20 = 0.3.
    assert ratio(ours, theirs, "sample").cpu == pytest.approx(1.5)
    assert ratio(ours, theirs, "step").cpu == pytest.approx(1.0)


def test_alternation_takes_turns_and_drops_the_first() -> None:
    calls: list[str] = []

    def action(name: str):
        return lambda: (calls.append(name), measured(float(len(calls)), 1))[1]

    first, second = alternate([action("a"), action("b")], repeats=3)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert [m.phases["sample"].cpu for m in first] == [3, 6, 7]
    assert [m.phases["sample"].cpu for m in second] == [4, 5, 8]


def test_prompts_survive_the_tokenizer_and_lengths_are_geometric() -> None:
    work = Workload(size="tiny", prompt=9, completion=32, group=64, prompts=64, lengths="geometric")
    assert build_tokenizer(TINY)(work.prompt_texts)["input_ids"] == work.prompt_ids
    lengths = np.array([len(ids) for ids in work.completion_ids])
    survival = (1 - 2 / 32) ** np.arange(32)  # P(length > n); the mean of lengths cut at 32 is its sum
    assert lengths.mean() == pytest.approx(survival.sum(), rel=0.04)
    assert lengths.max() == 32
    assert stop_count(TINY, 32, "geometric") == 8
    assert {len(ids) for ids in Workload(size="tiny", completion=5).completion_ids} == {5}


class Stub:
    def __init__(self, shift: float = 0.0, norm: float = 1.0) -> None:
        self.name, self.shift, self.norm = "stub", shift, norm

    def logps(self) -> list[list[float]]:
        return [[-1.0 + self.shift]]

    def update(self) -> Measured:
        return Measured({}, 1, 0.0, self.norm)


def test_disagreeing_systems_stop_the_benchmark() -> None:
    work = Workload(completion=8, prompts=1, group=1)
    check_update(Stub(), Stub(5e-5), work)
    with pytest.raises(Disagreement, match="log-probs"):
        check_update(Stub(), Stub(2e-4), work)
    with pytest.raises(Disagreement, match="gradient norms"):
        check_update(Stub(), Stub(norm=1.01), work)
    check_tokens([measured(1, 8)], [measured(1, 8)], work)
    with pytest.raises(Disagreement, match="sampled tokens"):
        check_tokens([measured(1, 8)], [measured(1, 7)], work)


def test_grid_varies_one_thing_at_a_time() -> None:
    rows = workloads(parser("").parse_args(["--grid", "--size", "4m", "151k"]))
    assert len(rows) == 2 * 8
    assert {row.prompts for row in rows if row.size == "151k"} == {2}
    centre = rows[0].as_dict()
    assert all(
        sum(row.as_dict()[key] != centre[key] for key in centre) <= 1 for row in rows if row.size == "4m"
    )
    bf16 = workloads(parser("").parse_args(["--grid", "--precision", "bf16", "--size", "30m"]))
    assert [(row.size, row.precision) for row in bf16] == [("30m", "bf16")]
    with pytest.raises(SystemExit, match="does not divide"):
        workloads(parser("").parse_args(["--prompts", "6", "--micro-prompts", "4"]))


def test_products_with_the_embedding_matrix_are_the_lm_head() -> None:
    assert kind_of("aten::mm", [[40, 64], [64, 128]], TINY) == "LM head"
    assert kind_of("aten::mm", [[40, 64], [64, 64]], TINY) == "linear layers"
    assert kind_of("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [], TINY) == "attention"
    assert kind_of("aten::cat", [], TINY) == "copies and cache"
    assert kind_of("aten::silu", [], TINY) == "norms and elementwise"
    assert kind_of("aten::_fused_adamw_", [], TINY) == "optimiser and clipping"
