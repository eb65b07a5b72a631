// Ranks and places as launchers give them.
import { describe, expect, it } from "vitest";
import { launchedPerNode, launchedPlace, launchedRank, launchedRanks } from "../../lib/ranks/place.ts";

const secret = "0123456789abcdef";
const torchrun = {
  RANK: "3",
  WORLD_SIZE: "8",
  LOCAL_RANK: "1",
  MASTER_ADDR: "node-0",
  MASTER_PORT: "29500",
  TOKENRING_SECRET: secret,
};

function code(message: RegExp): unknown {
  return expect.objectContaining({
    code: "ERR_TOKENRING_INVALID_ARGUMENT",
    message: expect.stringMatching(message),
  });
}

describe("a launcher's variables", () => {
  it("give the rank's place", () => {
    expect(launchedPlace(torchrun)).toEqual({
      rank: 3,
      size: 8,
      localRank: 1,
      address: "node-0",
      port: 29500,
      secret,
    });
    expect([launchedRanks(torchrun), launchedRank(torchrun)]).toEqual([8, 3]);
  });

  it("that are not there mean one rank alone", () => {
    expect([launchedRanks({}), launchedRank({})]).toEqual([1, 0]);
    expect([launchedRanks({ WORLD_SIZE: "4" }), launchedRank({ RANK: "1" })]).toEqual([1, 0]);
    expect(launchedRank({ RANK: "0", WORLD_SIZE: "1" })).toBe(0);
  });

  it("leave MASTER_PORT to a torchrun that listens there itself, and a port that is given is taken", () => {
    const agent = { ...torchrun, TORCHELASTIC_USE_AGENT_STORE: "True" };
    expect(launchedPlace(agent).port).toBe(29501);
    expect(launchedPlace({ ...agent, TOKENRING_PORT: "4000" }).port).toBe(4000);
    expect(launchedPlace({ ...torchrun, TORCHELASTIC_USE_AGENT_STORE: "False" }).port).toBe(29500);
  });

  it("say how many ranks a host has", () => {
    expect(launchedPerNode(torchrun)).toBeNull();
    expect(launchedPerNode({ ...torchrun, LOCAL_WORLD_SIZE: "8" })).toBe(8);
    expect(() => launchedPerNode({ LOCAL_WORLD_SIZE: "0" })).toThrow(/LOCAL_WORLD_SIZE is "0"/);
  });

  it.each([
    [{ WORLD_SIZE: "many" }, /WORLD_SIZE is "many".*from 2/],
    [{ RANK: "8" }, /RANK is "8".*0 to 7/],
    [{ RANK: "" }, /RANK is ""/],
    [{ LOCAL_RANK: "x" }, /LOCAL_RANK is "x"/],
    [{ MASTER_ADDR: undefined }, /MASTER_ADDR is not set/],
    [{ MASTER_PORT: "70000" }, /MASTER_PORT is "70000"/],
    [{ TOKENRING_SECRET: undefined }, /TOKENRING_SECRET is not set.*openssl rand/],
    [{ TOKENRING_SECRET: "short" }, /TOKENRING_SECRET is only 5 characters/],
  ])("that are wrong are named: %o", (change, message) => {
    expect(() => launchedPlace({ ...torchrun, ...change })).toThrow(code(message) as Error);
  });
});
