import { describe, expect, it } from "vitest";
import { type Judgement, VerdictCache } from "../../lib/agent/verdicts.ts";

/** A judge that counts its calls. */
function judge(judgement: Judgement): { calls: number; ask: () => Promise<Judgement> } {
  const counted = {
    calls: 0,
    ask: async (): Promise<Judgement> => {
      counted.calls++;
      return judgement;
    },
  };
  return counted;
}

const resolved: Judgement = { verdict: "resolved", reason: null, failToPass: 1, passToPass: 1 };

describe("verdicts by patch", () => {
  it("judges a patch of an instance once, also when two ask at the same time", async () => {
    const cache = new VerdictCache();
    const tests = judge(resolved);
    const both = await Promise.all([cache.of("i", "p", tests.ask), cache.of("i", "p", tests.ask)]);
    expect(both).toEqual([resolved, resolved]);
    await cache.of("i", "p", tests.ask);
    expect(tests.calls).toBe(1);
  });

  it("tells instances and patches apart", async () => {
    const cache = new VerdictCache();
    const tests = judge(resolved);
    await cache.of("i", "p", tests.ask);
    await cache.of("i", "q", tests.ask);
    await cache.of("j", "p", tests.ask);
    expect(tests.calls).toBe(3);
  });

  it.each(["infra_failed", "timeout"] as const)(
    "does not keep %s, which says nothing of the patch",
    async (reason) => {
      const cache = new VerdictCache();
      const broken = judge({ ...resolved, verdict: "not_run", reason });
      await cache.of("i", "p", broken.ask);
      const tests = judge(resolved);
      expect(await cache.of("i", "p", tests.ask)).toEqual(resolved);
      expect([broken.calls, tests.calls]).toEqual([1, 1]);
    },
  );

  it("does not keep a fault of the judge", async () => {
    const cache = new VerdictCache();
    await expect(cache.of("i", "p", () => Promise.reject(new Error("lost")))).rejects.toThrow("lost");
    expect(await cache.of("i", "p", judge(resolved).ask)).toEqual(resolved);
  });

  it("forgets the oldest beyond its capacity", async () => {
    const cache = new VerdictCache(2);
    const tests = judge(resolved);
    for (const patch of ["a", "b", "c", "b", "c"]) await cache.of("i", patch, tests.ask);
    expect(tests.calls).toBe(3);
    await cache.of("i", "a", tests.ask);
    expect(tests.calls).toBe(4);
  });
});
