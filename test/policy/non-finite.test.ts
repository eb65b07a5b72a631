// What a user sees when weights stop being numbers: where and why, no checkpoint spoilt, and a way back.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { embeddedEngine } from "../../lib/engine/embedded.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { ids, LIVELY, TINY } from "./tiny.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "tokenring-non-finite-"));
});
afterEach(() => rm(directory, { recursive: true }));

const tokens = ids("non-finite", 30);
const weight = Float32Array.from(tokens, (_, i) => (i === 0 ? 0 : 1));
const batch = { tokens, lengths: Int32Array.of(30), weight };
const nll = { objective: "nll" } as const;

const fault = (code: string, ...parts: string[]) =>
  expect.objectContaining({ code, message: expect.stringMatching(parts.join(".*")) });

it("names the step and the weights that it ruined, and goes on from the last checkpoint", async () => {
  await using policy = await Policy.create(TINY, LIVELY);
  await policy.save(directory, { optimiser: true });
  await policy.accumulate(batch, nll);
  const good = await policy.optimise({ learningRate: 1e-3 });
  const before = await policy.score(batch);
  await policy.save(directory, { optimiser: true });

  await policy.accumulate(batch, nll);
  const lost = "model.embed_tokens.weight";
  const step = policy.optimise({ learningRate: 3e38 });
  await expect(step).rejects.toEqual(fault("ERR_TOKENRING_NON_FINITE", "optimiser step 2", lost));
  using session = embeddedEngine(policy).open();
  session.extend(tokens);
  const turn = { maxTokens: 3, stop: [], temperature: 1, seed: 1n };
  const ruined = fault("ERR_TOKENRING_NON_FINITE", lost);
  await expect(session.sample(turn)).rejects.toEqual(ruined);
  await expect(policy.score(batch)).rejects.toEqual(ruined);
  await expect(policy.accumulate(batch, nll)).rejects.toEqual(ruined);
  await expect(policy.save(directory, { optimiser: true })).rejects.toEqual(ruined);
  expect(session.length).toBe(tokens.length);

  await policy.load(directory, { optimiser: true });
  expect(await policy.score(batch)).toEqual(before);
  await policy.accumulate(batch, nll);
  expect((await policy.optimise({ learningRate: 1e-3 })).step).toBe(good.step + 1);
  expect((await session.sample(turn)).tokens).toHaveLength(3);
});

it("refuses a checkpoint with a number that is none, and names file and tensor", async () => {
  await using policy = await Policy.create(TINY, LIVELY);
  await policy.save(directory);
  const file = join(directory, "model.safetensors");
  const bytes = await readFile(file);
  bytes.writeFloatLE(Number.NaN, bytes.length - 4);
  await writeFile(file, bytes);
  const refused = fault("ERR_TOKENRING_CHECKPOINT", file, "element 31 of tensor model.norm.weight is nan");
  await expect(Policy.load(directory)).rejects.toEqual(refused);
  const before = await policy.score(batch);
  await expect(policy.load(directory)).rejects.toEqual(refused);
  expect(await policy.score(batch)).toEqual(before);
});

it("leaves out a step that was queued behind a pass that fails, and only that", async () => {
  await using policy = await Policy.create(TINY, LIVELY);
  const before = await policy.score(batch);
  const bad = { ...batch, weight: weight.map((w, i) => (i === 4 ? Number.NaN : w)) };
  const calls = [
    policy.accumulate(bad, nll),
    policy.accumulate(batch, nll),
    policy.optimise({ learningRate: 1e-3 }),
  ];
  const [first, second, step] = await Promise.allSettled(calls);
  expect(first).toMatchObject({ reason: fault("ERR_TOKENRING_NON_FINITE", "weight of token 4") });
  expect(second?.status).toBe("fulfilled");
  expect(step).toMatchObject({ reason: fault("ERR_TOKENRING_ABORTED", "the weights are as before") });
  expect(await policy.score(batch)).toEqual(before);

  await policy.dropGradients();
  const [, stepped] = await Promise.all([
    policy.accumulate(batch, nll),
    policy.optimise({ learningRate: 1e-3 }),
  ]);
  expect(stepped.step).toBe(1);
  expect(await policy.score(batch)).not.toEqual(before);
});
