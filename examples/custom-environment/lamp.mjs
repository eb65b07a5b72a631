// A world that is not software: a dark corridor with a lamp somewhere to the left or the right. Environment, tools,
// prompt, verdict and reward are what a user brings; the rest is tokenring's.
import { ToolError } from "tokenring";

export const PLACES = [-3, -2, -1, 1, 2, 3];
export const TURNS = 6;

/** What can be seen from `at`. */
const view = (lamp, at) => (lamp < at ? "It is left." : lamp > at ? "It is right." : "It is here.");

/** The environment of one episode. To tokenring it is a sandbox: `diff` is what the agent hands in. */
class Corridor {
  workdir = "/";
  #at = 0;
  #lamp;
  #taken = false;

  constructor(lamp) {
    this.#lamp = lamp;
  }

  go(step) {
    this.#at += step;
    return view(this.#lamp, this.#at);
  }

  /** Whether the lamp was here to be taken. */
  take() {
    this.#taken ||= this.#at === this.#lamp;
    return this.#taken;
  }

  async diff() {
    return this.#taken ? "lamp" : "nothing";
  }

  /** Whatever is no tool comes here. */
  async exec() {
    return { output: "No.", exitCode: 1, timedOut: false, droppedBytes: 0, cwd: "/" };
  }

  async read(path) {
    throw new ToolError(`there is no file ${path}`);
  }

  async write(path) {
    throw new ToolError(`${path} cannot be written`);
  }

  async snapshot() {
    throw new Error("a corridor cannot be copied");
  }

  async close() {}
}

/** Opens environments; `repository` is what tells one instance's from another's. */
export const corridors = {
  name: "corridors",
  open: async ({ repository }) => new Corridor(Number(repository)),
  dispose: async () => {},
};

export const tools = [
  {
    name: "go",
    signature: "go left|right",
    help: "Takes a step and looks where the lamp is.",
    async run({ sandbox }, { argv }) {
      if (argv[0] === "left") return sandbox.go(-1);
      if (argv[0] === "right") return sandbox.go(1);
      throw new ToolError("go left or go right");
    },
  },
  {
    name: "take",
    signature: "take",
    help: "Takes the lamp, if it is here, and ends the episode.",
    run: async ({ sandbox }) => (sandbox.take() ? { output: "", submitted: true } : "There is no lamp here."),
  },
];

export const instances = PLACES.map((lamp) => ({ instance_id: `lamp-at-${lamp}`, meta: { lamp } }));

export const template = {
  name: "corridor",
  opening: ({ meta }) => `Take the lamp. ${view(meta.lamp, 0)}`,
};

/** The verdict on what was handed in. */
export async function verify(_instance, handed) {
  const solved = handed === "lamp";
  return {
    verdict: solved ? "resolved" : "failed",
    reason: solved ? null : "tests_failed",
    ...{ tests: {}, failToPass: Number(solved), passToPass: 1, exitCode: null, log: "" },
  };
}

/** The reward: the lamp, and more for taking it soon. */
export function reward({ verdict, turns }) {
  return verdict === "resolved" ? 1 - 0.1 * (turns.length - 1) : 0;
}
