// A model by its name: found in the cache that Python shares, or downloaded into it, whole or not at all.
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { defaultCache } from "../../lib/policy/model-cache.ts";
import type { DownloadProgress } from "../../lib/policy/model-download.ts";
import { findModel, type ModelSourceOptions } from "../../lib/policy/model-source.ts";
import { Policy } from "../../lib/policy/policy.ts";
import { COMMIT, FakeHub } from "./hub.ts";

const MODEL = fileURLToPath(new URL("../fixtures/decoder/llama/", import.meta.url));
const NAME = "org/model";

let cache: string;
let hub: FakeHub;
beforeEach(async () => {
  cache = await mkdtemp(join(tmpdir(), "tokenring-hub-"));
  hub = await FakeHub.open();
  for (const name of ["config.json", "model.safetensors"])
    hub.files.set(name, await readFile(join(MODEL, name)));
  hub.files.set("tokenizer.json", Buffer.from("{}"));
  hub.files.set("README.md", Buffer.from("a card"));
  hub.files.set("pytorch_model.bin", Buffer.alloc(100_000));
  hub.large.add("model.safetensors");
  // Neither this machine's cache nor its token may take part.
  for (const name of ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
    vi.stubEnv(name, "");
  vi.stubEnv("HF_HOME", join(cache, "home"));
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await hub[Symbol.asyncDispose]();
  await rm(cache, { recursive: true });
});

const options = (more: ModelSourceOptions = {}): ModelSourceOptions => ({
  hubUrl: hub.url,
  cache,
  pauseMs: 1,
  ...more,
});
const folder = (...path: string[]): string => join(cache, "models--org--model", ...path);
const blobs = async (): Promise<string[]> => (await readdir(folder("blobs")).catch(() => [])).sort();
const fault = (message: RegExp): unknown =>
  expect.objectContaining({ code: "ERR_TOKENRING_CHECKPOINT", message: expect.stringMatching(message) });

describe("a model that is named", () => {
  it("is downloaded into the cache as Python lays it out, and found there afterwards", async () => {
    const seen: DownloadProgress[] = [];
    const directory = await findModel(NAME, options({ onProgress: (progress) => seen.push(progress) }));
    expect(directory).toBe(folder("snapshots", COMMIT));
    // Only what the decoder and the tokenizer need.
    expect((await readdir(directory)).sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    for (const name of await readdir(directory)) {
      expect(await readlink(join(directory, name))).toBe(`../../blobs/${hub.hash(name)}`);
      expect(await readFile(join(directory, name))).toEqual(hub.files.get(name));
    }
    expect(await readFile(folder("refs", "main"), "utf8")).toBe(COMMIT);
    expect(await blobs()).toHaveLength(3);
    const size = ["config.json", "model.safetensors", "tokenizer.json"]
      .map((name) => (hub.files.get(name) as Buffer).length)
      .reduce((sum, bytes) => sum + bytes, 0);
    expect(seen.at(-1)).toEqual({ file: "tokenizer.json", received: size, size });
    const counts = seen.filter((progress) => progress.size > 0).map((progress) => progress.received);
    expect(counts).toEqual([...counts].sort((a, b) => a - b));

    const requests = hub.requests.length;
    expect(await findModel(NAME, options())).toBe(directory);
    expect(await findModel(NAME, options({ revision: COMMIT, offline: true }))).toBe(directory);
    expect(hub.requests).toHaveLength(requests);
  });

  it("becomes a policy", async () => {
    await using policy = await Policy.load(NAME, { source: options() });
    await using local = await Policy.load(MODEL);
    expect(policy.config).toEqual(local.config);
    const batch = { tokens: Int32Array.of(1, 2, 3), lengths: Int32Array.of(3) };
    expect(await policy.score(batch)).toEqual(await local.score(batch));
  });

  it("has its shards fetched by their index", async () => {
    await using policy = await Policy.load(MODEL);
    const sharded = join(cache, "sharded");
    await policy.save(sharded, { shardBytes: 8000 });
    hub.files.delete("model.safetensors");
    for (const name of await readdir(sharded)) hub.files.set(name, await readFile(join(sharded, name)));
    const shards = [...hub.files.keys()].filter((name) => /^model-.*safetensors$/.test(name));
    expect(shards.length).toBeGreaterThan(1);
    hub.files.set("model-00099-of-00099.safetensors", Buffer.from("of another time"));
    const directory = await findModel(NAME, options());
    expect((await readdir(directory)).filter((name) => name.endsWith(".safetensors"))).toEqual(shards.sort());

    // A shard that is gone makes the snapshot incomplete: it is fetched again, and missed where that is forbidden.
    const [gone] = shards as [string];
    await rm(join(directory, gone));
    await expect(findModel(NAME, options({ offline: true }))).rejects.toEqual(
      fault(new RegExp(`${COMMIT} without ${gone}, and HF_HUB_OFFLINE forbids`)),
    );
    await findModel(NAME, options());
    expect(await readdir(directory)).toContain(gone);
  });

  it("goes on where a broken download stopped, and waits between attempts", async () => {
    const path = "model.safetensors";
    hub.faults.set("revision", [{ status: 503 }]);
    hub.faults.set(path, [{ breakAfter: 1000 }, { status: 500 }, { breakAfter: 500 }]);
    const directory = await findModel(NAME, options());
    expect(await readFile(join(directory, path))).toEqual(hub.files.get(path));
    const starts = hub.fetched(path).map((line) => Number(/bytes=(\d+)-/.exec(line)?.[1] ?? 0));
    expect(starts).toHaveLength(4);
    expect(starts[0]).toBe(0);
    expect(starts[3]).toBeGreaterThan(0);
    expect(starts).toEqual([...starts].sort((a, b) => a - b));
  });

  it("goes on in another process' partial file, and starts anew when that was something else", async () => {
    const path = "model.safetensors";
    const bytes = hub.files.get(path) as Buffer;
    await mkdir(folder("blobs"), { recursive: true });
    const partial = folder("blobs", `${hub.hash(path)}.incomplete`);
    await writeFile(partial, bytes.subarray(0, 3000));
    await findModel(NAME, options());
    expect(hub.fetched(path)).toEqual([`GET ${path} bytes=3000-`]);

    await rm(folder(), { recursive: true });
    await mkdir(folder("blobs"), { recursive: true });
    await writeFile(partial, Buffer.alloc(3000, 7));
    const directory = await findModel(NAME, options());
    expect(hub.fetched(path).slice(1)).toEqual([`GET ${path} bytes=3000-`, `GET ${path} whole`]);
    expect(await readFile(join(directory, path))).toEqual(bytes);
  });

  it("takes the whole file from a server that knows no ranges", async () => {
    const path = "model.safetensors";
    hub.faults.set(path, [{ breakAfter: 2000 }, { noRange: true }]);
    const directory = await findModel(NAME, options());
    expect(await readFile(join(directory, path))).toEqual(hub.files.get(path));
  });

  it("is never there by half: bytes of another hash, a silent hub, an abort", async () => {
    const path = "model.safetensors";
    const other = Buffer.alloc((hub.files.get(path) as Buffer).length, 1);
    hub.faults.set(path, [{ bytes: other }, { bytes: other }]);
    await expect(findModel(NAME, options())).rejects.toEqual(
      fault(/sent model.safetensors with other bytes/),
    );
    expect(await readdir(folder("snapshots")).catch(() => [])).toEqual([]);
    expect(await blobs()).not.toContain(hub.hash(path));

    hub.faults.set(path, [{ silentAfter: 10 }, { silentAfter: 10 }]);
    await expect(findModel(NAME, options({ idleMs: 300, attempts: 2 }))).rejects.toEqual(
      fault(
        /cannot be fetched .*model.safetensors: nothing came for 0.3 s; 2 attempts.*start again to go on/,
      ),
    );

    hub.faults.set(path, [{ silentAfter: 10 }]);
    const abort = new AbortController();
    const stopped = findModel(
      NAME,
      options({
        signal: abort.signal,
        onProgress: ({ file, received }) => {
          if (file === path && received > 0) abort.abort(new Error("enough"));
        },
      }),
    );
    await expect(stopped).rejects.toThrow("enough");

    hub.faults.set(path, [{ silentAfter: 10 }]);
    await expect(findModel(NAME, options({ timeoutMs: 300 }))).rejects.toMatchObject({
      code: "ERR_TOKENRING_TIMEOUT",
      message: expect.stringMatching(/the deadline passed while model.safetensors was fetched/),
    });
    expect(await readdir(folder("snapshots")).catch(() => [])).toEqual([]);
    await expect(findModel(NAME, options({ offline: true }))).rejects.toEqual(fault(/not in the cache/));
    // What came by then was kept.
    hub.requests.length = 0;
    await findModel(NAME, options());
    expect(hub.fetched(path)[0]).toMatch(/bytes=\d\d-/);
  });

  it("is refused before its weights are fetched when it cannot be computed", async () => {
    const config = JSON.parse(String(hub.files.get("config.json")));
    hub.files.set("config.json", Buffer.from(JSON.stringify({ ...config, model_type: "mixtral" })));
    await expect(findModel(NAME, options())).rejects.toEqual(
      fault(/org\/model\/config.json: model_type is "mixtral"/),
    );
    expect(hub.fetched("model.safetensors")).toEqual([]);
    hub.files.delete("config.json");
    await expect(findModel(NAME, options())).rejects.toEqual(fault(/has no config.json/));
  });

  it("needs safetensors", async () => {
    hub.files.delete("model.safetensors");
    await expect(findModel(NAME, options())).rejects.toEqual(fault(/only safetensors weights are read/));
    hub.files.set("model.safetensors.index.json", Buffer.from('{"weight_map": {"a": "../../x"}}'));
    await expect(findModel(NAME, options())).rejects.toEqual(fault(/names no shards beside it/));
    hub.files.set("model.safetensors.index.json", Buffer.from('{"weight_map": {"a": "absent.safetensors"}}'));
    await expect(findModel(NAME, options())).rejects.toEqual(fault(/lacks absent.safetensors/));
  });

  it("says what the hub answered, at once", async () => {
    await expect(findModel("org/other", options())).rejects.toEqual(
      fault(
        /org\/other is no directory here, and cannot be had: the hub answers 404 for its revision main; check the name/,
      ),
    );
    await expect(findModel(NAME, options({ revision: "nowhere" }))).rejects.toEqual(
      fault(/answers 404 for its revision nowhere/),
    );
    expect(hub.requests).toEqual(["revision nowhere"]);
    hub.token = "hf_secret";
    await expect(findModel(NAME, options())).rejects.toEqual(fault(/answers 401 .*set HF_TOKEN/));
    await expect(findModel(NAME, options({ token: "secret" }))).rejects.toEqual(fault(/begin with "hf_"/));
    vi.stubEnv("HF_TOKEN", "hf_secret");
    await findModel(NAME, options());

    const gone = options({ attempts: 2 });
    await hub[Symbol.asyncDispose]();
    hub = await FakeHub.open();
    await rm(folder(), { recursive: true });
    await expect(findModel(NAME, gone)).rejects.toEqual(
      fault(/cannot be fetched from .*ECONNREFUSED.*2 attempts.*HF_HUB_OFFLINE=1/),
    );
  });
});

describe("the cache", () => {
  it("lies where Python's tools have it", () => {
    const home = process.env.HOME as string;
    expect(defaultCache({})).toBe(join(home, ".cache/huggingface/hub"));
    expect(defaultCache({ XDG_CACHE_HOME: "/x" })).toBe("/x/huggingface/hub");
    expect(defaultCache({ XDG_CACHE_HOME: "/x", HF_HOME: "~/hf" })).toBe(join(home, "hf/hub"));
    expect(defaultCache({ HF_HOME: "/hf", HUGGINGFACE_HUB_CACHE: "/c" })).toBe("/c");
    expect(defaultCache({ HF_HOME: "/hf", HUGGINGFACE_HUB_CACHE: "/c", HF_HUB_CACHE: "/d" })).toBe("/d");
  });

  it("is used as Python left it, through the ref, without a network", async () => {
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    vi.stubEnv("HF_HUB_CACHE", cache);
    await expect(findModel(NAME)).rejects.toEqual(fault(/not in the cache .*HF_HUB_OFFLINE forbids/));
    const other = "d".repeat(40);
    for (const [commit, files] of [
      [COMMIT, ["config.json", "model.safetensors"]],
      [other, ["config.json"]],
    ] as const) {
      await mkdir(folder("snapshots", commit), { recursive: true });
      for (const file of files) await symlink(join(MODEL, file), folder("snapshots", commit, file));
    }
    await mkdir(folder("refs", "pr"), { recursive: true });
    await writeFile(folder("refs", "main"), COMMIT);
    await writeFile(folder("refs", "pr", "1"), other);
    expect(await findModel(NAME)).toBe(folder("snapshots", COMMIT));
    await expect(findModel(NAME, { revision: "pr/1" })).rejects.toEqual(
      fault(/without model.safetensors, and HF_HUB_OFFLINE/),
    );
    // Weights without a tokenizer: with a network, what is missing is fetched, and only that.
    await findModel(NAME, options({ offline: false }));
    expect(hub.fetched("tokenizer.json")).toHaveLength(1);
    expect(await readdir(folder("snapshots", COMMIT))).toContain("tokenizer.json");
  });

  it("takes a directory as it is, and refuses what is neither that nor a name", async () => {
    expect(await findModel(MODEL, { offline: true })).toBe(MODEL);
    for (const name of ["/no/such/folder", "../x", "a/b/c", "a..b", "", "models--a--b", "~/x"]) {
      await expect(findModel(name, { offline: true })).rejects.toEqual(fault(/no directory, and no name/));
    }
    for (const revision of ["../../x", "a b", ""]) {
      await expect(findModel(NAME, { offline: true, revision })).rejects.toEqual(fault(/no branch, tag/));
    }
  });
});
