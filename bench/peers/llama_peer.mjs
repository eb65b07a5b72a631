// The process of the peer llama.cpp (process.ts says how it is asked, llama.ts what): node-llama-cpp 3, from the folder
// that TOKENRING_NODE_LLAMA_CPP names or from the installed packages, without being a dependency.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

/** Of the greedy tokens, how many must be ours: a cache in float16 may turn a close choice. */
const AGREEMENT = 0.95;

async function load() {
  const folder = process.env.TOKENRING_NODE_LLAMA_CPP;
  const entry = folder
    ? pathToFileURL(join(folder, "dist/index.js")).href
    : import.meta.resolve("node-llama-cpp");
  const library = await import(entry);
  const { version } = JSON.parse(readFileSync(new URL("../package.json", entry), "utf8"));
  return { library, version };
}

async function open({ path, threads, prompts, tokens, greedy }) {
  const { library, version } = await load();
  const llama = await library.getLlama({
    gpu: false,
    build: "never",
    maxThreads: threads,
    logLevel: "disabled",
    progressLogs: false,
  });
  const model = await llama.loadModel({ modelPath: path, gpuLayers: 0, useMmap: false });
  const context = await model.createContext({
    sequences: prompts.length,
    contextSize: Math.max(...prompts.map(({ length }) => length)) + tokens,
    batchSize: prompts.reduce((sum, { length }) => sum + length, 0),
    threads,
    // With the default cache in float16 this is its fastest way; a cache in float32 takes it far longer.
    flashAttention: true,
  });
  const sequences = prompts.map(() => context.getSequence());
  const generate = (count, temperature) =>
    Promise.all(
      sequences.map(async (sequence, i) => {
        await sequence.clearHistory();
        const sampled = [];
        const options = { temperature, topK: 0, topP: 1, minP: 0, seed: i + 1, yieldEogToken: true };
        for await (const token of sequence.evaluate(prompts[i], options)) {
          if (sampled.push(token) === count) break;
        }
        return sampled;
      }),
    );
  const expected = greedy.flat();
  const found = (await generate(greedy[0].length, 0)).flat();
  const same = expected.filter((token, i) => token === found[i]).length;
  if (same < AGREEMENT * expected.length)
    throw new Error(`greedy decoding gives ${same} of ${expected.length} tokens as tokenring does`);
  return {
    name: `llama.cpp by node-llama-cpp ${version}`,
    call: async () => {
      const sampled = (await generate(tokens, 1)).flat().length;
      if (sampled !== tokens * prompts.length) throw new Error(`${sampled} tokens were sampled`);
    },
    close: () => llama.dispose(),
  };
}

async function main() {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
  let peer;
  try {
    peer = await open(JSON.parse((await lines.next()).value));
  } catch (error) {
    if (error.code !== "ERR_MODULE_NOT_FOUND" && error.code !== "ENOENT") throw error;
    answer({ missing: error.message });
    return;
  }
  answer({ name: peer.name });
  while (!(await lines.next()).done) answer((await peer.call()) ?? null);
  await peer.close();
}

await main();
