"""PyTorch and Hugging Face's Qwen2 doing what tokenring is timed on, as a user would write it there.

The first line on stdin is a JSON request; the answer is {"name": ...}, or {"missing": ...} where PyTorch or
transformers is. Each further line is answered by a line of JSON after the work was done once: null, or what the call
measured.

    {"task": "train", "model": {...}, "documents": [[...], ...]}   one step of AdamW on the padded batch
    {"task": "gradients", "model": {...}, "documents": [[...], ...]}   the same without clip and optimiser
    {"task": "sample", "model": {...}, "prompts": [[...], ...], "tokens": n}   n tokens after each prompt, padded left

    {"task": "loss", "tokens": n, "hidden": h, "vocabulary": v, "measure": "time" | "memory"}
        DAPO's loss from hidden states and the head's weight through full logits, and both gradients; "memory" answers
        with the MiB that the resident set is above inputs and gradients at its peak

Every request has "threads"; "compile": true puts the model through torch.compile. Everything is float32 on the CPU,
under bf16 autocast where a request of "train" or "gradients" says "autocast": true.
"""

import json
import re
import sys


def build(torch, transformers, request):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**request["model"], attn_implementation="sdpa", use_cache=True)
    model = transformers.Qwen2ForCausalLM(config)
    return torch.compile(model) if request.get("compile") else model


def padded(torch, documents, value):
    """Without a mask where nothing is padded: attention takes its fastest path then."""
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(document) for document in documents], batch_first=True)
    return pad(documents, batch_first=True, padding_value=value), None if mask.all() else mask


def gradients(torch, transformers, request):
    return backward_of(torch, build(torch, transformers, request), request)


def backward_of(torch, model, request):
    documents = [torch.tensor(document) for document in request["documents"]]
    ids, mask = padded(torch, documents, 0)
    labels, _ = padded(torch, documents, -100)

    def backward():
        with torch.autocast("cpu", torch.bfloat16, enabled=request.get("autocast", False)):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()

    return backward


def train(torch, transformers, request):
    model = build(torch, transformers, request)
    backward = backward_of(torch, model, request)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def step():
        optimiser.zero_grad(set_to_none=True)
        backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def sample(torch, transformers, request):
    model = build(torch, transformers, request)
    longest = max(len(prompt) for prompt in request["prompts"])
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in request["prompts"]]
    masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in request["prompts"]]
    prompts, mask = torch.tensor(rows), torch.tensor(masks)
    count = request["tokens"]
    options = dict(do_sample=True, top_k=0, min_new_tokens=count, max_new_tokens=count, pad_token_id=0)

    def generate():
        with torch.no_grad():
            model.generate(prompts, attention_mask=mask, **options)

    return generate


def resident(field):
    """Of this process, in MiB: VmRSS is now, VmHWM the most since the last reset."""
    with open("/proc/self/status") as status:
        return int(re.search(field + r":\s*(\d+) kB", status.read())[1]) / 1024


def loss(torch, transformers, request):
    tokens, hidden, vocabulary = request["tokens"], request["hidden"], request["vocabulary"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, hidden, generator=generator)).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    advantage = torch.randn(tokens, generator=generator)
    old = -torch.log(torch.tensor(float(vocabulary))).expand(tokens).clone()
    for leaf in (x, weight):
        leaf.grad = torch.full_like(leaf, 0.0)  # zeros_like would leave its pages untouched
    before = resident("VmRSS")

    def step():
        logprob = -torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="none")
        ratio = torch.exp(logprob - old)
        clipped = torch.clamp(ratio, 1 - 0.2, 1 + 0.28)
        (-torch.min(ratio * advantage, clipped * advantage).mean()).backward()

    def peak():
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        step()
        return resident("VmHWM") - before

    return peak if request["measure"] == "memory" else step


def main():
    request = json.loads(sys.stdin.readline())
    try:
        import torch
        import transformers
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    torch.set_num_threads(request["threads"])
    work = {"train": train, "gradients": gradients, "sample": sample, "loss": loss}[request["task"]](torch, transformers, request)
    name = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(json.dumps({"name": name}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(work()), flush=True)


main()
