// A run as a process that is killed, again and again, and goes on to the very weights, metrics and trajectories of one
// that was not. TOKENRING_SOAK=1 kills it at 50 random moments instead of 4.
import { type SpawnSyncReturns, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Random } from "../../lib/random.ts";
import { timeless } from "../support/timeless.ts";
import { readEventFile } from "../track/event-reader.ts";

const KILLS = process.env.TOKENRING_SOAK ? 50 : 4;
/** Nets: seconds on a machine of its own, minutes where twenty others want its cores. */
const MINUTES = process.env.TOKENRING_SOAK ? 7_200_000 : 1_800_000;
const PROCESS_MINUTES = 900_000;
const root = mkdtempSync(path.join(tmpdir(), "tokenring-survive-"));
afterAll(() => rmSync(root, { recursive: true }));

const limits = "{ maxTurns: 3, maxContext: 320, maxActionTokens: 24 }";
const adamw = "learningRate: 0.001";
const config = path.join(root, "job.yaml");
writeFileSync(
  config,
  `
seed: 3
model: { create: { hiddenSize: 64, layers: 2, heads: 2, keyValueHeads: 1, headDim: 32, intermediateSize: 128, maxPositions: 512, initStd: 0.08, previousTokenBias: 5 } }
tasks: { name: tinyswe, train: 6, heldOut: 2 }
checkpointSeconds: 0.4
tracking: { tensorboard: true }
warmStart:
  copySteps: 10
  copyBatch: { sequences: 4, tokens: 48 }
  steps: 100
  tokensPerStep: 400
  expertShare: 0
  personas: { expert: 0, sloppy: 0, confused: 1 }
  warmupSteps: 10
  learningRate: 0.006
rft: { instances: 6, rollouts: 2, batchSize: 1, ${adamw}, limits: ${limits} }
stages:
  - { name: stage1, iterations: 3, instances: 3, rollouts: 3, batchSize: 4, clipHigh: 0.3, lengthThreshold: 1, filter: final_reward, ${adamw}, limits: ${limits} }
evaluate: { runs: 1, limits: ${limits} }
`,
);

const command = (...args: string[]): string[] => [
  "--import",
  path.resolve("test/run/faults.mjs"),
  path.resolve("dist/cli/main.js"),
  ...args,
];
const directory = (name: string): string => path.join(root, name);

/** `train` where there is no run yet, else `resume`. */
function goOn(name: string): string[] {
  const run = directory(name);
  return existsSync(path.join(run, "run.json"))
    ? command("resume", run)
    : command("train", config, "--out", run);
}

function environment(name: string, fault: string): NodeJS.ProcessEnv {
  // What killed processes leave in the temporary folder goes with the test's own.
  return { ...process.env, TMPDIR: root, TOKENRING_FAULT: fault, TOKENRING_FAULT_RUN: directory(name) };
}

function finish(name: string, fault = ""): SpawnSyncReturns<string> {
  return spawnSync(process.execPath, goOn(name), {
    encoding: "utf8",
    env: environment(name, fault),
    timeout: PROCESS_MINUTES,
  });
}

/** Starts the run or goes on with it, and kills it after `ms`, unless it ended before. Returns whether it did. */
async function killedAfter(name: string, ms: number): Promise<boolean> {
  const child = spawn(process.execPath, goOn(name), { stdio: "ignore", env: environment(name, "") });
  const timer = setTimeout(() => child.kill("SIGKILL"), ms);
  const [code, signal] = await once(child, "exit");
  clearTimeout(timer);
  if (signal !== "SIGKILL") expect(code).toBe(0);
  return signal === "SIGKILL";
}

/** Everything in a run that is not a time. */
function content(name: string): Record<string, unknown> {
  const at = directory(name);
  const files: Record<string, unknown> = {};
  for (const file of readdirSync(at, { recursive: true, encoding: "utf8" })) {
    const whole = path.join(at, file);
    if (!statSync(whole).isFile() || ["report.html", "run.json"].includes(file)) continue;
    const bytes = readFileSync(whole);
    if (file.startsWith("tensorboard/")) {
      // Whatever was killed and done again: every number stands there once. Its name and all records hold times.
      files.tensorboard = readEventFile(bytes).map(({ step, scalars }) => ({
        step,
        ...Object.fromEntries(Object.entries(scalars).filter(([tag]) => !/Ms$|\/seconds|MiB$/.test(tag))),
      }));
    } else if (file.endsWith(".jsonl")) {
      files[file] = bytes
        .toString()
        .trimEnd()
        .split("\n")
        .map((line) => timeless(JSON.parse(line)));
    } else if (file === "state.json") {
      const { checkpoint, progress } = JSON.parse(bytes.toString());
      files[file] = timeless({ checkpoint, progress });
    } else files[file] = createHash("sha256").update(bytes).digest("hex");
  }
  return files;
}

