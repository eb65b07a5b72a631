// Ranks that come together over a launcher's variables: who is let in, who is not, and who is missed.
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { connect, createServer, type Server } from "node:net";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { RankGroup } from "../../lib/ranks/group.ts";
import type { Place } from "../../lib/ranks/place.ts";
import { runWorker } from "../../lib/ranks/worker.ts";

const secret = "a secret of the tests";

function code(name: string, message: RegExp): unknown {
  return expect.objectContaining({
    name: "TokenringError",
    code: `ERR_TOKENRING_${name}`,
    message: expect.stringMatching(message),
  });
}

/** A port of this machine that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

let port: number;
let held: Server | null = null;

beforeEach(async () => {
  port = await freePort();
  launched(0, 2);
});

afterEach(() => {
  vi.unstubAllEnvs();
  held?.close();
  held = null;
});

/** This process is a rank that a launcher started. */
function launched(rank: number, size: number): void {
  vi.stubEnv("RANK", `${rank}`);
  vi.stubEnv("WORLD_SIZE", `${size}`);
  vi.stubEnv("MASTER_ADDR", "127.0.0.1");
  vi.stubEnv("MASTER_PORT", `${port}`);
  vi.stubEnv("TOKENRING_SECRET", secret);
}

const place = (rank: number, size = 2, change: Partial<Place> = {}): Place => ({
  rank,
  size,
  localRank: rank,
  address: "127.0.0.1",
  port,
  secret,
  ...change,
});

/** A worker in this process; what it ends with. */
const worker = (at: Place): Promise<unknown> =>
  runWorker({ place: at, wait: 10_000 }).then(
    () => "ended",
    (error: unknown) => error,
  );

