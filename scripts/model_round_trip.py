"""Checks that models go to and fro between tokenring and transformers with the same logprobs.

For every shape of Qwen2, Qwen3 and Llama below: transformers makes a model with random weights and saves it with a
tokenizer, tokenring loads it, scores documents, saves it again (f32 and bf16, one file and shards), and transformers
loads what tokenring saved. At each station the logprobs of the documents are compared (1e-5, relative L2), and config.json must come back
as the same decoder. Run it with each version of transformers that is to be checked:

    npm run build
    python3 scripts/model_round_trip.py
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig,
                          PreTrainedTokenizerFast, Qwen2Config, Qwen3Config)

ROOT = Path(__file__).resolve().parents[1]
FIVE = int(transformers.__version__.split(".")[0]) >= 5
SHAPE = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=256, eos_token_id=257)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
CASES = {
    "qwen2": (Qwen2Config, 1e6, None, True),
    "qwen2 untied": (Qwen2Config, 1e4, None, False),
    "qwen2 yarn": (Qwen2Config, 1e6, YARN, True),
    "qwen3": (Qwen3Config, 1e6, None, True),
    "qwen3 untied yarn": (Qwen3Config, 1e6, dict(YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.2), False),
    "llama": (LlamaConfig, 1e4, None, False),
    "llama3": (LlamaConfig, 5e5, LLAMA3, True),
}
# What tokenring does in a process of its own: score, save in each form, and tokenise a conversation.
SCORE = """
import { chatFormat, loadChatTemplate, loadTokenizer, Policy } from "./dist/index.js";
const [from, to, tokens, lengths] = JSON.parse(process.argv[1]);
const batch = { tokens: Int32Array.from(tokens), lengths: Int32Array.from(lengths) };
const policy = await Policy.load(from);
const { logprob } = await policy.score(batch);
await policy.save(to + "/f32");
await policy.save(to + "/shards", { shardBytes: 60000 });
await policy.save(to + "/bf16", { dtype: "bf16" });
const half = await Policy.load(to + "/bf16");
const rounded = (await half.score(batch)).logprob;
const tokenizer = await loadTokenizer(from);
const chat = chatFormat(tokenizer, await loadChatTemplate(from));
const opening = chat.opening({ user: "hi é" });
console.log(JSON.stringify([[...logprob], [...rounded], [...opening]]));
await Promise.all([policy.dispose(), half.dispose()]);
"""


def make_config(kind, theta, scaling, tied):
    rope = dict(scaling or dict(rope_type="default"))
    head_dim = 32 if kind is Qwen3Config else 16  # only Qwen3 is published with heads of another size
    if FIVE:
        return kind(**SHAPE, head_dim=head_dim, tie_word_embeddings=tied, rope_parameters=dict(rope, rope_theta=theta))
    return kind(**SHAPE, head_dim=head_dim, tie_word_embeddings=tied, rope_theta=theta, rope_scaling=scaling)


def make_tokenizer():
    """Bytes and two special tokens, with a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|s|>", eos_token="<|e|>")
    fast.chat_template = ("{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
                          "{% if add_generation_prompt %}assistant:{% endif %}")
    return fast


def logprobs(model, documents):
    out = []
    with torch.no_grad():
        for document in documents:
            p = torch.log_softmax(model(document[None]).logits[0].float(), dim=-1)
            out += [0.0] + p[:-1].gather(1, document[1:, None])[:, 0].tolist()
    return torch.tensor(out, dtype=torch.float64)


def check(what, got, expected, limit):
    off = ((got - expected).norm() / expected.norm()).item()
    print(f"  {what}: {off:.1e}")
    assert off <= limit, f"{what} is off by {off}, more than {limit}"


def same_decoder(directory, config):
    """The config that transformers reads back, without what only tells of who wrote it."""
    told = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures"}
    clean = lambda c: {key: value for key, value in c.to_dict().items() if key not in told}
    got, expected = clean(AutoConfig.from_pretrained(directory)), clean(config)
    assert got == expected, {key: (got.get(key), expected.get(key)) for key in got.keys() | expected.keys()
                             if got.get(key) != expected.get(key)}


def run(name, case, folder):
    torch.manual_seed(1)
    config = make_config(*case)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.1 if p.dim() == 2 else 0.05) + (1.0 if "norm" in key else 0.0))
    source = folder / "source"
    # Each dtype that is read, and shards, somewhere.
    dtype = {"llama": torch.float16, "qwen3": torch.bfloat16}.get(name, torch.float32)
    model.to(dtype).save_pretrained(source, max_shard_size="60KB" if name == "llama3" else "5GB")
    # Read back, since a cast of the whole model rounds the rotary frequencies too.
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    make_tokenizer().save_pretrained(source)
    GenerationConfig(bos_token_id=256, eos_token_id=257, do_sample=True, top_k=20, top_p=0.8,
                     temperature=0.7).save_pretrained(source)

    lengths = [100, 7, 40]
    documents = [torch.randint(0, 256, (n,)) for n in lengths]
    request = json.dumps([str(source), str(folder), torch.cat(documents).tolist(), lengths])
    ran = subprocess.run(["node", "--input-type=module", "-e", SCORE, request], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *scores, opening = json.loads(ran.stdout)
    ours, rounded = (torch.tensor(values, dtype=torch.float64) for values in scores)

    print(name)
    theirs = logprobs(model, documents)
    check("tokenring's reading of transformers' model", ours, theirs, 1e-5)
    for form, stored, expected in [("f32", torch.float32, theirs), ("shards", torch.float32, theirs),
                                  ("bf16", torch.bfloat16, rounded)]:
        loaded, info = AutoModelForCausalLM.from_pretrained(folder / form, output_loading_info=True)
        keys = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        assert not any(keys.values()), keys
        assert AutoConfig.from_pretrained(folder / form).dtype == stored
        same_decoder(folder / form, config)
        if form == "f32":  # the very weights
            for (key, a), b in zip(model.state_dict().items(), loaded.state_dict().values()):
                assert torch.equal(a, b), key
        check(f"transformers' reading of tokenring's {form}", logprobs(loaded.float().eval(), documents), expected,
              1e-5)
        tokenizer = AutoTokenizer.from_pretrained(folder / form)
        chat = tokenizer.apply_chat_template([dict(role="user", content="hi é")], add_generation_prompt=True,
                                             return_dict=True)["input_ids"]
        assert tokenizer.decode(chat) == "<|s|>user:hi é<|e|>assistant:", tokenizer.decode(chat)
        assert chat == opening, (chat, opening)
        assert tokenizer.decode(tokenizer.encode("round trip")) == "round trip"
        generation = GenerationConfig.from_pretrained(folder / form)
        told = generation.top_k, generation.top_p, generation.temperature, generation.eos_token_id
        assert told == (0, 1, 1, 257), told
    assert len(list((folder / "shards").glob("model-*.safetensors"))) > 1


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            run(name, case, Path(folder))
    print(f"{len(CASES)} models went to and fro")
    sys.exit(0)
