"""PyTorch and Hugging Face's Qwen2 doing what tokenring is timed on, as a user would write it there.

The first line on stdin is a JSON request; the answer is the peer's name, or "missing" where PyTorch or transformers
is. Each further line is answered by "done" after the work was done once.

    {"task": "train", "model": {...}, "documents": [[...], ...]}   one step of AdamW on the padded batch
    {"task": "sample", "model": {...}, "prompts": [[...], ...], "tokens": n}   n tokens after each prompt

Prompts have one length. Everything is float32 on the CPU, with as many threads as PyTorch takes by itself.
"""

import json
import sys


def build(torch, transformers, model):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**model, attn_implementation="sdpa", use_cache=True)
    return transformers.Qwen2ForCausalLM(config)


def train(torch, model, request):
    documents = [torch.tensor(document) for document in request["documents"]]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(documents, batch_first=True, padding_value=0)
    labels = pad(documents, batch_first=True, padding_value=-100)
    mask = pad([torch.ones_like(document) for document in documents], batch_first=True, padding_value=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)

    def step():
        optimiser.zero_grad(set_to_none=True)
        model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def sample(torch, model, request):
    prompts = torch.tensor(request["prompts"])
    count = request["tokens"]
    options = dict(do_sample=True, top_k=0, min_new_tokens=count, max_new_tokens=count, pad_token_id=0)

    def generate():
        with torch.no_grad():
            model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)

    return generate


def main():
    request = json.loads(sys.stdin.readline())
    try:
        import torch
        import transformers
    except ImportError:
        print("missing", flush=True)
        return
    model = build(torch, transformers, request["model"])
    work = {"train": train, "sample": sample}[request["task"]](torch, model, request)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    for _ in sys.stdin:
        work()
        print("done", flush=True)


main()
