// Rollouts that go on from a turn of a trajectory: the same tokens, the same state of the sandbox, other draws.
import { describe, expect, it } from "vitest";
import { type RolloutOptions, Rollouts } from "../../lib/agent/rollouts.ts";
import type { Group, Prefix, Trajectory } from "../../lib/agent/types.ts";
import { scriptedEngine } from "../../lib/engine/scripted.ts";
import { MemoryBackend, MemorySandbox, type Shell } from "../support/memory-sandbox.ts";
import { act, chat, instance, limits, template, tokenizer } from "../support/tiny-agent.ts";

const task = instance("a");
const request = { instances: [task], rollouts: 1, purpose: "stage1", iteration: 0, temperature: 1 };

/** Rollouts whose n-th episode to sample says `scripts[n]`, turn by turn, in sandboxes with a shell. */
function rollouts(
  scripts: readonly (readonly string[])[],
  shell: Shell = (command) => (command === "cd sub" ? { cwd: "/repo/sub" } : { output: "said" }),
  changes: Partial<RolloutOptions> = {},
): { source: Rollouts; backend: MemoryBackend } {
  const backend = new MemoryBackend(() => new MemorySandbox({ "gebo.py": "x\n" }, shell));
  const source = new Rollouts({
    engine: scriptedEngine(tokenizer, {
      script: (index) => (_, turn) => scripts[index]?.[turn] ?? act("submit"),
    }),
    tokenizer,
    chat,
    template,
    repository: async () => "/repositories/a",
    sandboxes: backend,
    verify: async (_, patch) => {
      const resolved = patch.includes("fixed");
      return {
        verdict: resolved ? "resolved" : "failed",
        reason: resolved ? null : "tests_failed",
        tests: {},
        failToPass: resolved ? 1 : 0.5,
        passToPass: 1,
        exitCode: 0,
        log: "",
      };
    },
    limits,
    seed: 3,
    episodes: 4,
    ...changes,
  });
  return { source, backend };
}

const first = [
  act("cd sub"),
  "no command",
  act("edit --file ../gebo.py 1:1 fixed"),
  act("ls"),
  act("submit"),
];

async function whole(source: Rollouts): Promise<Trajectory> {
  const [group] = await source.collect(request);
  const trajectory = group?.trajectories[0];
  if (trajectory?.turns.length !== first.length) throw new Error("the script was not played to its end");
  return trajectory;
}

const from = (source: Rollouts, prefix: Prefix, rollouts = 1, judgeOnly = false) =>
  source.collect({ ...request, rollouts, prefixes: [prefix], judgeOnly, purpose: "stage1/forks" });

describe("rollouts from a prefix", () => {
  it("begin with its tokens and turns, in a sandbox where its commands were run", async () => {
    const { source, backend } = rollouts([first, [act("pwd"), act("submit")], [act("submit")]]);
    const trajectory = await whole(source);
    const [group] = (await from(source, { trajectory, turns: 3 }, 2)) as [Group];
    const [one, other] = group.trajectories as [Trajectory, Trajectory];
    const end = trajectory.turns[3]?.start as number;
    for (const branch of [one, other]) {
      expect(branch.turns.slice(0, 3)).toEqual(trajectory.turns.slice(0, 3));
      for (const lane of ["tokens", "provenance", "logprobs"] as const)
        expect([...branch[lane].subarray(0, end)]).toEqual([...trajectory[lane].subarray(0, end)]);
      // The edit of the prefix is part of what is judged.
      expect(branch).toMatchObject({ verdict: "resolved", tests: { failToPass: 1, passToPass: 1 } });
      expect(branch.turns[3]?.start).toBe(end);
    }
    expect([one, other].map(({ turns }) => turns.length).sort()).toEqual([4, 5]);
    const longer = [one, other].find(({ turns }) => turns.length === 5);
    // The shell stands where the prefix left it.
    expect(longer?.turns[3]?.observation).toContain("sub");
    expect(backend.opened[1]?.commands[0]).toBe("cd sub");
    expect(backend.stillOpen).toBe(0);
  });

  it("are judged as the prefix left the tree, without a turn, where that is all that is asked", async () => {
    const { source } = rollouts([first]);
    const trajectory = await whole(source);
    for (const [turns, verdict] of [
      [2, "not_run"],
      [3, "resolved"],
    ] as const) {
      const [group] = (await from(source, { trajectory, turns }, 1, true)) as [Group];
      const [judged] = group.trajectories as [Trajectory];
      expect(judged.turns).toEqual(trajectory.turns.slice(0, turns));
      expect(judged.exit).toBe("turn_limit");
      expect(judged.verdict === "resolved").toBe(verdict === "resolved");
    }
  });

  it("leave their group where a command says something else than it did", async () => {
    let calls = 0;
    const { source, backend } = rollouts([first], (command) => ({
      output: command === "cd sub" ? String(calls++) : "said",
    }));
    const trajectory = await whole(source);
    const [group] = await from(source, { trajectory, turns: 3 }, 2);
    expect(group?.trajectories).toEqual([]);
    expect(group?.dropped.map(({ exit }) => exit)).toEqual(["infra_failed", "infra_failed"]);
    expect(backend.stillOpen).toBe(0);
  });

  it("count the prefix's turns towards the limit", async () => {
    const { source } = rollouts([first, [act("ls"), act("ls"), act("ls"), act("ls"), act("ls")]]);
    const trajectory = await whole(source);
    const { source: short } = rollouts([[act("ls"), act("ls"), act("ls"), act("ls")]], undefined, {
      limits: { ...limits, maxTurns: 5 },
    });
    const [group] = await from(short, { trajectory, turns: 3 });
    expect(group?.trajectories[0]).toMatchObject({ exit: "turn_limit", verdict: "resolved" });
    expect(group?.trajectories[0]?.turns).toHaveLength(5);
  });

  it("need one prefix an instance, of a trajectory that went on", async () => {
    const { source } = rollouts([first]);
    const trajectory = await whole(source);
    await expect(source.collect({ ...request, prefixes: [] })).rejects.toThrow(/0 prefixes for 1 instances/);
    await expect(from(source, { trajectory, turns: 5 })).rejects.toThrow(/give at least 1 and fewer/);
  });
});