describe("a group", () => {
  it("is complete when all ranks are there, in whatever order they come, and ends them when it ends", async () => {
    launched(0, 3);
    const workers = [worker(place(2, 3)), worker(place(1, 3))];
    const group = await RankGroup.open();
    expect([group.size, group.workers.map(({ rank }) => rank)]).toEqual([3, [1, 2]]);
    expect(group.workers[0]?.pid).toBe(process.pid);
    expect(group.host(1).ranks).toBe(3);
    await group.dispose();
    expect(await Promise.all(workers)).toEqual(["ended", "ended"]);
  });

  it("names the ranks that did not come", async () => {
    launched(0, 4);
    const there = worker(place(2, 4));
    await expect(RankGroup.open({ wait: 1500 })).rejects.toEqual(
      code("TIMEOUT", /^rank 1, 3 of 4 did not come within 1.5 s$/),
    );
    expect(await there).toBe("ended");
  });

  it("turns away a wrong secret, and says so to both", async () => {
    const stranger = worker(place(1, 2, { secret: "another secret than theirs" }));
    await expect(RankGroup.open({ wait: 1500 })).rejects.toEqual(
      code(
        "TIMEOUT",
        /rank 1 of 2 did not come.*turned away: 127\.0\.0\.1:\d+: its secret is not the leader's/,
      ),
    );
    expect(await stranger).toEqual(
      code(
        "COMMUNICATOR",
        /^rank 1 of 2: the leader at .* turned it away: its secret is not the leader's; set TOKENRING_SECRET/,
      ),
    );
  });

  it("turns away a rank that comes twice, also when all are there", async () => {
    const first = worker(place(1));
    await using group = await RankGroup.open();
    expect(await worker(place(1))).toEqual(code("COMMUNICATOR", /turned it away: rank 1 is there already/));
    await group.dispose();
    expect(await first).toBe("ended");
  });

  it("turns away a rank of another WORLD_SIZE", async () => {
    const other = worker(place(1, 3));
    const right = other.then(() => worker(place(1)));
    await using group = await RankGroup.open();
    expect(await other).toEqual(code("COMMUNICATOR", /its WORLD_SIZE is 3, the leader's 2/));
    await group.dispose();
    expect(await right).toBe("ended");
  });

  it("has one leader: a second at the same port is an error that names it", async () => {
    const one = worker(place(1));
    await using group = await RankGroup.open();
    await expect(RankGroup.open()).rejects.toEqual(
      code("COMMUNICATOR", new RegExp(`rank 0 cannot listen at port ${port}: it is taken`)),
    );
    // It did no harm to the first.
    expect(group.stopping.aborted).toBe(false);
    await group.dispose();
    expect(await one).toBe("ended");
  });

  it("lets strangers say what they want, and goes on", async () => {
    const opening = RankGroup.open();
    const socket = connect(port, "127.0.0.1");
    socket.resume().on("error", () => {});
    await once(socket, "connect");
    socket.write("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    await once(socket, "close");
    const one = worker(place(1));
    await using group = await opening;
    await group.dispose();
    expect(await one).toBe("ended");
  });

  it("is refused where its size is not what the launcher started, and on other ranks than 0", async () => {
    await expect(RankGroup.open({ size: 3 })).rejects.toEqual(
      code("INVALID_ARGUMENT", /^ranks: 3, but the launcher started 2/),
    );
    launched(1, 2);
    await expect(RankGroup.open()).rejects.toEqual(
      code("INVALID_ARGUMENT", /this is rank 1 of 2: programs run on rank 0/),
    );
    await expect(RankGroup.open({ size: 0 })).rejects.toEqual(
      code("INVALID_ARGUMENT", /0 is no number of ranks/),
    );
  });

  it("stops waiting when its signal fires", async () => {
    const reason = new Error("enough");
    const controller = new AbortController();
    const opening = RankGroup.open({ signal: controller.signal });
    controller.abort(reason);
    await expect(opening).rejects.toBe(reason);
  });
});

describe("a worker", () => {
  it("says whom it waited for", async () => {
    const outcome = await runWorker({ place: place(1), wait: 300 }).catch((error: unknown) => error);
    expect(outcome).toEqual(
      code("TIMEOUT", new RegExp(`^rank 1 of 2: no leader at 127.0.0.1:${port} within 0.3 s .*ECONNREFUSED`)),
    );
  });

  it("believes no leader that does not know the secret, though that would take it", async () => {
    // It knows the protocol, and repeats what it hears.
    held = createServer((socket) => {
      const say = (words: object): void => {
        const body = Buffer.from(JSON.stringify(words));
        const length = Buffer.alloc(4);
        length.writeUInt32LE(body.length);
        socket.write(Buffer.concat([length, body]));
      };
      say({ nonce: "00" });
      socket.once("data", (chunk) => {
        const words = JSON.parse(chunk.subarray(4).toString()) as { proof: string };
        say({ proof: createHmac("sha256", "guessed").update(words.proof).digest("hex"), silence: "15000" });
      });
      socket.on("error", () => {});
    }).listen(port, "127.0.0.1");
    await once(held, "listening");
    expect(await worker(place(1))).toEqual(code("COMMUNICATOR", /the leader at .* does not know the secret/));
  });

  it("knows another program when it speaks to one", async () => {
    held = createServer((socket) => {
      socket.write(Buffer.from([5, 0, 0, 0, 104, 101, 108, 108, 111]));
      socket.on("error", () => {});
    }).listen(port, "127.0.0.1");
    await once(held, "listening");
    expect(await worker(place(1))).toEqual(
      code("COMMUNICATOR", /the leader at .* does not speak the protocol/),
    );
  });

  it("tells the leader when its own launcher wants it to stop, and goes on", async () => {
    const controller = new AbortController();
    const ended = runWorker({ place: place(1), signal: controller.signal });
    await using group = await RankGroup.open();
    const stopped = once(group.stopping, "abort");
    controller.abort(new Error("stopped by SIGTERM"));
    await stopped;
    expect(group.stopping.reason).toEqual(
      code("ABORTED", /^rank 1 \(process \d+ on .*\): stopped by SIGTERM$/),
    );
    await group.dispose();
    await ended;
  });
});
