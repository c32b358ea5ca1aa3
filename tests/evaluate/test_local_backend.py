"""The local backend's prompts: plain templates with and without a beginning-of-sequence token."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from maxent_grpo.evaluate.benchmarks import Question
from maxent_grpo.evaluate.local_backend import LocalBackend, prompts_of
from maxent_grpo.inference import InferenceModelSpec

BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<|of-my-own|>")  # Llama-3, Mistral, Gemma, anybody


def tokenizer_with(bos: str, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte; it puts ``bos`` in front of a text if ``adds_bos``."""
    special = ["<pad>", bos, "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("bos", BOS)
@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(
    "template", ["{bos}Q: {question}\nA:", "\n{bos}Q: {question}\nA:", "Q: {question}\nA:", "no"]
)
def test_a_plain_prompt_has_at_most_one_bos(bos, adds_bos, template):
    spelled = "{bos}" in template
    tokenizer = tokenizer_with(bos, adds_bos)
    spec = InferenceModelSpec("anything", prompt_template=template.replace("{bos}", bos))
    (prompt,) = prompts_of([Question(4, "1+1?", "2")], spec, None, tokenizer)
    assert prompt.index == 4
    assert prompt.token_ids.count(tokenizer.bos_token_id) == int(spelled or adds_bos)
    added = "" if spelled or not adds_bos else bos
    assert tokenizer.decode(prompt.token_ids) == added + prompt.text


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_fingerprint_tells_answers_after_one_bos_from_those_after_two(tmp_path, adds_bos):
    (tmp_path / "model.safetensors").touch()
    tokenizer_with("<s>", adds_bos).save_pretrained(tmp_path)
    told = []
    for template in ("<s>Q: {question}", "Q: {question}"):
        spec = InferenceModelSpec(str(tmp_path), prompt_template=template)
        told.append("bos" in LocalBackend(spec, None).fingerprint()["backend"])
    assert told == [adds_bos, False]


def test_a_chat_is_templated_with_its_earlier_turns():
    tokenizer = tokenizer_with("<s>", adds_bos=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    turns = ({"role": "user", "content": "3+4"}, {"role": "assistant", "content": "7"})
    asked = [Question(0, "1+1", "2", turns=turns), Question(1, "2+2", "4")]
    prompts = prompts_of(asked, InferenceModelSpec("anything"), "brief", tokenizer)
    assert [p.text for p in prompts] == ["s:brief;u:3+4;a:7;u:1+1;", "s:brief;u:2+2;"]