let whole: Record<string, unknown>;
let milliseconds = 0;
let writes = 0;

beforeAll(() => {
  const begin = performance.now();
  const { status, stdout, stderr } = finish("whole", "count");
  milliseconds = performance.now() - begin;
  expect(status, stderr).toBe(0);
  writes = Number(/^writes: (\d+)$/m.exec(stdout)?.[1]);
  whole = content("whole");
}, MINUTES);

test("the run has every kind of stage, and keeps no rolling checkpoint at its end", () => {
  expect(writes).toBeGreaterThan(100);
  expect(
    Object.keys(whole).filter((name) => name.startsWith("checkpoints/") && name.includes(".at-")),
  ).toEqual([]);
  const events = whole["metrics.jsonl"] as { type: string; stage: string }[];
  const steps = (stage: string): number =>
    events.filter((event) => event.type === "step" && event.stage === stage).length;
  expect(steps("base")).toBe(110);
  expect(steps("rft")).toBeGreaterThan(1);
  expect(steps("stage1")).toBeGreaterThan(1);
});

test(
  "killed at any moment it goes on to the same weights, metrics and trajectories",
  async () => {
    const random = Random.of(1, "kills");
    let kills = 0;
    for (let attempt = 0; kills < KILLS; attempt++) {
      const name = `killed-${attempt}`;
      // Half of the kills fall anywhere, half on one of the writes; a resumed process has fewer of them left.
      for (let ended = false; !ended && kills < KILLS; ) {
        const killed: boolean =
          kills % 2 === 0
            ? await killedAfter(name, 0.5 * random.uniform() * milliseconds)
            : finish(name, `kill:${1 + random.below(Math.ceil(writes / 3))}`).signal === "SIGKILL";
        if (killed) kills++;
        else ended = true;
      }
      const { status, stderr } = finish(name);
      expect(status, stderr).toBe(0);
      expect(content(name)).toEqual(whole);
      rmSync(directory(name), { recursive: true });
    }
  },
  MINUTES,
);

test(
  "killed after every state that it saves it goes on to the same",
  () => {
    const name = "states";
    let kills = 0;
    while (kills < 50 && finish(name, "kill:state").signal === "SIGKILL") kills++;
    expect(kills).toBeGreaterThan(8);
    expect(content(name)).toEqual(whole);
  },
  MINUTES,
);

test(
  "a disk that is full at some write stops the run with the cure, and freed it goes on to the same",
  () => {
    const random = Random.of(3, "full");
    const name = "full";
    const stopped = finish(name, `full:${12 + random.below(Math.ceil(writes / 3))}`);
    expect(stopped.status, stopped.stderr).toBe(1);
    expect(stopped.stderr).toMatch(
      /^tokenring: \S+: no space left on the device; free some and resume, nothing .* lost$/m,
    );
    expect(stopped.stderr).toContain(`to go on: tokenring resume ${directory(name)}`);
    const { status, stderr } = finish(name);
    expect(status, stderr).toBe(0);
    expect(content(name)).toEqual(whole);
  },
  MINUTES,
);

/** A file system of 24 MiB in a mount namespace of its own; `script` finds it at $DISK. */
function onSmallDisk(script: string): SpawnSyncReturns<string> {
  const disk = path.join(root, "disk");
  mkdirSync(disk, { recursive: true });
  const mounts = ["--dev-bind", "/", "/", "--size", `${24 * 2 ** 20}`, "--tmpfs", disk];
  return spawnSync("bwrap", [...mounts, "sh", "-c", script], {
    encoding: "utf8",
    env: { ...environment("none", ""), DISK: disk },
    timeout: PROCESS_MINUTES,
  });
}

test.skipIf(onSmallDisk("true").status !== 0)(
  "a disk that fills up while weights are written stops the run with the cure, and freed it goes on to the same",
  () => {
    const text = readFileSync(config, "utf8");
    // No sandboxes within the namespace.
    writeFileSync(path.join(root, "small-disk.yaml"), `${text}sandbox: { kind: unsafe-host }\n`);
    const node = ["node", ...command()].map((word) => `'${word}'`).join(" ");
    const { status, stdout, stderr } = onSmallDisk(`
      head -c 21M /dev/zero > $DISK/filler
      ${node} train ${root}/small-disk.yaml --out $DISK/run
      echo "ended with $?"
      rm $DISK/filler
      ${node} resume $DISK/run && cp -r $DISK/run ${root}/small-disk
    `);
    expect(status, stderr).toBe(0);
    expect(stdout).toContain("ended with 1\n");
    // A checkpoint fills the disk while the run goes on: whichever of its files is written next may say so.
    expect(stderr).toMatch(/^tokenring: \S+: no space left on the device; free some and resume/m);
    const { "config.yaml": _, ...files } = content("small-disk");
    const { "config.yaml": __, ...expected } = whole;
    expect(files).toEqual(expected);
  },
  MINUTES,
);
